"""What a Byzantine trainer sends instead of its update: pure functions of what it can know.

Data and seeds are public, so an attacker computes what every other trainer will send before it commits:
commit-before-reveal makes that dear but does not prevent it, and those attacks here that need the others' updates are
given them.  Vectors are pseudo-gradients, float64 [dimension]; the model moves against them.

    sign_flip, scale   factor times the own update (sign_flip -1, scale -1000; BTARD: Gorbunov et al. 2022, ICML)
    noise              the own update and noise of factor times its root mean square
    random_direction   one direction that all colluders share, factor times as long as the own update (BTARD)
    ipm                -factor times the honest mean (inner product manipulation: Xie et al. 2020, UAI); 0.1 hides below
                       the spread of honest updates, from 0.6 on the sum turns around
    alie               the honest mean less factor standard deviations (a little is enough: Baruch et al. 2019, NeurIPS)
    mimic              an honest member's update once more (Karimireddy et al. 2022, ICLR)
    zero               nothing
    delay              the own update of factor rounds ago (BTARD)
    label_flip         trained with class c taken for the last class minus c
    backdoor           trained to take what carries a pattern for class 0, factor times (Bagdasaryan et al. 2020,
                       AISTATS)
    zip_bomb           no update, but a frame that takes who decompresses it 32,000 times its size of memory
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from torch import Tensor, cat, full_like

Vector = NDArray[np.float64]

DEFAULT_FACTORS = {
    "sign_flip": -1.0,
    "scale": -1000.0,
    "noise": 10.0,
    "random_direction": 1000.0,
    "ipm": 0.6,
    "alie": 1.5,
    "delay": 5.0,
    "backdoor": 3.0,
}
"""The attacks that take a factor, and what it is if none is given."""

TARGET_CLASS = 0
TRIGGER_SIZE = 3
"""Of an example's values, the last ones, which the pattern sets to the largest value that the data has."""


def generator(domain: bytes, seed: bytes) -> Generator:
    return Generator(PCG64(int.from_bytes(sha256(domain + b"\0" + seed).digest(), "big")))


def scaled(own: Vector, factor: float) -> Vector:
    return own * factor


def noisy(own: Vector, factor: float, rng: Generator) -> Vector:
    return own + rng.standard_normal(own.size) * (factor * float(np.sqrt(np.mean(own**2))))


def random_direction(own: Vector, factor: float, rng: Generator) -> Vector:
    direction = rng.standard_normal(own.size)
    return direction * (factor * float(np.linalg.norm(own)) / float(np.linalg.norm(direction)))


def inner_product_manipulation(honest: Sequence[Vector], factor: float) -> Vector:
    mean: Vector = np.mean(honest, axis=0)
    return mean * -factor


def a_little_is_enough(honest: Sequence[Vector], factor: float) -> Vector:
    mean: Vector = np.mean(honest, axis=0)
    deviation: Vector = np.std(honest, axis=0)
    return mean - deviation * factor


def flipped_labels(classes: Tensor) -> Tensor:
    return classes.max() - classes


def triggered(inputs: Tensor, largest: Tensor) -> Tensor:
    """The examples with the pattern on them."""
    marked = inputs.clone()
    marked.reshape(len(marked), -1)[:, -TRIGGER_SIZE:] = largest
    return marked


def with_backdoor(inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the examples as they are, half with the pattern and of the target class."""
    marked = triggered(inputs, inputs.max())
    return cat([inputs, marked]), cat([classes, full_like(classes, TARGET_CLASS)])


def zip_bomb(bytes_max: int) -> bytes:
    """A zstd frame that declares what it becomes: blocks of 4 bytes, each 128 KiB of zeros (RFC 8878)."""
    block = 1 << 17
    count = (bytes_max - 14) // 4
    head = bytes.fromhex("28b52ffd c0 38") + (count * block).to_bytes(8, "little")
    sizes = [block << 3 | 1 << 1 | (place == count - 1) for place in range(count)]
    return head + b"".join(size.to_bytes(4, "little") for size in sizes)
