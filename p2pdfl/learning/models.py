"""Models whose training anyone can replay: float64, weights from PCG64, nothing hidden between rounds.

A module's own random weights come from torch, whose generator differs between instruction sets.  So it is built under
two seeds: what agrees is constant by intent (ones, zeros, weights shipped with the task) and stays, the rest is drawn
again from PCG64, uniform with bound 1 / sqrt(fan-in) as in torch's linear and convolution layers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.random import PCG64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from p2pdfl.base import params
from p2pdfl.base.task import TaskError
from p2pdfl.learning import draw
from p2pdfl.learning.networks import BUILT_IN
from p2pdfl.learning.quantize import INT8
from p2pdfl.learning.resolve import call


class ModelError(TaskError):
    """The task's model cannot be trained so that others can replay it."""


def build(name: str, seed: int) -> nn.Module:
    """The module with its initial weights.  Raises TaskError, or ModelError if it cannot be replayed."""
    module, other = _built(name, 1), _built(name, 2)
    _refuse_known_layers(module)
    _refuse_unshared_constants(module, other)
    words = draw.stream(b"initial weights", seed.to_bytes(8, "big"))
    theirs = trained(other)
    for path, parameter in trained(module).items():
        if not torch.equal(parameter, theirs[path]):
            _draw_again(module, path, parameter, words)
    return module


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, in declared order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def flatten(module: nn.Module) -> NDArray[np.float64]:
    return np.concatenate([parameter.detach().reshape(-1).numpy() for parameter in trained(module).values()])


def split_flat(module: nn.Module, vector: NDArray[np.float64]) -> list[Tensor]:
    """Copies in the parameters' shapes."""
    parts, start = [], 0
    for parameter in trained(module).values():
        end = start + parameter.numel()
        parts.append(torch.tensor(vector[start:end]).reshape(parameter.shape))
        start = end
    assert start == vector.size
    return parts


def load_flat(module: nn.Module, vector: NDArray[np.float64]) -> None:
    with torch.no_grad():
        for parameter, part in zip(trained(module).values(), split_flat(module, vector), strict=True):
            parameter.copy_(part)


def check_replayable(module: nn.Module, inputs: Tensor, classes: Tensor, class_count: int) -> None:
    """Try a training step on a few examples, twice.  Raises ModelError if that shows a model unfit for replay."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train()
    with torch.random.fork_rng(devices=[]):
        outputs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            try:
                outputs.append(module(inputs))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ModelError(f"model: does not take the task's data: {error}") from error
    first, second = outputs
    dtype = next(iter(trained(module).values())).dtype
    if not isinstance(first, Tensor) or first.ndim < 2 or len(first) != len(inputs) or first.dtype != dtype:
        kind = "float64" if dtype == torch.float64 else "float32"
        raise ModelError(f"model: must give a {kind} tensor [example, class, ...] where its parameters are {kind}")
    if first.shape[1] < class_count:
        raise ModelError(f"model: gives {first.shape[1]} classes, the data has {class_count}")
    if not first.requires_grad:
        raise ModelError("model: its output does not depend on its parameters")
    if not torch.equal(first, second):
        raise ModelError("model: two passes differ; random layers cannot be replayed")
    try:
        torch.autograd.grad(cross_entropy(first, classes), list(trained(module).values()), allow_unused=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"model: cannot be trained on the task's data: {error}") from error
    if any(not torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers()):
        raise ModelError("model: a pass changes a buffer; only parameters travel between rounds")


def refuse_discontinuous(module: nn.Module) -> None:
    """Layers whose output or gradient jumps, under profile `tolerant`.  Raises ModelError."""
    for name, layer in module.named_modules():
        if isinstance(layer, _DISCONTINUOUS):
            raise ModelError(
                f"model: layer {name!r} ({type(layer).__name__}) jumps where machines round differently, which "
                "profile tolerant refuses; use AvgPool or a smooth activation, or profile exact"
            )


_DISCONTINUOUS = (
    # the gradient goes to whichever is largest: measured 4 % apart after 100 steps on two threads
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.Hardshrink,
    nn.Threshold,
)


def _built(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = call("model", name, BUILT_IN)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model: {name!r} must return a torch.nn.Module")
    module = module.cpu().double()
    parameters = trained(module)
    if not parameters:
        raise ModelError(f"model: {name!r} has no parameters to train")
    if any(parameter.dtype != torch.float64 for parameter in parameters.values()):
        raise ModelError(f"model: {name!r} has parameters that are not real numbers")
    dimension = sum(parameter.numel() for parameter in parameters.values())
    if dimension == 0 or INT8.update_bytes(dimension) > params.UPDATE_BYTES_MAX:
        raise ModelError(f"model: {name!r} has {dimension} parameters; an update would exceed UPDATE_BYTES_MAX")
    return module


def _refuse_known_layers(module: nn.Module) -> None:
    """`check_replayable` finds these by running them; here they get their name."""
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ModelError(f"model: layer {name!r} ({kind}) is random; set its p to 0 or leave it out")
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
            raise ModelError(f"model: layer {name!r} ({kind}) keeps running statistics; use GroupNorm or LayerNorm")


def _refuse_unshared_constants(module: nn.Module, other: nn.Module) -> None:
    """What is not trained must be the same at every peer as the function builds it."""

    def constants(built: nn.Module) -> dict[str, Tensor]:
        frozen = {name: parameter for name, parameter in built.named_parameters() if not parameter.requires_grad}
        return frozen | dict(built.named_buffers())

    if list(trained(module)) != list(trained(other)):
        raise ModelError("model: its function builds another model each time")
    theirs = constants(other)
    for name, value in constants(module).items():
        if name not in theirs or not torch.equal(value, theirs[name]):
            raise ModelError(f"model: {name!r} is random and not trained, so peers would not share it")


def _draw_again(module: nn.Module, path: str, parameter: nn.Parameter, words: PCG64) -> None:
    # a bias takes the fan-in of the weight beside it
    layer = module.get_submodule(path.rpartition(".")[0])
    sibling = getattr(layer, "weight", None)
    fan_in_of = parameter if parameter.ndim >= 2 or not isinstance(sibling, Tensor) else sibling
    fan_in = math.prod(fan_in_of.shape[1:]) if fan_in_of.ndim >= 2 else fan_in_of.numel()
    drawn = draw.uniform(words, parameter.numel(), 1.0 / math.sqrt(fan_in))
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(drawn).reshape(parameter.shape))
