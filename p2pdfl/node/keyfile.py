"""The one secret that a peer keeps: its seed, as 64 hex digits in a file that only its owner can read."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from pathlib import Path

from p2pdfl.base.types import Entropy
from p2pdfl.crypto.keys import SEED_BYTES, Keys, derive

_TEXT_BYTES = 2 * SEED_BYTES + 1
"""Hex digits and a newline."""


class KeyFileError(Exception):
    """A key file that must not be used, said in words that name the file and the way out."""


def load_or_create(path: Path, entropy: Entropy) -> Keys:
    """The keys of the seed in `path`; a missing file is made, with a fresh seed.  Raises KeyFileError."""
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    try:
        _create(path, entropy(SEED_BYTES))
    except FileExistsError:
        pass  # another process was faster: use its seed, or say what stands in the way
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be created: {error.strerror}") from None
    try:
        return _load(path)
    except FileNotFoundError:
        raise KeyFileError(f"{path}: was removed while it was read") from None


def _load(path: Path) -> Keys:
    """Raises FileNotFoundError, KeyFileError."""
    # ATTACK: a link or pipe put in the key's place.  O_NOFOLLOW refuses the one, O_NONBLOCK does not hang on the other.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(f"{path}: is a symbolic link; name the file itself") from None
        raise KeyFileError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path}: is not a regular file")
        if status.st_uid != os.geteuid():
            raise KeyFileError(f"{path}: belongs to another user")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(f"{path}: is open to others; run `chmod 600 {shlex.quote(str(path))}`")
        text = os.read(descriptor, _TEXT_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return derive(_parse(path, text))


def _parse(path: Path, text: bytes) -> bytes:
    digits = text.removesuffix(b"\n")
    # bytes.fromhex would skip white space
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}" % (2 * SEED_BYTES), digits):
        raise KeyFileError(
            f"{path}: is not a key of {2 * SEED_BYTES} hex digits; restore it, or remove it for a new one"
        )
    return bytes.fromhex(digits.decode("ascii"))


def _create(path: Path, seed: bytes) -> None:
    """Raises OSError; FileExistsError for anything in the way, a dangling link too."""
    assert len(seed) == SEED_BYTES
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        # The umask can only have taken bits away; without the owner's own the next start could not read it.
        os.fchmod(descriptor, 0o600)
        file.write(seed.hex().encode() + b"\n")
        file.flush()
        os.fsync(descriptor)
    # A deposit will hang on this key: the directory entry must survive a crash as well.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
