"""What a node stands on, each handed in: the network, the chain, the disk, worker threads, a clock, and the machine.

A peer's process hands in `net.Network`, `chain.ChainClient`, SQLite files, trio's threads and the `time` module;
the simulator hands in models of them that are functions of a seed.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from p2pdfl.base.types import (
    Address,
    Certificate,
    Digest,
    EquivocationProof,
    Head,
    Point,
    Registration,
    Signature,
    VerdictProof,
)
from p2pdfl.crypto.envelope import Domain
from p2pdfl.protocol.events import Effect, Event
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound

if TYPE_CHECKING:  # web3 takes a second to import
    from p2pdfl.chain.client import Block
    from p2pdfl.chain.sender import Receipt

T = TypeVar("T")

Connect = Callable[[Path], sqlite3.Connection]
"""Opens the store's database: the disk."""


class Clock(Protocol):
    """As the `time` module."""

    def monotonic(self) -> float: ...
    def thread_time(self) -> float:
        """Processor time of the calling thread."""


class Workers(Protocol):
    """Where what takes time is computed, or waited for, beside the event loop."""

    async def run(self, work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """May be left to itself: work must not touch what is closed when this is cancelled."""

    async def finish(self, work: Callable[..., T], *arguments: object) -> T:
        """To its end, also when this is cancelled: a write."""


class Gossiped(Protocol):
    @property
    def origin(self) -> bytes:
        """Its author's peer id."""

    @property
    def data(self) -> bytes: ...


class Network(Protocol):
    """Peers are named by their ids as the chain has them.  Requests raise `net.requests` Unreachable and Refused."""

    @property
    def peer_id(self) -> bytes: ...
    @property
    def counters(self) -> Counter[str]: ...
    @property
    def incoming(self) -> AsyncIterator[Gossiped]: ...
    def admit(self, peer_ids: Collection[bytes]) -> None: ...
    def blame(self, peer_id: bytes, reason: str) -> None: ...
    def connected(self) -> set[bytes]: ...
    async def wait_connected(self, count: int) -> None: ...
    async def publish(self, data: bytes) -> None: ...
    async def request(
        self, peer_id: bytes, protocol: str, request: bytes, *, reply_bytes_max: int, timeout_s: float
    ) -> bytes: ...
    def serve(
        self, protocol: str, handle: Callable[[bytes, bytes], Awaitable[bytes]], *, request_bytes_max: int
    ) -> None: ...
    async def fetch(self, digest: bytes, holders: Sequence[bytes], *, bytes_max: int) -> bytes | None: ...


class Chain(Protocol):
    """One task's contract, asked from worker threads.  Everything may block and raises `chain.rpc.ChainError`."""

    domain: Domain

    @property
    def address(self) -> Address: ...
    def confirmed_block(self) -> Block: ...
    def block_of(self, block_hash: Digest) -> Block | None: ...
    def balance_of(self, address: Address) -> int: ...
    def registrations(self, block: int | Digest | None = None) -> list[Registration]: ...
    def register(self, peer_id: bytes, pvss_key: Point, possession: Signature) -> Receipt: ...
    def request_exit(self) -> Receipt: ...
    def start_block(self) -> Block | None: ...
    def started_with(self, block: Block) -> list[Registration]: ...
    def candidates(self) -> list[Address]: ...
    def start(self, addresses: Sequence[Address]) -> Receipt: ...
    def next_epoch(self, block: int | Digest | None = None) -> int: ...
    def anchored_head(self, epoch: int, block: int | Digest | None = None) -> Digest | None: ...
    def list_hash(self, epoch: int, block: int | Digest | None = None) -> Digest | None: ...
    def anchor(
        self, *, head: Head, certificate: Certificate, members: Sequence[Address], next_members: Sequence[Address]
    ) -> Receipt: ...
    def slash_by_verdict(self, proof: VerdictProof, members: Sequence[Address]) -> Receipt: ...
    def slash_by_equivocation(self, proof: EquivocationProof, accused: Address) -> Receipt: ...
    def is_slashed_by_verdict(
        self, proof: VerdictProof, members: Sequence[Address], block: int | Digest | None = None
    ) -> bool: ...
    def is_slashed_by_equivocation(
        self, proof: EquivocationProof, accused: Address, block: int | Digest | None = None
    ) -> bool: ...


class Machine(Protocol):
    """`Run`, or what a Byzantine peer wraps around it."""

    @property
    def epoch(self) -> EpochMembers: ...
    def start(self, now_ms: int) -> list[Effect]: ...
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...
    def next_deadline_ms(self, now_ms: int) -> int: ...
    def resync_request(self) -> ResyncRequest: ...
    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply: ...
