import gzip
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from learning.image_files import cifar10, idx, write_cifar10, write_mnist
from p2pdfl.base.task import TaskError
from p2pdfl.learning import data, images
from p2pdfl.learning.images import BadImages, parse_cifar10, parse_idx, parse_labels

COUNT, TEST_COUNT = 9, 3
LABELS = np.arange(COUNT) % 10
CIFAR10_RECORD = 3073


def pictures(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (COUNT, *shape), dtype=np.uint8)


GREY, COLOURED = pictures(28, 28), pictures(3, 32, 32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(images.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


# --- what is there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_idx_files_give_one_channel_from_0_to_1(folder: Path, name: str, compress: bool) -> None:
    write_mnist(folder / name, GREY, LABELS, TEST_COUNT, compress=compress)
    loaded = data.load(name)
    assert loaded.x_train.shape == (COUNT - TEST_COUNT, 1, 28, 28)
    assert (loaded.x_train[:, 0] == GREY[TEST_COUNT:] / 255).all()
    assert (loaded.x_test[:, 0] == GREY[:TEST_COUNT] / 255).all()
    assert loaded.y_train.tolist() == LABELS[TEST_COUNT:].tolist()
    assert loaded.y_test.tolist() == LABELS[:TEST_COUNT].tolist()


@pytest.mark.parametrize("subfolder", ["", images.CIFAR10_SUBFOLDER])
def test_cifar10_files_give_three_channels(folder: Path, subfolder: str) -> None:
    write_cifar10(folder / "cifar10" / subfolder, COLOURED, LABELS, TEST_COUNT)
    loaded = data.load("cifar10")
    assert (loaded.x_train == COLOURED[TEST_COUNT:] / 255).all()
    assert (loaded.x_test == COLOURED[:TEST_COUNT] / 255).all()
    assert loaded.y_train.tolist() == LABELS[TEST_COUNT:].tolist()


def test_the_same_pictures_have_the_same_digest_in_whatever_files(folder: Path) -> None:
    write_mnist(folder / "mnist", GREY, LABELS, TEST_COUNT)
    write_mnist(folder / "fashion_mnist", GREY, LABELS, TEST_COUNT, compress=True)
    assert data.load("mnist").digest() == data.load("fashion_mnist").digest()


def test_without_the_variable_the_folder_is_data_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(folder / "data" / "mnist", GREY, LABELS, TEST_COUNT)
    monkeypatch.delenv(images.FOLDER_VARIABLE)
    monkeypatch.chdir(folder)
    assert len(data.load("mnist").x_train) == COUNT - TEST_COUNT


# --- what is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", images.PAGES)
def test_what_is_missing_is_named_with_where_to_get_it_and_put_it(folder: Path, name: str) -> None:
    with pytest.raises(TaskError) as refusal:
        data.load(name)
    told = str(refusal.value)
    assert told.startswith(f"data: {name}: ")
    assert images.PAGES[name] in told
    assert str(folder / name) in told
    assert images.FOLDER_VARIABLE in told
    assert ("data_batch_1.bin" in told) if name == "cifar10" else ("t10k-labels-idx1-ubyte" in told)


def test_only_what_is_missing_is_named(folder: Path) -> None:
    write_mnist(folder / "mnist", GREY, LABELS, TEST_COUNT)
    (folder / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(TaskError, match=r"^data: mnist: t10k-labels-idx1-ubyte\[\.gz\] missing in /"):
        data.load("mnist")


def set_count(count: int) -> Callable[[bytes], bytes]:
    return lambda file: file[:4] + count.to_bytes(4, "big") + file[8:]


def set_label(file: bytes) -> bytes:
    return file[:-1] + b"\x0a"


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("train-images-idx3-ubyte", lambda file: b"", "begins with nothing, not with 00000803"),
        ("train-images-idx3-ubyte", lambda file: b"\0\0\x0d" + file[3:], "begins with 00000d03, not with 00000803"),
        ("train-images-idx3-ubyte", gzip.compress, "begins with 1f8b08"),
        ("train-images-idx3-ubyte", lambda file: file[:11], "ends in its header"),
        ("train-images-idx3-ubyte", lambda file: file[:11] + b"\x1d" + file[12:], r"holds images of \[29, 28\]"),
        ("train-images-idx3-ubyte", lambda file: file[:-1], r"holds 6 examples, which are 4704 bytes, but has 4703"),
        ("train-images-idx3-ubyte", lambda file: file + b"\0", "but has more"),
        ("train-images-idx3-ubyte", set_count(0), "says that it holds 0 examples; 1 to 60000 were expected"),
        ("train-images-idx3-ubyte", set_count(2**32 - 1), "holds 4294967295 examples; 1 to 60000 were expected"),
        ("t10k-images-idx3-ubyte", set_count(10_001), "holds 10001 examples; 1 to 10000 were expected"),
        ("train-labels-idx1-ubyte", set_label, "has a label 10; there are 0 to 9"),
        ("train-labels-idx1-ubyte", lambda file: idx(LABELS[:5]), "has 5 labels, but there are 6 images"),
        ("train-labels-idx1-ubyte", lambda file: idx(GREY), "begins with 00000803, not with 00000801"),
    ],
)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_idx__reject__malformed(
    folder: Path, file: str, damage: Callable[[bytes], bytes], reason: str, compress: bool
) -> None:
    write_mnist(folder / "mnist", GREY, LABELS, TEST_COUNT)
    path = folder / "mnist" / file
    damaged = damage(path.read_bytes())
    if compress:
        path.unlink()
        path = path.with_name(f"{file}.gz")
        damaged = gzip.compress(damaged)
    path.write_bytes(damaged)
    with pytest.raises(TaskError, match=rf"^data: .*{path.name}: .*{reason}"):
        data.load("mnist")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:-9],
        lambda file: file[:40],
        lambda file: file[:-8] + bytes(8),
        lambda file: b"not gzip",
        lambda file: file[:20] + bytes(20) + file[40:],
    ],
    ids=["truncated", "cut short", "wrong checksum", "no gzip", "damaged"],
)
def test_gz__reject__malformed(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(folder / "mnist", GREY, LABELS, TEST_COUNT, compress=True)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TaskError, match=rf"^data: .*{path.name}: "):
        data.load("mnist")


