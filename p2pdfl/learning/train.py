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


def pseudo_gradient(
    module: nn.Module,
    start: NDArray[np.float64],
    inputs: Tensor,
    classes: Tensor,
    examples: NDArray[np.int64],
    *,
    seed: bytes,
    local_steps: int,
    batch_size: int,
    learning_rate: float,
) -> NDArray[np.float64]:
    """Float64 [dimension].  Trains `module` in place from `start`; batches are drawn with repetition from `examples`,
    which are indices into inputs and classes.

    Loss and parameters are float64 also where `module` is not: else near an optimum, where softmax rounds to 1 and
    steps to nothing beside the parameters, what float32 gives is mostly rounding.
    """
    models.load_flat(module, start)
    words = draw.stream(b"batches", seed)
    parameters = list(models.trained(module).values())
    masters = [master.to(inputs.device) for master in models.split_flat(module, start)]
    module.train()
    for _ in range(local_steps):
        batch = torch.from_numpy(examples[draw.indices(words, batch_size, len(examples))])
        loss = cross_entropy(module(inputs[batch]).double(), classes[batch])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, master, gradient in zip(parameters, masters, gradients, strict=True):
                if gradient is not None:
                    master.sub_(gradient.double() * learning_rate)
                    parameter.copy_(master)
    end: NDArray[np.float64] = np.concatenate([master.reshape(-1).cpu().numpy() for master in masters])
    return start - end


@torch.no_grad()
def accuracy(module: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    """The share of classes predicted right."""
    module.eval()
    right = 0
    for first in range(0, len(inputs), _EVALUATION_BATCH):
        batch = slice(first, first + _EVALUATION_BATCH)
        right += int((module(inputs[batch]).argmax(dim=1) == classes[batch]).sum())
    return right / classes.numel()
