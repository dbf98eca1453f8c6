"""A run's directory, read as what it is: from outside.

Sizes are bounded before anything is read, no name in a file becomes a path unless it is a digest, and whatever cannot
be read is a BadFile in words.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2pdfl.base import params
from p2pdfl.base.bounded_json import loads
from p2pdfl.base.codec import Malformed, decode
from p2pdfl.base.config_file import explain
from p2pdfl.base.task import HexDigest
from p2pdfl.base.types import Digest, Epoch, Head, MemberIndex, Round, View, Wire

INDEX_BYTES_MAX = 16 << 20
"""Of rounds/NNNNNN.json; about 130 bytes for each packet of the round."""
RECORD_BYTES_MAX = 64 << 20
"""Of chain.json and summary.json."""
_CHUNK_BYTES = 1 << 20

W = TypeVar("W", bound=Wire)


class Unusable(Exception):
    """There is no finished run here to check."""


class BadFile(Exception):
    """A file that is missing, or is not what it has to be."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeadEntry(_Table):
    task: HexDigest
    epoch: Annotated[Epoch, Field(strict=True)]
    round: Annotated[Round, Field(strict=True)]
    parent: HexDigest
    contents: HexDigest
    state: HexDigest
    next_members: HexDigest
    chain_block: HexDigest


class PacketEntry(_Table):
    kind: str
    round: Annotated[Round, Field(strict=True)]
    view: Annotated[View, Field(strict=True)]
    digest: HexDigest


class UpdateIndexEntry(_Table):
    member: Annotated[MemberIndex, Field(strict=True)]
    digest: HexDigest
    held: bool


class RoundIndex(_Table):
    """As `store` writes it."""

    round: Annotated[Round, Field(strict=True)]
    head: HeadEntry
    contents: HexDigest
    certificate: HexDigest
    packets: tuple[PacketEntry, ...]
    updates: tuple[UpdateIndexEntry, ...]

    def head_words(self) -> Head:
        return Head(**self.head.model_dump())


class Transcript:
    """rounds/ and blobs/ as `store.export_transcript` writes them."""

    def __init__(self, directory: Path) -> None:
        """Raises Unusable."""
        self._rounds, self._blobs = directory / "rounds", directory / "blobs"
        for part in (self._rounds, self._blobs):
            if not part.is_dir():
                raise Unusable(f"{part}: no such directory; a finished run has one")
        self._seen: set[Digest] = set()
        """Blobs that were read, 32 bytes for each."""

    def index(self, round: int) -> RoundIndex:
        """Raises BadFile."""
        name = f"{round:06}.json"
        fields = read_json(self._rounds / name, INDEX_BYTES_MAX)
        try:
            index = RoundIndex.model_validate(fields)
        except ValidationError as error:
            raise BadFile(f"rounds/{name}: {explain(error)}") from None
        if index.round != round:
            raise BadFile(f"rounds/{name}: says that it is round {index.round}")
        return index

    def stray_rounds(self, total_rounds: int) -> Iterator[str]:
        """Names in rounds/ that are none of the task's rounds."""
        for path in self._rounds.iterdir():
            match = re.fullmatch(r"([0-9]{6,9})\.json", path.name)
            if not match or f"{int(match[1]):06}.json" != path.name or int(match[1]) >= total_rounds:
                yield path.name

    def wire(self, kind: type[W], digest: Digest, bytes_max: int = params.PACKET_BYTES_MAX) -> W:
        """Raises BadFile."""
        data = self.blob(digest, bytes_max)
        try:
            return decode(kind, data, bytes_max=bytes_max)
        except Malformed as error:
            raise BadFile(f"blob {digest.hex()}: {error}") from None

    def blob(self, digest: Digest, bytes_max: int) -> bytes:
        """Raises BadFile, also if the content has another digest."""
        self._seen.add(digest)
        data = read_bounded(self._blobs / digest.hex(), bytes_max)
        if sha256(data).digest() != digest:
            raise BadFile(f"blob {digest.hex()}: its content has another digest")
        return data

    @property
    def blobs_read(self) -> int:
        return len(self._seen)

    def unread_blobs(self) -> Iterator[tuple[str, str | None]]:
        """(name, what is wrong with it) of every file in blobs/ that nothing has read yet."""
        for path in self._blobs.iterdir():
            if not re.fullmatch(r"[0-9a-f]{64}", path.name):
                yield path.name, "is no digest"
            elif bytes.fromhex(path.name) not in self._seen:
                yield path.name, None if _digest_of_file(path) == path.name else "its content has another digest"


def read_json(path: Path, bytes_max: int) -> Any:
    """Raises BadFile."""
    data = read_bounded(path, bytes_max)
    try:
        return loads(data)
    except ValueError as error:
        raise BadFile(f"{path.name}: not readable as JSON: {error}") from None


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Raises BadFile."""
    try:
        check_regular(path, bytes_max)
        with path.open("rb") as file:
            return file.read(bytes_max)
    except OSError as error:
        raise BadFile(f"{path.name}: {error.strerror}") from None


def check_regular(path: Path, bytes_max: int) -> None:
    """Raises BadFile, OSError.  A pipe would be waited for, a device read for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(f"{path.name}: is no file")
    if status.st_size > bytes_max:
        raise BadFile(f"{path.name}: {status.st_size} bytes, at most {bytes_max} are possible")


def _digest_of_file(path: Path) -> str | None:
    hasher = sha256()
    try:
        check_regular(path, params.UPDATE_BYTES_MAX)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
    except (OSError, BadFile):
        return None
    return hasher.hexdigest()
