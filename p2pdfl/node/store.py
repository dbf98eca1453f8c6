"""What one node must not forget: every envelope it signed, every round that closed, every body that a head names.

And, for a quick start, the last checkpoints with their states.

One SQLite file per home.  An envelope is on disk, synced, before it is sent, so that a node that comes back after a
crash sends the stored bytes and never signs a second body in one slot (DESIGN 4).  A lock on the home keeps a second
process with the same key from doing just that.

`export_transcript` writes what a run leaves behind (DESIGN 9), content-addressed:

    rounds/NNNNNN.json   the round's head, word by word, and the digests of everything else
    blobs/<sha256>       canonical bytes of contents, certificate and packets; update bytes as they travelled
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from p2pdfl.base import codec, params
from p2pdfl.base.types import Certificate, Checkpoint, Contents, Digest, Envelope, Head, Kind, Packet, Wire
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.node.ports import Connect
from p2pdfl.protocol.resync import ResyncReply

FORMAT = 3
"""Of the tables below; in the file as `user_version`."""

W = TypeVar("W", bound=Wire)


class StoreError(Exception):
    """The disk failed us, or what is on it is not what this node wrote."""


class SlotTaken(StoreError):
    """This node has signed another body in that slot.  Nothing may be sent."""


class Slot(NamedTuple):
    """Where at most one body is ever signed (DESIGN 4)."""

    task: Digest
    epoch: int
    round: int
    view: int
    kind: int

    @classmethod
    def of(cls, envelope: Envelope) -> Self:
        return cls(envelope.task, envelope.epoch, envelope.round, envelope.view, envelope.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound:
    """packets: the COMMITs the head names, the PROPOSE, and the ACCUSEs and JUDGEs heard while the round was open."""

    head: Head
    contents: Contents
    certificate: Certificate
    packets: tuple[Packet, ...]


class Store:
    """Safe to call from any thread; calls wait for each other.  Everything raises StoreError."""

    def __init__(self, path: Path, connect: Connect | None = None) -> None:
        """Opens or creates the file.  connect: opens what is not a file.  Raises StoreError also if another process
        has it open."""
        self._path = path
        self._turn = threading.Lock()
        self._lock_file = _lock(path)
        try:
            with self._blame_the_disk():
                self._db = (connect or connect_file)(path)
                self._set_up()
        except BaseException:
            os.close(self._lock_file)
            raise

    def close(self) -> None:
        with self._turn, self._blame_the_disk():
            self._db.close()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put_envelope(self, packet: Packet) -> Packet:
        """The packet to send: `packet`, or the one stored before if its body is the same.  Raises SlotTaken."""
        slot = Slot.of(packet.envelope)
        with self._transaction() as db:
            stored = self._envelope(db, slot)
            if stored is None:
                db.execute("INSERT INTO envelopes VALUES (?, ?, ?, ?, ?, ?)", (*slot, codec.encode(packet)))
                return packet
        if stored.envelope.body != packet.envelope.body:
            raise SlotTaken(
                f"{self._path}: round {slot.round}, view {slot.view}, {Kind(slot.kind).name} is signed already, "
                "with another body"
            )
        return stored

    def envelope(self, slot: Slot) -> Packet | None:
        with self._reading() as db:
            return self._envelope(db, slot)

    def envelopes(self, round: int) -> tuple[Packet, ...]:
        """All that was signed in a round, for a node that comes back in the middle of it."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT packet FROM envelopes WHERE round = ? ORDER BY epoch, view, kind", (round,)
            ).fetchall()
        return tuple(self._decode(Packet, row[0]) for row in rows)

    def put_round(
        self, round: int, head: Head, contents: Contents, certificate: Certificate, packets: Sequence[Packet]
    ) -> None:
        """All of it or nothing.  The same head again changes nothing; another head for a closed round is refused."""
        encoded = [codec.encode(packet) for packet in packets]
        with self._transaction() as db:
            row = db.execute("SELECT head FROM rounds WHERE round = ?", (round,)).fetchone()
            if row is not None:
                if row[0] != codec.encode(head):
                    raise StoreError(
                        f"{self._path}: round {round} is closed already, with another head; a new task needs a new home"
                    )
                return
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?, ?)",
                (round, codec.encode(head), codec.encode(contents), codec.encode(certificate)),
            )
            db.executemany(
                "INSERT INTO packets VALUES (?, ?, ?)", [(round, place, data) for place, data in enumerate(encoded)]
            )
            db.execute("DELETE FROM notarized WHERE round <= ?", (round,))

    def put_notarized(self, certificate: Certificate, packets: Sequence[Packet]) -> None:
        """Kept until the round closes.  Not synced by itself: the envelope that is stored next syncs it as well."""
        kept = ResyncReply(packets=tuple(packets), certificates=(certificate,))
        with self._transaction(synced=False) as db:
            db.execute(
                "INSERT OR REPLACE INTO notarized VALUES (?, ?, ?)",
                (certificate.round, certificate.view, codec.encode(kept)),
            )

    def notarized(self, round: int) -> tuple[ResyncReply, ...]:
        """What was notarized in the open round, by view."""
        with self._reading() as db:
            rows = db.execute("SELECT kept FROM notarized WHERE round = ? ORDER BY view", (round,)).fetchall()
        return tuple(self._decode(ResyncReply, row[0]) for row in rows)

    def round(self, number: int) -> ClosedRound | None:
        with self._reading() as db:
            row = db.execute("SELECT head, contents, certificate FROM rounds WHERE round = ?", (number,)).fetchone()
            if row is None:
                return None
            packets = db.execute("SELECT packet FROM packets WHERE round = ? ORDER BY place", (number,)).fetchall()
        return ClosedRound(
            head=self._decode(Head, row[0]),
            contents=self._decode(Contents, row[1]),
            certificate=self._decode(Certificate, row[2]),
            packets=tuple(self._decode(Packet, packet[0]) for packet in packets),
        )

    def last_round(self) -> int | None:
        with self._reading() as db:
            (last,) = db.execute("SELECT max(round) FROM rounds").fetchone()
        return None if last is None else int(last)

    def put_blob(self, digest: Digest, data: bytes) -> None:
        """Kept for good.  Not synced by itself: the next envelope or round that is stored syncs it as well."""
        with self._transaction(synced=False) as db:
            db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (digest, data))

    def blob(self, digest: Digest) -> bytes | None:
        with self._reading() as db:
            row = db.execute(
                "SELECT data FROM blobs WHERE digest = :digest "
                "UNION ALL SELECT data FROM checkpoints WHERE digest = :digest "
                "UNION ALL SELECT state FROM checkpoints WHERE state_digest = :digest LIMIT 1",
                {"digest": digest},
            ).fetchone()
        if row is None:
            return None
        data = bytes(row[0])
        if sha256(data).digest() != digest:
            raise StoreError(f"{self._path}: blob {digest.hex()} is damaged")
        return data

    def blob_bytes(self, digests: Sequence[Digest]) -> int:
        """Of those held, together."""
        with self._reading() as db:
            lengths = (
                db.execute("SELECT length(data) FROM blobs WHERE digest = ?", (digest,)).fetchone()
                for digest in digests
            )
            return sum(row[0] for row in lengths if row is not None)

    def put_checkpoint(self, checkpoint: Checkpoint, state: bytes) -> None:
        """state: of its last head.  Keeps the newest few; both are served as blobs."""
        data = codec.encode(checkpoint)
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)",
                (checkpoint.epoch, sha256(data).digest(), sha256(state).digest(), data, state),
            )
            db.execute(
                "DELETE FROM checkpoints WHERE epoch NOT IN "
                "(SELECT epoch FROM checkpoints ORDER BY epoch DESC LIMIT ?)",
                (params.CHECKPOINTS_KEPT,),
            )

    def checkpoint_epochs(self) -> list[int]:
        with self._reading() as db:
            return [int(row[0]) for row in db.execute("SELECT epoch FROM checkpoints")]

    def checkpoint(self, epoch: int) -> tuple[Checkpoint, bytes]:
        """With the state; one of `checkpoint_epochs`."""
        with self._reading() as db:
            row = db.execute("SELECT data, state, state_digest FROM checkpoints WHERE epoch = ?", (epoch,)).fetchone()
        if sha256(row[1]).digest() != row[2]:
            raise StoreError(f"{self._path}: the state after epoch {epoch} is damaged")
        return self._decode(Checkpoint, row[0]), bytes(row[1])

    def checkpoint_digest(self, epoch: int) -> Digest | None:
        with self._reading() as db:
            row = db.execute("SELECT digest FROM checkpoints WHERE epoch = ?", (epoch,)).fetchone()
        return None if row is None else bytes(row[0])

    def heads(self) -> dict[int, Digest]:
        """Of all closed rounds."""
        with self._reading() as db:
            rows = db.execute("SELECT round, head FROM rounds").fetchall()
        return {int(round): head_digest(self._decode(Head, head)) for round, head in rows}

    def export_transcript(self, directory: Path) -> tuple[Digest, ...]:
        """Writes every closed round; returns the digests of update bytes that the heads name but this node lacks."""
        missing: list[Digest] = []
        with self._blame_the_disk():
            for part in ("rounds", "blobs"):
                (directory / part).mkdir(parents=True, exist_ok=True)
            with self._reading() as db:
                numbers = [int(row[0]) for row in db.execute("SELECT round FROM rounds ORDER BY round")]
            for number in numbers:
                missing += self._export_round(number, directory)
        return tuple(missing)

    def _export_round(self, number: int, directory: Path) -> list[Digest]:
        closed = self.round(number)
        assert closed is not None, "rounds are never deleted"
        blobs = directory / "blobs"
        missing: list[Digest] = []
        updates = []
        for entry in closed.contents.updates:
            data = self.blob(entry.update)
            if data is None:
                missing.append(entry.update)
            else:
                _write_blob(blobs, data)
            updates.append({"member": entry.member, "digest": entry.update.hex(), "held": data is not None})
        index = {
            "round": number,
            "head": {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in closed.head.model_dump().items()
            },
            "contents": _write_blob(blobs, codec.encode(closed.contents)),
            "certificate": _write_blob(blobs, codec.encode(closed.certificate)),
            "packets": [
                {
                    "kind": Kind(packet.envelope.kind).name.lower(),
                    "round": packet.envelope.round,
                    "view": packet.envelope.view,
                    "digest": _write_blob(blobs, codec.encode(packet)),
                }
                for packet in closed.packets
            ],
            "updates": updates,
        }
        text = json.dumps(index, indent=1) + "\n"
        (directory / "rounds" / f"{number:06}.json").write_text(text, encoding="utf-8")
        return missing

    def _set_up(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            raise StoreError(f"{self._path}: written by another version of p2pdfl (format {version}, not {FORMAT})")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if version == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")

    def _envelope(self, db: sqlite3.Connection, slot: Slot) -> Packet | None:
        row = db.execute(
            "SELECT packet FROM envelopes WHERE task = ? AND epoch = ? AND round = ? AND view = ? AND kind = ?", slot
        ).fetchone()
        return None if row is None else self._decode(Packet, row[0])

    def _decode(self, kind: type[W], data: bytes) -> W:
        try:
            return codec.decode(kind, data, bytes_max=max(len(data), params.PACKET_BYTES_MAX))
        except (codec.Malformed, TypeError) as error:
            raise StoreError(f"{self._path}: a stored {kind.__name__} is damaged: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._blame_the_disk():
            yield self._db

    @contextmanager
    def _transaction(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        with self._turn, self._blame_the_disk():
            if not synced:
                self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk rolls back by itself
                        self._db.execute("ROLLBACK")
                    raise
            finally:
                if not synced:
                    # In WAL mode a later synced commit flushes the whole log, earlier commits in it included.
                    self._db.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _blame_the_disk(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
        except OSError as error:
            raise StoreError(f"{error.filename or self._path}: {error.strerror}") from error


_TABLES = """
CREATE TABLE envelopes (
    task BLOB, epoch INTEGER, round INTEGER, view INTEGER, kind INTEGER, packet BLOB NOT NULL,
    PRIMARY KEY (task, epoch, round, view, kind)
);
CREATE INDEX envelopes_by_round ON envelopes (round);
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, head BLOB NOT NULL, contents BLOB NOT NULL, certificate BLOB NOT NULL
);
CREATE TABLE packets (round INTEGER, place INTEGER, packet BLOB NOT NULL, PRIMARY KEY (round, place));
CREATE TABLE notarized (round INTEGER, view INTEGER, kept BLOB NOT NULL, PRIMARY KEY (round, view));
CREATE TABLE blobs (digest BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE checkpoints (
    epoch INTEGER PRIMARY KEY, digest BLOB NOT NULL, state_digest BLOB NOT NULL, data BLOB NOT NULL, state BLOB NOT NULL
);
"""


def connect_file(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _lock(path: Path) -> int:
    """The kernel drops the lock when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_file)
        raise StoreError(f"{path}: another process uses this home; stop it first, or give each peer its own") from error
    return lock_file


def _write_blob(directory: Path, data: bytes) -> str:
    name = sha256(data).hexdigest()
    path = directory / name
    if not path.exists():
        path.write_bytes(data)
    return name
