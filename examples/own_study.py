"""A study of an own model on own data:  python examples/own_study.py

Two moons of points, a small network; four attacks, three rules, with and without audits.  Run it again and it goes on
where it was; runs/own-moons/ has results.csv and accuracy.png.
"""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from p2pdfl.base.task import Task
from p2pdfl.study import Attack, Study, run
from p2pdfl.study.results import report


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test: the same at every peer, so it draws from a fixed seed."""
    rng = np.random.Generator(np.random.PCG64(1))
    angles, classes = rng.uniform(0, np.pi, 1200), np.arange(1200) % 2
    moons = np.stack([np.cos(angles) + classes, np.sin(angles) * (1 - 2 * classes) + classes / 2], axis=1)
    points = moons + rng.normal(0, 0.15, moons.shape)
    return points[:1000], classes[:1000], points[1000:], classes[1000:]


STUDY = Study(
    name="own-moons",
    peers=7,
    byzantine=3,
    seeds=(0, 1),
    rules=("clip_nnm_trimmed_mean", "krum", "mean"),
    audits=(0.0, 0.5),
    attacks=(
        Attack(behaviour="sign_flip"),
        Attack(behaviour="ipm"),
        Attack(behaviour="label_flip"),
        Attack(behaviour="scale", every=2),
    ),
    task=Task(model="own_study:model", data="own_study:data", training_rounds=12, local_steps=10),
)

if __name__ == "__main__":
    try:
        rows = run(STUDY, Path("runs/own-moons"), processes=2, on_row=lambda row, done, total: print(done, "of", total))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    Console().print(report(STUDY, rows))
