"""All randomness of profile `exact`: raw words of numpy's PCG64, turned into numbers here.

PCG64's raw stream is the part of numpy.random that never changes between versions, nor between processors; its
distributions may, and `torch.randn` differs between instruction sets.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray


def stream(domain: bytes, seed: bytes) -> PCG64:
    """The stream of words that belongs to `seed` for one purpose."""
    return PCG64(int.from_bytes(sha256(b"p2pdfl/draw/1\0" + domain + b"\0" + seed).digest(), "big"))


def indices(words: PCG64, count: int, bound: int) -> NDArray[np.int64]:
    """`count` draws from 0..bound-1 with repetition; the modulo's bias is below bound / 2^64."""
    return (words.random_raw(count) % np.uint64(bound)).astype(np.int64)


def permutation(words: PCG64, count: int) -> NDArray[np.int64]:
    """The order in which `count` drawn words ascend."""
    return np.argsort(words.random_raw(count), kind="stable")


def uniform(words: PCG64, count: int, bound: float) -> NDArray[np.float64]:
    """`count` draws from [-bound, bound) in steps of bound / 2^52."""
    unit = (words.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (unit * 2.0 - 1.0) * bound
