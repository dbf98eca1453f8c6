"""What a head's `state` word stands for: the model's parameters and the outer optimizer's momentum.

The outer step takes an aggregated pseudo-gradient g for a gradient: momentum m <- mu m + g, parameters
p <- p - lr (g + mu m) (Nesterov; mu = 0 is plain).  Elementwise float64, multiplication and addition apart, so equal
on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.types import Digest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Both float64 [dimension], read-only, flat in the model's declared order."""

    parameters: NDArray[np.float64]
    momentum: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert self.parameters.ndim == 1
        assert self.parameters.shape == self.momentum.shape
        for name in ("parameters", "momentum"):
            frozen = np.ascontiguousarray(getattr(self, name), dtype=np.float64).view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)

    def to_bytes(self) -> bytes:
        """What its digest is the sha256 of."""
        return b"".join(part.astype("<f8", copy=False).tobytes() for part in (self.parameters, self.momentum))

    @classmethod
    def from_bytes(cls, data: bytes, dimension: int) -> Self:
        """Raises ValueError for another length."""
        values = np.frombuffer(data, dtype="<f8")
        if len(values) != 2 * dimension:
            raise ValueError("not as many numbers as the model has")
        return cls(parameters=values[:dimension], momentum=values[dimension:])

    def digest(self) -> Digest:
        """sha256 of the little-endian parameters, then momentum (DESIGN 4)."""
        digest = sha256(self.parameters.astype("<f8", copy=False).data)
        digest.update(self.momentum.astype("<f8", copy=False).data)
        return digest.digest()


def outer_step(state: State, gradient: NDArray[np.float64], *, learning_rate: float, momentum: float) -> State:
    if momentum == 0:
        return State(parameters=state.parameters - gradient * learning_rate, momentum=state.momentum)
    velocity = state.momentum * momentum + gradient
    step = gradient + velocity * momentum
    return State(parameters=state.parameters - step * learning_rate, momentum=velocity)
