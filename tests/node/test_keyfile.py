"""A key file is made for its owner alone, and anything else in its place is refused."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from p2pdfl.crypto.keys import derive
from p2pdfl.node.keyfile import KeyFileError, load_or_create

SEED = bytes(range(32))


def entropy(length: int) -> bytes:
    assert length == 32
    return SEED


def no_entropy(length: int) -> bytes:
    raise AssertionError("an existing key must be used")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer" / "key"


@pytest.fixture
def key(path: Path) -> Path:
    load_or_create(path, entropy)
    return path


def test_a_missing_file_is_made_and_found_again(path: Path) -> None:
    assert load_or_create(path, entropy) == derive(SEED)
    assert load_or_create(path, no_entropy) == derive(SEED)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277], ids=oct)
def test_a_new_file_has_mode_600_under_any_umask(path: Path, umask: int) -> None:
    path.parent.mkdir()
    before = os.umask(umask)
    try:
        load_or_create(path, entropy)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777], ids=oct)
def test_a_file_open_to_others_is_refused_with_the_repair(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=re.escape(f"run `chmod 600 {key}`")):
        load_or_create(key, no_entropy)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_another_users_file_is_refused(key: Path) -> None:
    os.chown(key, 65534, -1)
    with pytest.raises(KeyFileError, match="belongs to another user"):
        load_or_create(key, no_entropy)


def test_the_repair_repairs(key: Path) -> None:
    key.chmod(0o644)
    key.chmod(0o600)
    assert load_or_create(key, no_entropy) == derive(SEED)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        SEED.hex().encode()[:-2],
        SEED.hex().encode() + b"00",
        SEED.hex().encode() + b"\n\n",
        SEED,
        b"zz" + SEED.hex().encode()[2:],
        b"  " + SEED.hex().encode()[2:],
        "é".encode() * 32,
    ],
    ids=["empty", "newline", "short", "long", "two lines", "raw", "no hex", "blanks", "not ASCII"],
)
def test_other_contents_are_refused_and_kept(key: Path, text: bytes) -> None:
    key.write_bytes(text)
    with pytest.raises(KeyFileError, match="64 hex digits"):
        load_or_create(key, no_entropy)
    assert key.read_bytes() == text


def test_a_missing_newline_is_forgiven(key: Path) -> None:
    key.write_bytes(SEED.hex().encode())
    assert load_or_create(key, no_entropy) == derive(SEED)


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_or_create(path, no_entropy)


def test_a_pipe_is_refused_without_waiting_for_a_writer(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_or_create(path, no_entropy)


def test_a_link_is_refused(key: Path) -> None:
    link = key.with_name("link")
    link.symlink_to(key)
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_or_create(link, no_entropy)


def test_a_dangling_link_is_refused_and_its_target_not_made(path: Path) -> None:
    path.parent.mkdir()
    target = path.with_name("target")
    path.symlink_to(target)
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_or_create(path, no_entropy)
    assert not target.exists()


def test_a_file_as_parent_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot be opened"):
        load_or_create(tmp_path / "file" / "key", no_entropy)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o500)
    with pytest.raises(KeyFileError, match="cannot be created"):
        load_or_create(path, entropy)


def test_the_error_does_not_show_the_contents(key: Path) -> None:
    key.write_bytes(b"5ec7e7" * 10)
    with pytest.raises(KeyFileError) as refused:
        load_or_create(key, no_entropy)
    assert "5ec7e7" not in str(refused.value)
