"""A state on disk: safetensors under the model's parameter names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from p2pdfl.learning.state import State

_MOMENTUM = "outer_momentum/"
"""Prefix of the momentum's tensors; parameters keep their own names, so that torch loads the file as it is."""


class StateError(ValueError):
    """A checkpoint that cannot be read or written, or that belongs to another model."""


def save(path: Path, state: State, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file with the model's names; whoever reads `path` sees the old file or the whole new one."""
    tensors = _named(state.parameters, shapes, "") | _named(state.momentum, shapes, _MOMENTUM)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as directory:
        written = Path(directory) / path.name
        try:
            save_file(tensors, written, metadata={"format": "pt"})
        except SafetensorError as error:
            raise StateError(f"{path}: not written: {error}") from None
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)


def load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Raises StateError."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, AttributeError, KeyError, ValueError, TypeError) as error:
        # AttributeError: of types that numpy has not, as 8-bit floats
        raise StateError(f"{path}: not readable as safetensors: {error}") from None
    expected = {prefix + name: shape for prefix in ("", _MOMENTUM) for name, shape in shapes.items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise StateError(f"{path}: its tensors are not those of the task's model")
    if any(tensor.dtype != np.float64 for tensor in tensors.values()):
        raise StateError(f"{path}: its tensors are not float64")
    return State(parameters=_flat(tensors, shapes, ""), momentum=_flat(tensors, shapes, _MOMENTUM))


def _named(
    vector: NDArray[np.float64], shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, NDArray[np.float64]]:
    tensors, start = {}, 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape, dtype=np.int64))
        tensors[prefix + name] = vector[start:end].reshape(shape)
        start = end
    assert start == vector.size
    return tensors


def _flat(
    tensors: Mapping[str, NDArray[np.float64]], shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> NDArray[np.float64]:
    return np.concatenate([tensors[prefix + name].reshape(-1) for name in shapes])
