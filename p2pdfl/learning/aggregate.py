"""Bit-reproducible aggregation of quantized updates (DESIGN 6).

Every machine must get the same bytes from the same updates, whatever its BLAS, threads or instruction set:

- inner products of chunks of codes are integers below 2^24, exact in float32 in any order of summation (`gram`);
- what is decided from them (clipping, neighbours, weights) is elementwise, in member order (`weights`, `subset`);
- sums of updates are matrix products of codes and weights, rounded before so that every partial sum is exact in
  float64 (`_exact_weights`);
- what is left to do with coordinates are minimum, maximum and sums in a fixed order.

A rule's name is a composition `[clip_][nnm_]BASE` (docs/aggregation.md).  With m updates and f = floor((m - 1) / 2),
clip_ shortens each to the lower-median norm, nnm_ then replaces each by the mean of its m - f nearest, and BASE is
either a weighted mean of these rows (`weights`), or takes the mean of what lies between the f lowest and the f highest
of each coordinate (Yin et al. 2018, ICML); at this f that is the coordinate median.  Since clip_ and nnm_ are linear, a
row is known by its weights over the updates, and the rows' Gram matrix follows from that of the updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.task import CLIP, NNM
from p2pdfl.learning import weights
from p2pdfl.learning.quantize import CODE_MAX, Quantized
from p2pdfl.learning.weights import Matrix, Vector

_BLOCK_BYTES = 1 << 22
"""What is worked on at a time, so that it stays in the cache; at least one chunk of every update."""


def aggregate(rule: str, updates: Sequence[Quantized]) -> Vector:
    """One vector from m >= 1 valid updates of equal dimension, in member order: float64 [dimension].

    rule: one of `task.RULES`.
    """
    count = len(updates)
    f = byzantine_count_max(count)
    weigh = _WEIGHTS[rule.removeprefix(CLIP).removeprefix(NNM)]
    rows: Matrix = np.eye(count)  # [row, update]
    products: Matrix = np.zeros((count, count)) if rule in _NEED_NO_PRODUCTS else gram(updates)
    divisor = 1.0
    if rule.startswith(CLIP):
        factors = weights.clip_factors(products)
        rows *= factors
        products *= factors[:, None] * factors[None, :]
    if rule.removeprefix(CLIP).startswith(NNM):
        neighbourhoods = weights.nearest_neighbours(products, count - f)
        rows = weights.mix(rows, neighbourhoods)
        products = weights.mix(weights.mix(products, neighbourhoods).T, neighbourhoods)
        divisor *= count - f
    if weigh is None:
        return _combine(updates, rows, trimmed=f, divisor=divisor * (count - 2 * f))
    row_weights = weigh(products, f)
    rows = weights.combine(rows, row_weights)[None, :]
    return _combine(updates, rows, trimmed=0, divisor=divisor * weights.total(row_weights))


def byzantine_count_max(update_count: int) -> int:
    """f_agg: how many bad ones among the valid updates the rules are built to tolerate (DESIGN 2)."""
    return max(0, (update_count - 1) // 2)


def gram(updates: Sequence[Quantized]) -> Matrix:
    """Inner products of all pairs of decoded updates, [update, update]."""
    scales = _scales(updates)
    total = np.zeros((len(updates), len(updates)))
    for block, codes in _blocks(updates, _chunks_at_a_time(updates, 4 * len(updates)), np.float32):
        products = np.matmul(codes, codes.transpose(0, 2, 1)).astype(np.float64)
        products *= scales[block, :, None] * scales[block, None, :]
        for product in products:
            total += product
    return total


class Comparator(NamedTuple):
    """Puts the lower of two values into `low` and the higher into `high`, or only the one that is needed."""

    low: int
    high: int
    needs_low: bool
    needs_high: bool


def selection_network(count: int, trimmed: int) -> list[Comparator]:
    """After it places trimmed..count-trimmed-1 hold what sorting would put there.

    Batcher's odd-even merge sort without what only the trimmed places depend on.
    """
    needed = set(range(trimmed, count - trimmed))
    kept: list[Comparator] = []
    for low, high in reversed(list(_batcher(count))):
        if low in needed or high in needed:
            kept.append(Comparator(low, high, low in needed, high in needed))
            needed |= {low, high}
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


def _sort(rows: list[Vector], network: Sequence[Comparator]) -> None:
    spare = np.empty_like(rows[0])
    for low, high, needs_low, needs_high in network:
        if needs_low and needs_high:
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low], spare = spare, rows[low]
        elif needs_low:
            np.minimum(rows[low], rows[high], out=rows[low])
        else:
            np.maximum(rows[low], rows[high], out=rows[high])


def _combine(updates: Sequence[Quantized], rows: Matrix, *, trimmed: int, divisor: float) -> Vector:
    """Per coordinate, the sum of all rows but the `trimmed` lowest and highest, over `divisor`.

    rows: the weights of each over the updates, [row, update].
    """
    dimension = updates[0].codes.size
    scales = _scales(updates)
    network = selection_network(len(rows), trimmed)
    is_diagonal = np.count_nonzero(rows) == np.count_nonzero(np.diagonal(rows)) and len(rows) == len(updates)
    chunk = updates[0].chunk
    chunks = _chunks_at_a_time(updates, 8 * (len(rows) + len(updates)))
    values = np.empty((len(rows), chunks, chunk))
    result = np.empty((len(scales), chunk))
    for block, codes in _blocks(updates, chunks, np.float64):
        used = values[:, : len(codes)]
        if is_diagonal:
            factors = np.diagonal(rows) * scales[block]
            np.multiply(codes, factors[:, :, None], out=used.transpose(1, 0, 2))
        else:
            np.matmul(_exact_weights(rows * scales[block, None, :]), codes, out=used.transpose(1, 0, 2))
        ordered = list(used.reshape(len(rows), -1))
        _sort(ordered, network)
        # from +0.0: which of two zeros minimum and maximum return, or a product is, then does not matter
        total = np.zeros_like(ordered[0])
        for row in ordered[trimmed : len(rows) - trimmed]:
            total += row
        np.divide(total.reshape(-1, chunk), divisor, out=result[block])
    return result.reshape(-1)[:dimension]


def _exact_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [..., update] rounded so that no sum of weight times code needs rounding, whatever its order.

    They become multiples of a unit, a power of two, so small that a row's largest keeps as many bits as leave all sums
    below 2^53 units: 42 for 16 updates, 38 for 256.  Single scales are powers of two and stay what they are.
    """
    bits = 53 - CODE_MAX.bit_length() - (weights.shape[-1] - 1).bit_length()
    _, exponents = np.frexp(np.abs(weights).max(axis=-1, keepdims=True))  # the largest is below 2^exponent
    units = np.ldexp(1.0, exponents - bits)
    rounded: NDArray[np.float64] = np.rint(weights / units) * units
    return rounded


