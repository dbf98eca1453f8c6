"""The default rule bit for bit, beside torch's mean that promises nothing: medians over a few runs on one thread.

Every column starts from quantized updates, so decoding counts.

    python benchmarks/aggregate.py --updates 16 --dimensions 17226 1000000

Start it with OPENBLAS_NUM_THREADS=1 to keep numpy's matrix products to one thread as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from p2pdfl.learning.aggregate import aggregate, gram
from p2pdfl.learning.quantize import Header, encode, parse


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[17_226, 1_000_000])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "updates", "dimension", "torch mean", "exact mean", "gram", "clip, NNM, trimmed mean", title="ms, median"
    )
    for dimension in arguments.dimensions:
        for count in arguments.updates:
            timings = measure(count, dimension, arguments.runs)
            table.add_row(str(count), str(dimension), *(f"{timing:.2f}" for timing in timings))
    Console().print(table)


def measure(count: int, dimension: int, runs: int) -> list[float]:
    header = Header(task_id=bytes(32), round=0, author=bytes(20), dimension=dimension)
    draw = np.random.default_rng(0)
    common = draw.standard_normal(dimension)
    updates = [parse(encode(common + draw.standard_normal(dimension), header), header) for _ in range(count)]

    def torch_mean() -> NDArray[np.float64]:
        return torch.stack([torch.from_numpy(update.values()) for update in updates]).mean(0).numpy()

    work: list[Callable[[], object]] = [
        torch_mean,
        lambda: aggregate("mean", updates),
        lambda: gram(updates),
        lambda: aggregate("clip_nnm_trimmed_mean", updates),
    ]
    return [median_ms(call, runs) for call in work]


def median_ms(call: Callable[[], object], runs: int) -> float:
    timings = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        timings.append((time.perf_counter() - started) * 1e3)
    return statistics.median(timings)


if __name__ == "__main__":
    main()
