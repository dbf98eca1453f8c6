"""Public training and test data, the same bytes at every peer, or the peer refuses to start."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import distribution
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.task import TaskError
from p2pdfl.base.types import Digest
from p2pdfl.learning import draw, images, sources
from p2pdfl.learning.resolve import call

DIGITS_FILE = "sklearn/datasets/data/digits.csv.gz"
DIGITS_TRAIN_COUNT = 1437
"""Of 1797; the other 360 are the test set."""


class DataError(TaskError):
    """The task's data function gives something else than it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Inputs: float64, or int64 (tokens), [example, ...].  Classes: int64 [example, ...], from 0."""

    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]

    def digest(self) -> Digest:
        digest = sha256(b"p2pdfl/data/1\0")
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{little.dtype.str}{little.shape}\0".encode())
            digest.update(little.reshape(-1).data)
        return digest.digest()

    @property
    def class_count(self) -> int:
        return 1 + max(int(self.y_train.max()), int(self.y_test.max()))


def load(name: str) -> Data:
    """Raises TaskError, or DataError when the function's arrays are unusable."""
    arrays = call("data", name, BUILT_IN)
    if not isinstance(arrays, tuple) or len(arrays) != 4:
        raise DataError(f"data: {name!r} must return the arrays x_train, y_train, x_test, y_test")
    x_train, y_train, x_test, y_test = (np.asarray(array) for array in arrays)
    data = Data(
        x_train=_inputs("x_train", x_train),
        y_train=_classes("y_train", y_train),
        x_test=_inputs("x_test", x_test),
        y_test=_classes("y_test", y_test),
    )
    if data.x_train.shape[1:] != data.x_test.shape[1:] or data.x_train.dtype != data.x_test.dtype:
        raise DataError("data: x_train and x_test differ in shape or kind")
    if len(data.x_train) != len(data.y_train) or len(data.x_test) != len(data.y_test):
        raise DataError("data: inputs and classes differ in number")
    return data


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """scikit-learn's copy of the UCI handwritten digits: 8x8 pixels in [0, 1], ten classes."""
    # what sklearn.datasets.load_digits reads; to import that costs each peer a second of its start
    table = np.loadtxt(str(distribution("scikit-learn").locate_file(DIGITS_FILE)), delimiter=",")
    pixels, classes = table[:, :-1], table[:, -1].astype(np.int64)
    order = draw.permutation(draw.stream(b"digits", b""), len(pixels))
    train, test = order[:DIGITS_TRAIN_COUNT], order[DIGITS_TRAIN_COUNT:]
    pixels = pixels / 16.0
    return pixels[train], classes[train], pixels[test], classes[test]


BUILT_IN: dict[str, Callable[[], Any]] = {
    "digits": digits,
    "stdlib": sources.stdlib,
    "mnist": images.mnist,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}
MODELS = {
    "digits": "digits_mlp",
    "stdlib": "char_transformer",
    "mnist": "mnist_cnn",
    "fashion_mnist": "mnist_cnn",
    "cifar10": "cifar10_cnn",
}
"""What the built-in data are for, unless the task says otherwise."""


def origin(name: str) -> str:
    """What a person should know about where this machine's data are from, if they differ from others'."""
    match name:
        case "stdlib":
            version = platform.python_version()
            return f"the data are the standard library of Python {version}: run exactly the publisher's version"
        case "mnist" | "fashion_mnist" | "cifar10":
            return f"the data are the files in {images.folder_of(name).absolute()}: take those of {images.PAGES[name]}"
        case _:
            return ""


def _inputs(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim < 1 or not len(array):
        raise DataError(f"data: {name} is empty")
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind != "f":
        raise DataError(f"data: {name} has type {array.dtype}, expected floats or integers")
    if not np.isfinite(array).all():
        raise DataError(f"data: {name} holds NaN or infinity")
    return array.astype(np.float64, copy=False)


def _classes(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    if array.ndim < 1 or not array.size:
        raise DataError(f"data: {name} is empty")
    if array.dtype.kind not in "iu" or int(array.min()) < 0:
        raise DataError(f"data: {name} must hold class numbers from 0")
    return array.astype(np.int64)