def _scales(updates: Sequence[Quantized]) -> Matrix:
    """[chunk, update]."""
    return np.stack([update.scales() for update in updates], axis=1)


def _chunks_at_a_time(updates: Sequence[Quantized], bytes_per_coordinate: int) -> int:
    return max(1, _BLOCK_BYTES // (bytes_per_coordinate * updates[0].chunk))


def _blocks(
    updates: Sequence[Quantized],
    chunks: int,
    dtype: type[np.floating[Any]],
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Which chunks, at most `chunks`, and their codes [chunk, update, coordinate], zeros at the end of the last.

    The array is used again for the next block.
    """
    count, chunk = updates[0].exponents.size, updates[0].chunk
    rows = np.empty((len(updates), chunks * chunk), dtype=dtype)
    codes = rows.reshape(len(updates), chunks, chunk).transpose(1, 0, 2)
    for first in range(0, count, chunks):
        end = min(first + chunks, count)
        for row, update in zip(rows, updates, strict=True):
            part = update.codes[first * chunk : end * chunk]
            row[: part.size] = part
            row[part.size :] = 0
        yield slice(first, end), codes[: end - first]


_WEIGHTS: dict[str, Callable[[Matrix, int], Vector] | None] = {
    "mean": weights.mean,
    "median": None,  # by coordinate
    "trimmed_mean": None,
    "krum": weights.krum,
    "multi_krum": weights.multi_krum,
    "geometric_median": weights.geometric_median,
    "centered_clip": weights.centered_clip,
    "mda": weights.mda,
}
_NEED_NO_PRODUCTS = ("mean", "median", "trimmed_mean")