def test_gz__reject__a_bomb_without_unpacking_it(folder: Path) -> None:
    write_mnist(folder / "mnist", GREY, LABELS, TEST_COUNT, compress=True)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(GREY[TEST_COUNT:]) + bytes(2**26), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(TaskError, match="has more"):
            data.load("mnist")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: b"", "has 0 bytes; expected were 1 to 10000 records of 3073 bytes"),
        (lambda file: file[:-1], "has 3072 bytes"),
        (lambda file: file + b"\0", "has 3074 bytes"),
        (lambda file: b"\x0a" + file[1:], "has a label 10; there are 0 to 9"),
        (lambda file: bytes(10_001 * CIFAR10_RECORD), "has more; expected were 1 to 10000 records"),
    ],
)
def test_cifar10__reject__malformed(folder: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    write_cifar10(folder / "cifar10", COLOURED, LABELS, TEST_COUNT)
    path = folder / "cifar10" / "data_batch_4.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TaskError, match=rf"^data: .*data_batch_4.bin: {reason}"):
        data.load("cifar10")


# --- any bytes -----------------------------------------------------------------------------------------------------

idx_files = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda begin, sizes, values: begin + b"".join(size.to_bytes(4, "big") for size in sizes) + values,
        st.sampled_from([b"\0\0\x08\1", b"\0\0\x08\3", b"\0\0\x08\4"]),
        st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]), max_size=4),
        st.binary(max_size=60),
    ),
)


@given(idx_files)
def test_any_bytes_are_images_of_the_shape_or_refused(file: bytes) -> None:
    try:
        parsed = parse_idx(BytesIO(file), count_max=3, shape=(2, 3))
    except BadImages:
        return
    assert parsed.shape[1:] == (2, 3)
    assert idx(parsed) == file


@given(idx_files)
def test_any_bytes_are_labels_or_refused(file: bytes) -> None:
    try:
        parsed = parse_labels(BytesIO(file), count_max=3)
    except BadImages:
        return
    assert parsed.max() <= 9
    assert idx(parsed) == file


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(2), st.just(3))))
def test_idx_comes_back_as_it_was(pixels: np.ndarray) -> None:
    assert (parse_idx(BytesIO(idx(pixels)), count_max=3, shape=(2, 3)) == pixels).all()


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=3), st.integers(-2, 2))
def test_any_records_are_cifar10_or_refused(records: list[tuple[int, int]], off: int) -> None:
    file = b"".join(bytes([label]) + bytes([pixel]) * (CIFAR10_RECORD - 1) for label, pixel in records)
    file = file[:off] if off < 0 else file + bytes(off)
    try:
        pixels, labels = parse_cifar10(BytesIO(file))
    except BadImages:
        return
    assert cifar10(pixels, labels) == file
    assert labels.max() <= 9


@given(st.binary(max_size=80))
def test_any_bytes_as_gz_are_refused_in_words(tmp_path_factory: pytest.TempPathFactory, file: bytes) -> None:
    path = tmp_path_factory.mktemp("gz") / "train-labels-idx1-ubyte.gz"
    path.write_bytes(b"\x1f\x8b\x08" + file)
    with pytest.raises(TaskError):
        images._parsed(path, lambda opened: parse_labels(opened, count_max=3))
