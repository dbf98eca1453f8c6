"""Image sets from files that the user has: MNIST and Fashion-MNIST in the IDX format, CIFAR-10 in its binary format.

IDX (LeCun, Cortes & Burges): two zero bytes, 8 for unsigned bytes, the number of dimensions; each dimension in 4 bytes,
big endian; the values.  CIFAR-10 (Krizhevsky 2009): records of one byte of class and 3072 of red, green and blue.

A set may be cut to fewer examples, but none has more than the original: so neither a header nor a compressed file can
make this read and keep more than that.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.task import TaskError

FOLDER_VARIABLE = "P2PDFL_DATA"
FOLDER_DEFAULT = "data"
CLASS_COUNT = 10

MNIST_SHAPE = (28, 28)
MNIST_PARTS = {"train": 60_000, "t10k": 10_000}
"""Name in the files' names -> examples."""

CIFAR10_SHAPE = (3, 32, 32)
CIFAR10_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST_FILES = ("test_batch.bin",)
CIFAR10_FILE_EXAMPLES = 10_000
CIFAR10_SUBFOLDER = "cifar-10-batches-bin"
"""That the set's archive unpacks to."""

PAGES = {
    "mnist": "http://yann.lecun.com/exdb/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html (the binary version, unpacked)",
}

_IDX_UNSIGNED_BYTES = b"\0\0\x08"
_T = TypeVar("_T")
_Half = tuple[NDArray[np.float64], NDArray[np.int64]]


class BadImages(ValueError):
    """A file that is not what its name says."""


def mnist() -> tuple[NDArray[Any], ...]:
    """70 000 handwritten digits, 28x28 in one channel (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE)."""
    return _idx_set("mnist")


def fashion_mnist() -> tuple[NDArray[Any], ...]:
    """70 000 articles of clothing in MNIST's shape (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747)."""
    return _idx_set("fashion_mnist")


def cifar10() -> tuple[NDArray[Any], ...]:
    """60 000 photographs of ten kinds of things, 32x32 in three channels (Krizhevsky 2009)."""
    folder = folder_of("cifar10")
    if (folder / CIFAR10_SUBFOLDER).is_dir():
        folder /= CIFAR10_SUBFOLDER
    _refuse_missing("cifar10", [folder / name for name in CIFAR10_TRAIN_FILES + CIFAR10_TEST_FILES])
    return *_cifar10_half(folder, CIFAR10_TRAIN_FILES), *_cifar10_half(folder, CIFAR10_TEST_FILES)


def folder_of(name: str) -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER_DEFAULT) / name


def parse_idx(file: BinaryIO, *, count_max: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 [example, *shape].  Reads as many values as the header says, and one more.  Raises BadImages."""
    magic = _IDX_UNSIGNED_BYTES + bytes([1 + len(shape)])
    begin, dimensions = file.read(len(magic)), file.read(4 * (1 + len(shape)))
    if begin != magic:
        raise BadImages(f"begins with {begin.hex() or 'nothing'}, not with {magic.hex()}")
    if len(dimensions) < 4 * (1 + len(shape)):
        raise BadImages("ends in its header")
    count, *given = np.frombuffer(dimensions, dtype=">u4").tolist()
    if tuple(given) != shape:
        raise BadImages(f"holds images of {given}, not of {list(shape)}")
    if not 1 <= count <= count_max:
        raise BadImages(f"says that it holds {count} examples; 1 to {count_max} were expected")
    size = count * math.prod(shape)
    values = file.read(size + 1)
    if len(values) != size:
        had = f"has {len(values)}" if len(values) < size else "has more"
        raise BadImages(f"says that it holds {count} examples, which are {size} bytes, but {had}")
    return np.frombuffer(values, dtype=np.uint8).reshape(count, *shape)


def parse_labels(file: BinaryIO, *, count_max: int) -> NDArray[np.int64]:
    """From IDX, int64 [example].  Raises BadImages."""
    return _classes(parse_idx(file, count_max=count_max, shape=()))


def parse_cifar10(file: BinaryIO) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 [example, channel, height, width], int64 [example].  Raises BadImages."""
    record = 1 + math.prod(CIFAR10_SHAPE)
    size_max = CIFAR10_FILE_EXAMPLES * record
    values = file.read(size_max + 1)
    if not values or len(values) % record or len(values) > size_max:
        had = f"{len(values)} bytes" if len(values) <= size_max else "more"
        raise BadImages(f"has {had}; expected were 1 to {CIFAR10_FILE_EXAMPLES} records of {record} bytes")
    records = np.frombuffer(values, dtype=np.uint8).reshape(-1, record)
    return records[:, 1:].reshape(-1, *CIFAR10_SHAPE), _classes(records[:, 0])


def _idx_set(name: str) -> tuple[NDArray[Any], ...]:
    folder = folder_of(name)
    paths = {
        part: (_plain_or_gz(folder / f"{part}-images-idx3-ubyte"), _plain_or_gz(folder / f"{part}-labels-idx1-ubyte"))
        for part in MNIST_PARTS
    }
    _refuse_missing(name, [path for both in paths.values() for path in both])
    train, test = (_idx_half(*paths[part], count_max) for part, count_max in MNIST_PARTS.items())
    return *train, *test


def _plain_or_gz(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _idx_half(images_path: Path, labels_path: Path, count_max: int) -> _Half:
    images = _parsed(images_path, lambda file: parse_idx(file, count_max=count_max, shape=MNIST_SHAPE))
    labels = _parsed(labels_path, lambda file: parse_labels(file, count_max=count_max))
    if len(images) != len(labels):
        raise TaskError(f"data: {labels_path}: has {len(labels)} labels, but there are {len(images)} images")
    return _scaled(images[:, np.newaxis]), labels


def _cifar10_half(folder: Path, names: tuple[str, ...]) -> _Half:
    parts = [_parsed(folder / name, parse_cifar10) for name in names]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _scaled(images), labels


def _parsed(path: Path, parse: Callable[[BinaryIO], _T]) -> _T:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return parse(cast("BinaryIO", file))
    except (BadImages, OSError, EOFError, zlib.error) as error:
        raise TaskError(f"data: {path}: {error}") from error


def _scaled(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.divide(images, 255.0, dtype=np.float64)


def _classes(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    if values.max() >= CLASS_COUNT:
        raise BadImages(f"has a label {values.max()}; there are 0 to {CLASS_COUNT - 1}")
    return values.astype(np.int64)


def _refuse_missing(name: str, paths: list[Path]) -> None:
    missing = [path.name.replace(".gz", "[.gz]") for path in paths if not path.is_file()]
    if missing:
        raise TaskError(
            f"data: {name}: {', '.join(missing)} missing in {paths[0].parent.absolute()}; get the files from "
            f"{PAGES[name]} and put them there, or say with {FOLDER_VARIABLE} which folder has {name}/"
        )
