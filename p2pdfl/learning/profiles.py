"""The numeric profiles: in what arithmetic a process trains (DESIGN 6, ADR 15).

    exact      float64, one thread, on the processor: the same bytes at every peer
    tolerant   float32, all threads, on a GPU where there is one: updates are compared by distance

Under both, what a round's updates come to is computed from their codes, the same at every peer (`aggregate`, `state`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2pdfl.base.task import Profile

_ALL_THREADS = torch.get_num_threads()
"""What torch takes by itself, OMP_NUM_THREADS if that is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    dtype: torch.dtype
    device: torch.device
    threads: int
    """Of the processor."""

    def __str__(self) -> str:
        kind = "float64" if self.dtype == torch.float64 else "float32"
        if self.device.type == "cuda":
            return f"{kind} on {torch.cuda.get_device_name(self.device)}"
        return f"{kind} on the processor, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def enter(self) -> None:
        """Bring this process, and the calling thread, to this arithmetic.

        Settings are torch's own and hold for the whole process.  Flushing of denormals is per thread, and torch's
        thread count has a per-thread part, so whoever computes calls this first; it takes microseconds.
        """
        torch.set_num_threads(self.threads)  # sums split over threads round differently
        torch.set_flush_denormal(False)
        # what use_deterministic_algorithms does too, but that imports torch's compiler: a second of each peer's start
        torch.set_deterministic_debug_mode("error" if self.threads == 1 and self.device.type == "cpu" else "default")
        # a GPU's TensorFloat-32, which convolutions take unless told not to, has 10 bits
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    def place(self, module: nn.Module) -> nn.Module:
        return module.to(self.device, self.dtype)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Numbers in this precision; tokens and classes stay integers."""
        tensor = torch.tensor(array)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)


def arithmetic(profile: Profile) -> Arithmetic:
    if profile == "exact":
        return Arithmetic(dtype=torch.float64, device=torch.device("cpu"), threads=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Arithmetic(dtype=torch.float32, device=device, threads=_ALL_THREADS)
