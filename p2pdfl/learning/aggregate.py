"""Bit-reproducible aggregation of quantized updates (DESIGN 6).

Every machine must get the same bytes from the same updates, whatever its BLAS, threads or instruction set:

- inner products of int8 chunks are integers below 2^24, exact in float32 in any order of summation (`gram`);
- what is decided from them (clipping, neighbours) is computed by Python floats in member order;
- what is done to coordinates is elementwise, in member order, multiplication and addition apart so that nothing
  fuses them, and without library reductions, whose order of summation varies.

Default rule, with m updates and f = floor((m - 1) / 2): clip each to the lower-median norm (that of an honest update
or below one), replace each by the mean of its m - f nearest (NNM: Allouah et al. 2023, AISTATS), then take in each
coordinate the mean without the f lowest and f highest (Yin et al. 2018, ICML).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from p2pdfl.learning.quantize import CHUNK, Quantized, chunk_count
from p2pdfl.task import Rule

Vector = NDArray[np.float64]

_GRAM_CHUNKS = 32
"""Chunks converted to float32 at a time: 2 MB for 16 updates."""
_BLOCK_CHUNKS = 4
"""Chunks combined at a time: 0.5 MB for 16 updates, so that a block stays in the cache."""


def aggregate(rule: Rule, updates: Sequence[Quantized]) -> Vector:
    """One vector from m >= 1 valid updates of equal dimension, in member order: float64 [dimension]."""
    return _RULES[rule](updates)


def byzantine_count_max(update_count: int) -> int:
    """f_agg: how many bad ones among the valid updates the default rule is built to bear (DESIGN 2)."""
    return max(0, (update_count - 1) // 2)


def mean(updates: Sequence[Quantized]) -> Vector:
    """What there is without robustness: one update moves it anywhere."""
    ones = [1.0] * len(updates)
    return _by_block(updates, ones, lambda rows: _sum(rows, range(len(rows))), divisor=len(updates))


def clip_nnm_trimmed_mean(updates: Sequence[Quantized]) -> Vector:
    count = len(updates)
    f = byzantine_count_max(count)
    products = gram(updates)
    factors = clip_factors(products)
    neighbourhoods = nearest_neighbours(products, factors, count - f)
    network = selection_network(count, f)

    def combine(rows: NDArray[np.float64]) -> Vector:
        mixed = {hood: _sum(rows, hood) for hood in sorted(set(neighbourhoods))}
        ordered = [mixed[hood].copy() for hood in neighbourhoods]
        _sort(ordered, network)
        return _sum(ordered, range(f, count - f))

    # both means divide by a constant, which changes no order: once at the end is enough
    return _by_block(updates, factors, combine, divisor=(count - f) * (count - 2 * f))


def gram(updates: Sequence[Quantized]) -> list[list[float]]:
    """Inner products of all pairs of decoded updates, [update][update]."""
    scales = np.stack([update.scales() for update in updates], axis=1)  # [chunk, update]
    total = np.zeros((len(updates), len(updates)))
    for first in range(0, len(scales), _GRAM_CHUNKS):
        codes = _codes(updates, first, _GRAM_CHUNKS, np.dtype(np.float32)).transpose(1, 0, 2)  # [chunk, update, CHUNK]
        products = np.matmul(codes, codes.transpose(0, 2, 1)).astype(np.float64)
        block = scales[first : first + _GRAM_CHUNKS]
        products *= block[:, :, None] * block[:, None, :]
        for product in products:
            total += product
    rows: list[list[float]] = total.tolist()
    return rows


def clip_factors(products: Sequence[Sequence[float]]) -> list[float]:
    """What brings each update's norm down to the lower median of all norms; at most 1."""
    norms = [math.sqrt(products[i][i]) for i in range(len(products))]
    bound = sorted(norms)[(len(norms) - 1) // 2]
    return [1.0 if norm <= bound else bound / norm for norm in norms]


def nearest_neighbours(
    products: Sequence[Sequence[float]], factors: Sequence[float], neighbour_count: int
) -> list[tuple[int, ...]]:
    """For each scaled update the ascending indices of those nearest to it, itself among them; ties: the lower index."""
    members = range(len(products))

    def distance(i: int, j: int) -> float:
        own = (factors[i] * factors[i]) * products[i][i] + (factors[j] * factors[j]) * products[j][j]
        return own - 2.0 * ((factors[i] * factors[j]) * products[i][j])

    return [tuple(sorted(sorted(members, key=lambda j: (distance(i, j), j))[:neighbour_count])) for i in members]


def selection_network(count: int, trimmed: int) -> list[tuple[int, int]]:
    """Comparators (low, high) after which places trimmed..count-trimmed-1 hold what sorting would put there.

    Batcher's odd-even merge sort without the comparators that only the trimmed places depend on.
    """
    needed = set(range(trimmed, count - trimmed))
    kept: list[tuple[int, int]] = []
    for low, high in reversed(list(_batcher(count))):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return kept[::-1]


def _batcher(count: int) -> Iterator[tuple[int, int]]:
    """Knuth, The Art of Computer Programming 3, 5.2.2 M."""
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                for i in range(j, min(j + k, count - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        yield i, i + k
            k //= 2
        p *= 2


def _sort(rows: list[NDArray[np.float64]], network: Sequence[tuple[int, int]]) -> None:
    # no row holds -0.0 (`_sum` starts at +0.0), so which of two equals minimum returns does not matter
    spare = np.empty_like(rows[0])
    for low, high in network:
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]


def _sum(rows: Sequence[NDArray[np.float64]] | NDArray[np.float64], members: Sequence[int]) -> Vector:
    total = np.zeros_like(rows[0])
    for member in members:
        total += rows[member]
    return total


def _by_block(
    updates: Sequence[Quantized],
    factors: Sequence[float],
    combine: Callable[[NDArray[np.float64]], Vector],
    *,
    divisor: int,
) -> Vector:
    """combine(rows) / divisor over blocks of coordinates; rows: float64 [update, coordinate], scaled by factors."""
    dimension = updates[0].codes.size
    scales = np.stack([update.scales() * factor for update, factor in zip(updates, factors, strict=True)])
    result = np.empty(chunk_count(dimension) * CHUNK)
    for first in range(0, chunk_count(dimension), _BLOCK_CHUNKS):
        rows = _codes(updates, first, _BLOCK_CHUNKS, np.dtype(np.float64))
        rows *= scales[:, first : first + _BLOCK_CHUNKS, None]
        flat = rows.reshape(len(updates), -1)
        result[first * CHUNK : first * CHUNK + flat.shape[1]] = combine(flat) / divisor
    return result[:dimension]


def _codes(updates: Sequence[Quantized], first: int, count: int, dtype: np.dtype) -> NDArray:  # type: ignore[type-arg]
    """Codes of `count` chunks, or as many as there are: [update, chunk, CHUNK]; zeros fill the last chunk."""
    count = min(count, chunk_count(updates[0].codes.size) - first)
    block = np.zeros((len(updates), count, CHUNK), dtype=dtype)
    flat = block.reshape(len(updates), -1)
    for row, update in zip(flat, updates, strict=True):
        codes = update.codes[first * CHUNK : (first + count) * CHUNK]
        row[: codes.size] = codes
    return block


_RULES: dict[Rule, Callable[[Sequence[Quantized]], Vector]] = {
    "mean": mean,
    "clip_nnm_trimmed_mean": clip_nnm_trimmed_mean,
}
