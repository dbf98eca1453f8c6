"""Every rule bit for bit, beside torch on float32 that promises nothing, and beside moving the bytes; on one thread.

Every column starts from quantized updates, so decoding counts.  Times are the processor's, so that what else runs on
the machine counts less, and medians.  What torch takes too long for is left out (--naive-max), and so is MDA by trying
all subsets of more than 16.

    OPENBLAS_NUM_THREADS=1 python benchmarks/aggregate.py --updates 16 --dimensions 1000000

Without OPENBLAS_NUM_THREADS=1 the other threads' time counts as well.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from p2pdfl.base import params
from p2pdfl.learning.aggregate import aggregate, byzantine_count_max, gram
from p2pdfl.learning.quantize import CODINGS, Coding, Quantized

RULES = (
    "mean",
    "clip_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "centered_clip",
    "mda",
    "clip_nnm_trimmed_mean",
)
RUNS_SECONDS = 2.0
"""A measurement that has taken this long is not repeated."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--codes", choices=CODINGS, default="int8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--naive-max", type=int, default=64_000_000, help="coordinates of all updates together")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for dimension, count in itertools.product(arguments.dimensions, arguments.updates):
        updates = draw(count, dimension, CODINGS[arguments.codes])
        space = [np.ones_like(update.codes) for update in updates]
        copy_ms = median_ms(
            lambda updates=updates, space=space: list(map(np.copyto, space, codes(updates))), arguments.runs
        )
        read_ms = median_ms(lambda updates=updates: [part.max() for part in codes(updates)], arguments.runs)
        del space
        table = Table("", "exact", "times a copy", "torch", title=f"{count} updates of {dimension:,} coordinates, ms")
        table.add_row("read the codes", f"{read_ms:.2f}", f"{read_ms / copy_ms:.1f}")
        table.add_row("copy the codes", f"{copy_ms:.2f}", "1.0")
        work: dict[str, Callable[[], object]] = {"Gram matrix": lambda updates=updates: gram(updates)}
        for rule in arguments.rules:
            work[rule] = lambda updates=updates, rule=rule: aggregate(rule, updates)
        for name, call in work.items():
            exact_ms = median_ms(call, arguments.runs)
            row = [name, f"{exact_ms:.2f}", f"{exact_ms / copy_ms:.1f}"]
            if count * dimension <= arguments.naive_max and name in NAIVE and not (name == "mda" and count > 16):
                row.append(f"{median_ms(lambda name=name: naive(name, updates), arguments.runs):.2f}")  # noqa: B023
            table.add_row(*row)
        Console().print(table)


def draw(count: int, dimension: int, coding: Coding) -> list[Quantized]:
    """Codes of normally distributed updates with a direction in common; made one by one, they take much memory."""
    source = np.random.default_rng(0)
    spread = max(1, coding.code_max // 6)
    common = source.integers(-spread, spread + 1, dimension, dtype=np.int8)
    exponents = np.full(coding.chunk_count(dimension), -14, dtype=np.int8)

    def one() -> NDArray[np.int8]:
        noise = np.rint(source.standard_normal(dimension, np.float32) * spread).astype(np.int8)
        return np.clip(common + noise, -coding.code_max, coding.code_max)

    return [Quantized(exponents, one(), coding.chunk) for _ in range(count)]


def codes(updates: list[Quantized]) -> list[NDArray[np.int8]]:
    return [update.codes for update in updates]


def median_ms(call: Callable[[], object], runs: int) -> float:
    timings: list[float] = []
    while len(timings) < runs and sum(timings) < RUNS_SECONDS * 1e3:
        started = time.process_time()
        call()
        timings.append((time.process_time() - started) * 1e3)
    return statistics.median(timings)


# --- what one would write with torch ---------------------------------------------------------------------------


def naive(rule: str, updates: list[Quantized]) -> Tensor:
    x = torch.empty(len(updates), updates[0].codes.size)
    for row, update in zip(x, updates, strict=True):
        scales = torch.from_numpy(update.scales()).float().repeat_interleave(update.chunk)[: row.numel()]
        torch.mul(torch.from_numpy(update.codes), scales, out=row)
    return NAIVE[rule](x, byzantine_count_max(len(updates)))


def clip(x: Tensor) -> Tensor:
    norms = x.norm(dim=1)
    return x * (norms.median() / norms).clamp(max=1)[:, None]


def nearest_mixed(x: Tensor, f: int) -> Tensor:
    nearest = torch.cdist(x, x).topk(len(x) - f, largest=False).indices
    return torch.stack([x[neighbours].mean(0) for neighbours in nearest])


def trimmed_mean(x: Tensor, f: int) -> Tensor:
    return x.sort(0).values[f : len(x) - f].mean(0)


def multi_krum(x: Tensor, f: int, chosen: int) -> Tensor:
    scores = torch.cdist(x, x).square().sort(1).values[:, : len(x) - f].sum(1)
    return x[scores.topk(chosen, largest=False).indices].mean(0)


def geometric_median(x: Tensor, f: int) -> Tensor:
    z = x.median(0).values
    for _ in range(params.GEOMETRIC_MEDIAN_STEPS):
        inverse = 1 / (x - z).norm(dim=1).clamp(min=params.SMOOTHING)
        z = (x * inverse[:, None]).sum(0) / inverse.sum()
    return z


def centered_clip(x: Tensor, f: int) -> Tensor:
    v = x.median(0).values
    for _ in range(params.CENTERED_CLIP_STEPS):
        differences = x - v
        v = v + (differences * (0.1 / differences.norm(dim=1)).clamp(max=1)[:, None]).mean(0)
    return v


def mda(x: Tensor, f: int) -> Tensor:
    distances = torch.cdist(x, x).numpy()
    subsets = itertools.combinations(range(len(x)), len(x) - f)
    return x[list(min(subsets, key=lambda subset: distances[np.ix_(subset, subset)].max()))].mean(0)


NAIVE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda x, f: x.mean(0),
    "clip_mean": lambda x, f: clip(x).mean(0),
    "median": trimmed_mean,
    "trimmed_mean": trimmed_mean,
    "krum": lambda x, f: multi_krum(x, f, 1),
    "multi_krum": lambda x, f: multi_krum(x, f, len(x) - f),
    "geometric_median": geometric_median,
    "centered_clip": centered_clip,
    "mda": mda,
    "clip_nnm_trimmed_mean": lambda x, f: trimmed_mean(nearest_mixed(clip(x), f), f),
}


if __name__ == "__main__":
    main()
