"""Local training: plain SGD on batches that a public seed picks from the public training set.

A pseudo-gradient is parameters before minus after (Reddi et al. 2021, ICLR); it follows from parameters, data and seed
alone, which is what an audit replays (DESIGN 3.2).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from p2pdfl.learning import draw, models

_EVALUATION_BATCH = 1024


def exact_arithmetic() -> None:
    """Bring this process, and the calling thread, to the one arithmetic of profile `exact`.

    Settings are torch's own and hold for the whole process: one thread (sums split over threads round differently),
    deterministic kernels, no reduced precision.  Flushing of denormals is per thread, and torch's thread count has
    a per-thread part, so whoever computes calls this first; it takes microseconds.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")


def pseudo_gradient(
    module: nn.Module,
    inputs: Tensor,
    classes: Tensor,
    examples: NDArray[np.int64],
    *,
    seed: bytes,
    local_steps: int,
    batch_size: int,
    learning_rate: float,
) -> NDArray[np.float64]:
    """Float64 [dimension].  Trains `module` in place; batches are drawn with repetition from `examples`, which are
    indices into inputs and classes."""
    before = models.flatten(module)
    words = draw.stream(b"batches", seed)
    parameters = list(models.trained(module).values())
    module.train()
    for _ in range(local_steps):
        batch = torch.from_numpy(examples[draw.indices(words, batch_size, len(examples))])
        loss = cross_entropy(module(inputs[batch]), classes[batch])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient * learning_rate)
    return before - models.flatten(module)


@torch.no_grad()
def accuracy(module: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    """The share of classes predicted right."""
    module.eval()
    right = 0
    for first in range(0, len(inputs), _EVALUATION_BATCH):
        batch = slice(first, first + _EVALUATION_BATCH)
        right += int((module(inputs[batch]).argmax(dim=1) == classes[batch]).sum())
    return right / classes.numel()
