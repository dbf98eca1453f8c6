"""Image sets' files as their pages describe them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar10(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(
        bytes([label]) + image.astype(np.uint8).tobytes() for image, label in zip(images, labels, strict=True)
    )


def write_mnist(
    folder: Path, images: np.ndarray, labels: np.ndarray, test_count: int, *, compress: bool = False
) -> None:
    folder.mkdir(parents=True)
    for part, chosen in (("train", slice(test_count, None)), ("t10k", slice(test_count))):
        for name, array in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            path = folder / f"{part}-{name}-ubyte"
            if compress:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))


def write_cifar10(folder: Path, images: np.ndarray, labels: np.ndarray, test_count: int) -> None:
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(cifar10(images[:test_count], labels[:test_count]))
    for number, chosen in enumerate(np.array_split(np.arange(test_count, len(images)), 5), 1):
        (folder / f"data_batch_{number}.bin").write_bytes(cifar10(images[chosen], labels[chosen]))


def digits_as_images(size: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 8x8 digits, each pixel nine times and a border around: uint8 [example, size, size]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    enlarged = np.kron(pixels.reshape(-1, 8, 8), np.ones((3, 3)))
    border = (size - 24) // 2
    return (np.pad(enlarged, ((0, 0), (border, border), (border, border))) * 15.9).astype(np.uint8), labels
