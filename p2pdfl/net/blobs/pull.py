"""One blob on its way from several holders, without I/O: what to ask of whom, and what to believe.

A blob is known by its sha256 and nothing else.  It travels in chunks, last chunk first, each with sha256's state
before it: `crypto.sha256_links` says why the digest then proves each chunk as it comes, and whose lie it was
(docs/adr/0008).  On the wire:

    request: digest (32), position (4, big-endian): chunks are counted from the blob's end, 0 is the last
    reply:   nothing, if it is not held, else length of the blob (8, big-endian), state (32), chunk

A chunk is CHUNK_BYTES long, the last one what is left (of an empty blob: nothing).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from p2pdfl.base.codec import Malformed
from p2pdfl.crypto.sha256_links import BLOCK_BYTES, INITIAL_STATE, STATE_BYTES, digest_after, state_after

CHUNK_BYTES = 128 << 10
"""What a lie or a stall costs.  At 20 Mbit/s 50 ms; on loopback a request and its reply cost about as much CPU as
hashing it."""
DIGEST_BYTES = 32
POSITION_BYTES = 4
LENGTH_BYTES = 8
REQUEST_BYTES = DIGEST_BYTES + POSITION_BYTES
REPLY_HEAD_BYTES = LENGTH_BYTES + STATE_BYTES
REPLY_BYTES_MAX = REPLY_HEAD_BYTES + CHUNK_BYTES

assert CHUNK_BYTES % BLOCK_BYTES == 0

H = TypeVar("H", bound=Hashable)
"""A holder."""


class NotHeld(Exception):
    """An honest answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    length: int
    """Of the whole blob."""
    state: bytes
    """sha256's, before the chunk."""
    chunk: bytes


# --- the wire ----------------------------------------------------------------------------------------------------


def encode_request(digest: bytes, position: int) -> bytes:
    return digest + position.to_bytes(POSITION_BYTES, "big")


def decode_request(data: bytes) -> tuple[bytes, int]:
    """Raises Malformed."""
    if len(data) != REQUEST_BYTES:
        raise Malformed("not a request for a chunk")
    return data[:DIGEST_BYTES], int.from_bytes(data[DIGEST_BYTES:], "big")


def encode_reply(piece: Piece) -> bytes:
    return piece.length.to_bytes(LENGTH_BYTES, "big") + piece.state + piece.chunk


def decode_reply(data: bytes, position: int) -> Piece | None:
    """None: not held.  Raises Malformed for what no blob has at this position."""
    if not data:
        return None
    if len(data) < REPLY_HEAD_BYTES:
        raise Malformed("not a chunk")
    piece = Piece(
        length=int.from_bytes(data[:LENGTH_BYTES], "big"),
        state=data[LENGTH_BYTES:REPLY_HEAD_BYTES],
        chunk=data[REPLY_HEAD_BYTES:],
    )
    if position >= chunk_count(piece.length):
        raise Malformed("no such chunk")
    start, end = chunk_range(piece.length, position)
    if len(piece.chunk) != end - start:
        raise Malformed("chunk of another length")
    if start == 0 and piece.state != INITIAL_STATE:
        raise Malformed("not sha256's first state")
    return piece


