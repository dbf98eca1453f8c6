"""What a node lacks of a round: asked of its own disk, then of other members; and what it answers them (DESIGN 3)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode, encode
from p2pdfl.base.types import Certificate, Packet, Round
from p2pdfl.net.requests import Refused, Unreachable
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.ports import Machine, Network, Workers
from p2pdfl.node.store import Store
from p2pdfl.protocol.events import CertificateReceived, Event, PacketReceived, Resynced
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, compute_reply

RESYNC_PROTOCOL = "/p2pdfl/resync/1"
"""Request and reply are `protocol.resync`'s wire types."""


class Turn:
    """Who is at the machine: the loop, with an event and all that comes of it, or another member, who looks.

    From when the machine signs to when the disk has it, nobody else may see it: given away too early, and then a
    crash, the slot would be signed again.  After a failure in between it is never seen again."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._is_ahead_of_disk = False

    @asynccontextmanager
    async def performing(self) -> AsyncIterator[None]:
        async with self._lock:
            self._is_ahead_of_disk = True
            yield
            self._is_ahead_of_disk = False

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Raises Refused."""
        async with self._lock:
            if self._is_ahead_of_disk:
                raise Refused("stopping")
            yield


@dataclass(kw_only=True)
class Resync:
    machine: Machine
    turn: Turn
    store: Store
    network: Network
    workers: Workers
    event_log: EventLog
    nursery: trio.Nursery
    report: Callable[[Event], Awaitable[None]]
    open_round: Callable[[], Round]
    rng: random.Random

    _asking: set[bytes] = field(default_factory=set)
    """Members that owe an answer."""
    _answering: set[bytes] = field(default_factory=set)

    # --- asking -------------------------------------------------------------------

    def ask(self, round: Round) -> None:
        """Several at once: a member that never answers must not keep this node from asking another."""
        if len(self._asking) < params.RESYNCS_AT_ONCE_MAX:
            candidates = sorted(self.network.connected() - self._asking)
            member = self.rng.choice(candidates) if candidates else b""
            if member not in self._asking:
                self._asking.add(member)
                self.nursery.start_soon(self._ask, round, member)

    async def _ask(self, round: Round, member: bytes) -> None:
        """What this node lacks of the round: from its own store, as after a restart, else from the member."""
        try:
            stored = await self.workers.run(self.store.round, round)
            if stored is not None:
                await self._take_reply(stored.packets, (stored.certificate,), None)
                return
            await self._recall(round)
            if member:
                data = await self.network.request(
                    member,
                    RESYNC_PROTOCOL,
                    encode(self.machine.resync_request()),
                    reply_bytes_max=params.RESYNC_FRAME_BYTES_MAX,
                    timeout_s=params.RESYNC_TIMEOUT_S,
                )
                reply = await self.workers.run(_decode_reply, data)
                await self._take_reply(reply.packets, reply.certificates, member)
                await self.report(Resynced(round=round))
        except (Unreachable, Refused):
            self.event_log.refused["resync without an answer"] += 1
        except Malformed:
            self._refuse("reply is malformed", member)
        finally:
            self._asking.discard(member)

    async def _recall(self, round: Round) -> None:
        """What this node's CLOSEs rest on, after a restart.  The notarization also if all that it is of came again
        from others: they may not have seen that."""
        for kept in await self.workers.run(self.store.notarized, round):
            missing = compute_reply(self.machine.resync_request(), kept.packets, kept.certificates)
            await self._take_reply(missing.packets, missing.certificates, None)

    async def _take_reply(
        self, packets: tuple[Packet, ...], certificates: tuple[Certificate, ...], source: bytes | None
    ) -> None:
        for packet in packets:
            await self.report(PacketReceived(packet=packet, source=source, is_own=False))
        for certificate in certificates:
            await self.report(CertificateReceived(certificate=certificate))

    # --- answering ----------------------------------------------------------------

    async def answer(self, peer: bytes, data: bytes) -> bytes:
        """Raises for what is not answered; that costs the peer a stream."""
        try:
            request = decode(ResyncRequest, data, bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
        except Malformed:
            self._refuse("request is malformed", peer)
            raise
        if peer in self._answering:
            raise Refused("one question at a time")
        self._answering.add(peer)
        try:
            # from the disk, before the machine is asked: it must not wait, and nothing else waits for the disk
            is_closed = request.round < self.open_round()
            stored = await self.workers.run(self.store.round, request.round) if is_closed else None
            async with self.turn.looking():
                reply = self.machine.resync_reply(
                    request, lambda _: None if stored is None else (stored.packets, stored.certificate)
                )
            return await self.workers.run(encode, reply)
        finally:
            self._answering.discard(peer)

    def _refuse(self, reason: str, peer: bytes) -> None:
        self.event_log.refused[reason] += 1
        self.network.blame(peer, reason)


def _decode_reply(data: bytes) -> ResyncReply:
    return decode(ResyncReply, data, bytes_max=params.RESYNC_FRAME_BYTES_MAX)
