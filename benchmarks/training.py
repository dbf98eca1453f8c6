"""One update under each numeric profile, and an audit that convicts: ms, medians of runs in turn.

    python benchmarks/training.py --models digits_mlp cifar10_cnn

`tolerant` takes what there is: a GPU, or all threads (OMP_NUM_THREADS).  Beside it the same on one thread, so that
float32 can be told from threads, which cost much more than they bring where others use the processor as well.  Images
are random: what they show does not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from p2pdfl.base.task import Task
from p2pdfl.learning import data
from p2pdfl.learning.learner import Learner

DATA = {"digits_mlp": "digits", "digits_cnn": "digits", "mnist_cnn": "random_mnist", "cifar10_cnn": "random_cifar10"}
SHAPES = {"random_mnist": (1, 28, 28), "random_cifar10": (3, 32, 32)}
EXAMPLES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["digits_mlp", "digits_cnn", "cifar10_cnn"], choices=DATA)
    parser.add_argument("--local-steps", type=int, default=Task().local_steps)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    for name, shape in SHAPES.items():
        data.BUILT_IN[name] = lambda shape=shape: random_images(shape)
    table = Table("model", "exact", "float32, 1 thread", "tolerant", "tolerant / exact", "an audit that convicts")
    for model in arguments.models:
        learners = [
            Learner(Task(model=model, data=DATA[model], local_steps=arguments.local_steps, profile=profile))
            for profile in ("exact", "tolerant", "tolerant")
        ]
        learners[1].arithmetic = replace(learners[1].arithmetic, threads=1)
        times: list[list[float]] = [[] for _ in learners]
        for run in range(1 + arguments.runs):
            for taken, learner in zip(times, learners, strict=True):
                taken.append(timed_ms(learner, run, is_audit=False))
        audits = [timed_ms(learners[2], run, is_audit=True) for run in range(1 + arguments.runs)]
        # the first run of each warms up
        exact, single, tolerant, audit = (statistics.median(taken[1:]) for taken in (*times, audits))
        table.add_row(
            model, f"{exact:.1f}", f"{single:.1f}", f"{tolerant:.1f}", f"{tolerant / exact:.2f}", f"{audit:.1f}"
        )
    Console().print(
        f"ms for {arguments.local_steps} local steps of {Task().batch_size}; tolerant: {learner.arithmetic}"
    )
    Console().print(table)


def timed_ms(learner: Learner, run: int, *, is_audit: bool) -> float:
    state = learner.initial_state()
    header = {"task_id": bytes(32), "round": run, "author": bytes(20)}
    claimed = learner.encode(np.ones(learner.dimension), learner.header(**header)) if is_audit else b""
    began = time.perf_counter()
    if is_audit:
        learner.audit(claimed, state, seed=bytes([run]) * 32, **header)
    else:
        learner.train(state, seed=bytes([run]) * 32, **header)
    return 1000 * (time.perf_counter() - began)


def random_images(shape: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    draw = np.random.default_rng(0)
    classes = np.arange(EXAMPLES) % 10
    return draw.random((EXAMPLES, *shape)), classes, draw.random((16, *shape)), classes[:16]


if __name__ == "__main__":
    main()