def chunk_count(length: int) -> int:
    return max(1, -(-length // CHUNK_BYTES))


def chunk_range(length: int, position: int) -> tuple[int, int]:
    start = (chunk_count(length) - 1 - position) * CHUNK_BYTES
    return start, min(start + CHUNK_BYTES, length)


# --- serving -----------------------------------------------------------------------------------------------------


class Served:
    """A blob that is held, with the states between its chunks."""

    def __init__(self, blob: bytes, states: bytes = b"") -> None:
        """Hashes it all, unless states are given that an earlier one had for it."""
        self.blob = blob
        self.states = states if len(states) == chunk_count(len(blob)) * STATE_BYTES else _states(blob)

    def piece(self, position: int) -> Piece:
        """Raises Malformed."""
        length = len(self.blob)
        if position >= chunk_count(length):
            raise Malformed("no such chunk")
        start, end = chunk_range(length, position)
        first = start // CHUNK_BYTES * STATE_BYTES
        return Piece(length=length, state=self.states[first : first + STATE_BYTES], chunk=self.blob[start:end])


def _states(blob: bytes) -> bytes:
    """One before each chunk."""
    states = [INITIAL_STATE]
    for start in range(0, len(blob) - CHUNK_BYTES, CHUNK_BYTES):
        states.append(state_after(states[-1], blob[start : start + CHUNK_BYTES]))
    return b"".join(states)


# --- pulling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    requests_per_holder_max: int
    """Chunks of one holder that are on their way or not yet proved: what it can waste once it is caught lying.  One
    that has proved none yet has one."""
    steal_s: float
    """A chunk that is longer on its way, and longer than twice what the asker's last one took, is asked for again."""


@dataclass(kw_only=True)
class _Holder:
    asked_s: dict[int, float] = field(default_factory=dict)
    """Position -> when."""
    unproved: set[int] = field(default_factory=set)
    """Positions of its pieces that wait for the state after them."""
    is_proved: bool = False
    last_took_s: float = 0.0


class Assembly(Generic[H]):
    """INVARIANT: what is in `chunks` is proved by the digest, whoever sent it."""

    def __init__(self, digest: bytes, *, bytes_max: int, patience: Patience) -> None:
        self.digest = digest
        self._bytes_max = bytes_max
        self._patience = patience
        self.length: int | None = None
        self.chunks: list[bytes] = []
        """From the last one on."""
        self._next_state = digest
        """What the chunk that comes next in `chunks` must lead to: for the last chunk that is the digest."""
        self._holders: dict[H, _Holder] = {}
        self._unproved: dict[int, tuple[H, Piece]] = {}
        self.wasted_chunks = 0
        """That came and were lies, or had come already."""

    @property
    def is_complete(self) -> bool:
        return self.length is not None and len(self.chunks) == chunk_count(self.length)

    @property
    def proved_bytes(self) -> int:
        if self.length is None:
            return 0
        return self.length - (chunk_count(self.length) - len(self.chunks)) * CHUNK_BYTES if self.chunks else 0

    def blob(self) -> bytes:
        assert self.is_complete
        return b"".join(reversed(self.chunks))

    def ask(self, holder: H, now_s: float) -> int | None:
        """The position to ask this holder for now, if any; counts as asked."""
        if self.is_complete:
            return None
        of = self._holders.setdefault(holder, _Holder())
        position = self._unasked()
        if position is None or not self._may_have(of, position):
            position = next((late for late in self._late(of, now_s) if self._may_have(of, late)), None)
        if position is not None:
            of.asked_s[position] = now_s
        return position

    def next_steal_s(self, holder: H, now_s: float) -> float | None:
        """When `ask` may have something for this holder although nothing came in between."""
        of = self._holders.setdefault(holder, _Holder())
        since = [
            self._last_asked_s(position)
            for position in self._open_positions()
            if position not in of.asked_s and self._may_have(of, position)
        ]
        return min(since) + self._patience_s(of) if since else None

    def receive(self, holder: H, position: int, reply: bytes, now_s: float) -> set[H]:
        """Returns who is now known to have lied.  Raises Malformed, NotHeld."""
        of = self._holders[holder]
        asked_s = of.asked_s.pop(position)
        piece = decode_reply(reply, position)
        if piece is None:
            raise NotHeld
        if piece.length > self._bytes_max:
            raise Malformed("blob longer than allowed")
        if position < len(self.chunks) or position in self._unproved:
            self.wasted_chunks += 1
            return set()
        if self.length is not None and piece.length != self.length:
            self.wasted_chunks += 1
            return {holder}
        of.last_took_s = now_s - asked_s
        of.unproved.add(position)
        self._unproved[position] = (holder, piece)
        return self._prove()

    def drop(self, holder: H) -> None:
        """What it was asked for is open again, and what is not proved of it is forgotten."""
        of = self._holders.pop(holder, None)
        for position in of.unproved if of is not None else ():
            del self._unproved[position]

    def pause(self) -> None:
        """Keeps what is proved."""
        for holder in list(self._holders):
            self.drop(holder)

    def _prove(self) -> set[H]:
        while (position := len(self.chunks)) in self._unproved:
            holder, piece = self._unproved.pop(position)
            of = self._holders[holder]
            of.unproved.discard(position)
            if self._result(piece, position) != self._next_state:
                self.wasted_chunks += 1
                return {holder}
            of.is_proved = True
            self.length = piece.length
            self.chunks.append(piece.chunk)
            self._next_state = piece.state
        return set()

    def _result(self, piece: Piece, position: int) -> bytes:
        if position == 0:
            start, _ = chunk_range(piece.length, position)
            return digest_after(piece.state, start, piece.chunk)
        return state_after(piece.state, piece.chunk)

    # --- whom to ask for what ------------------------------------------------------------------------------------

    def _has_room(self, of: _Holder) -> bool:
        room = self._patience.requests_per_holder_max if of.is_proved else 1
        return len(of.asked_s) + len(of.unproved) < room

    def _may_have(self, of: _Holder, position: int) -> bool:
        # the chunk that all others wait for comes on top: who lied about it or keeps it keeps this holder's unproved
        return self._has_room(of) or (position == len(self.chunks) and not of.asked_s)

    def _unasked(self) -> int | None:
        end = 1 if self.length is None else chunk_count(self.length)
        asked = set(self._open_positions())
        for position in count(len(self.chunks)):
            if position >= end:
                return None
            if position not in asked and position not in self._unproved:
                return position
        raise AssertionError

    def _open_positions(self) -> list[int]:
        """Asked for and not here, each once, ascending."""
        return sorted(
            {
                position
                for of in self._holders.values()
                for position in of.asked_s
                if position >= len(self.chunks) and position not in self._unproved
            }
        )

    def _late(self, of: _Holder, now_s: float) -> list[int]:
        return [
            position
            for position in self._open_positions()
            if position not in of.asked_s and now_s - self._last_asked_s(position) >= self._patience_s(of)
        ]

    def _last_asked_s(self, position: int) -> float:
        return max(of.asked_s[position] for of in self._holders.values() if position in of.asked_s)

    def _patience_s(self, of: _Holder) -> float:
        return max(self._patience.steal_s, 2 * of.last_took_s)


class Partials(Generic[H]):
    """Interrupted assemblies, for the next attempt: the youngest ones, within bytes_max."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[bytes, Assembly[H]] = OrderedDict()

    def kept_bytes(self) -> int:
        return sum(assembly.proved_bytes for assembly in self._kept.values())

    def take(self, digest: bytes, *, bytes_max: int) -> Assembly[H] | None:
        assembly = self._kept.pop(digest, None)
        return assembly if assembly is not None and (assembly.length or 0) <= bytes_max else None

    def keep(self, assembly: Assembly[H]) -> None:
        assembly.pause()
        if assembly.chunks:
            self._kept[assembly.digest] = assembly
            while self.kept_bytes() > self._bytes_max:
                self._kept.popitem(last=False)
