"""What `net.Network` is to a node, between peers in one process: gossip, requests and bodies, with delay, loss, cuts.

As in the real one, only those admitted are heard and answered, a request that fails costs a stream, and a queue that
nobody empties loses what does not fit.  Gossip takes one way to each receiver; `FaultyNetwork` says which are lost.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from math import inf

import trio

from p2pdfl.net.requests import Refused, TooLong, Unreachable
from p2pdfl.sim import network
from p2pdfl.sim.log import Log
from p2pdfl.sim.true.process import Process

INBOX_MESSAGES_MAX = 4_096
RETRANSMIT_MS = 200
"""Until what a stream has lost is sent again."""

Handle = Callable[[bytes, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Incoming:
    origin: bytes
    data: bytes


class Hub:
    """The wires.  A peer has one connection to it per life."""

    def __init__(self, faults: network.Network, rng: random.Random, log: Log, peer_ids: Sequence[bytes]) -> None:
        self.faults = faults
        self.log = log
        self.peer_ids = peer_ids
        self.connections: dict[int, Connection] = {}
        """By the peer's index: of those that live."""
        self.messages = 0
        self.changed = trio.Event()
        """Somebody has come or gone."""
        self._index_of = {peer_id: index for index, peer_id in enumerate(peer_ids)}
        self._rng = rng
        self._under_way: list[tuple[float, int, int, Incoming, str]] = []
        self._count = count()
        self._sooner = trio.Event()

    @property
    def now_ms(self) -> int:
        return round(trio.current_time() * 1000)

    def join(self, index: int, process: Process, serve_body: Callable[[bytes], bytes | None]) -> Connection:
        self.connections[index] = connection = Connection(self, index, process, serve_body)
        self.announce_change()
        return connection

    def leave(self, index: int) -> None:
        self.connections.pop(index, None)
        self.announce_change()

    def announce_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def carry(self) -> None:
        """Delivers, each at its time."""
        while True:
            while self._under_way and self._under_way[0][0] <= trio.current_time():
                _, _, receiver, incoming, label = heapq.heappop(self._under_way)
                self._deliver(receiver, incoming, label)
            self._sooner = trio.Event()
            with trio.move_on_at(self._under_way[0][0] if self._under_way else inf):
                await self._sooner.wait()

    def gossip(self, sender: int, data: bytes) -> None:
        label = sha256(data).hexdigest()[:16]
        self.log.write(self.now_ms, sender, f"> {label} {len(data)}")
        incoming = Incoming(self.peer_ids[sender], data)
        now_ms = self.now_ms
        for receiver in range(len(self.peer_ids)):
            if receiver != sender:
                for delay_ms in self.faults.delays_ms(sender, receiver, now_ms, self._rng)[:1]:
                    self._send(now_ms + delay_ms, receiver, incoming, label)

    def _send(self, at_ms: int, receiver: int, incoming: Incoming, label: str) -> None:
        at_s = at_ms / 1000
        if not self._under_way or at_s < self._under_way[0][0]:
            self._sooner.set()
        heapq.heappush(self._under_way, (at_s, next(self._count), receiver, incoming, label))

    def _deliver(self, receiver: int, incoming: Incoming, label: str) -> None:
        connection = self.connections.get(receiver)
        if connection is not None and connection.take(incoming):
            self.messages += 1
            self.log.write(self.now_ms, receiver, f"< {label}")

    def is_open(self, one: int, other: int) -> bool:
        return other in self.connections and self.faults.is_open(one, other, self.now_ms)

    async def travel(self, sender: int, receiver: int) -> None:
        """One way of a stream, which repeats what is lost.  Raises Unreachable."""
        if not self.is_open(sender, receiver):
            raise Unreachable("not connected")
        delays_ms = self.faults.delays_ms(sender, receiver, self.now_ms, self._rng)
        while not delays_ms:
            await trio.sleep(RETRANSMIT_MS / 1000)
            delays_ms = self.faults.delays_ms(sender, receiver, self.now_ms, self._rng)
        await trio.sleep(delays_ms[0] / 1000)
        if not self.is_open(sender, receiver):
            raise Unreachable("connection lost")


@dataclass(kw_only=True)
class _Answer:
    reply: bytes | None = None
    is_refused: bool = False
    done: trio.Event = field(default_factory=trio.Event)


class Connection:
    """A `ports.Network`."""

    def __init__(self, hub: Hub, index: int, process: Process, serve_body: Callable[[bytes], bytes | None]) -> None:
        self.peer_id = hub.peer_ids[index]
        self.counters: Counter[str] = Counter()
        self.on_published: Callable[[bytes], None] = lambda data: None
        self.on_answered: Callable[[str, bytes], None] = lambda protocol, reply: None
        self._inbox, self.incoming = trio.open_memory_channel[Incoming](INBOX_MESSAGES_MAX)
        self._hub = hub
        self._index = index
        self._process = process
        self._serve_body = serve_body
        self._handlers: dict[str, tuple[Handle, int]] = {}
        self._admitted: frozenset[bytes] | None = None

    def admit(self, peer_ids: Collection[bytes]) -> None:
        self._admitted = frozenset(peer_ids)
        self._hub.announce_change()

    def blame(self, peer_id: bytes, reason: str) -> None:
        self.counters[f"blamed: {reason}"] += 1

    def connected(self) -> set[bytes]:
        return {
            peer_id
            for index, peer_id in enumerate(self._hub.peer_ids)
            if index != self._index and self.is_admitted(peer_id) and self._hub.is_open(self._index, index)
        }

    async def wait_connected(self, count: int) -> None:
        while len(self.connected()) < count:
            await self._hub.changed.wait()

    async def publish(self, data: bytes) -> None:
        self._process.step()
        await trio.lowlevel.checkpoint()
        self.on_published(data)
        self.counters["bytes_sent"] += len(data)
        self._hub.gossip(self._index, data)
        self._process.step()

    def serve(self, protocol: str, handle: Handle, *, request_bytes_max: int) -> None:
        self._handlers[protocol] = (handle, request_bytes_max)

    async def request(
        self, peer_id: bytes, protocol: str, request: bytes, *, reply_bytes_max: int, timeout_s: float
    ) -> bytes:
        self._process.step()
        other = self._hub._index_of[peer_id]
        with trio.move_on_after(timeout_s):
            await self._hub.travel(self._index, other)
            answerer = self._hub.connections[other]
            reply = await answerer.answer(self.peer_id, protocol, request)
            await self._hub.travel(other, self._index)
            self._process.step()
            if len(reply) > reply_bytes_max:
                raise TooLong("longer than allowed")
            label = sha256(reply).hexdigest()[:16]
            self._hub.log.write(self._hub.now_ms, self._index, f"{protocol} {other} {label} {len(reply)}")
            return reply
        raise Unreachable("no reply in time")

    async def fetch(self, digest: bytes, holders: Sequence[bytes], *, bytes_max: int) -> bytes | None:
        self._process.step()
        for holder in holders:
            other = self._hub._index_of[holder]
            try:
                await self._hub.travel(self._index, other)
                body = self._hub.connections[other].body(self.peer_id, digest)
                await self._hub.travel(other, self._index)
            except (Unreachable, Refused):
                continue
            if body is not None and len(body) <= bytes_max and sha256(body).digest() == digest:
                self._hub.log.write(self._hub.now_ms, self._index, f"body {other} {digest.hex()[:16]}")
                return body
        return None

    # --- what others do with it ------------------------------------------------------

    def is_admitted(self, peer_id: bytes) -> bool:
        return self._admitted is None or peer_id in self._admitted

    def take(self, incoming: Incoming) -> bool:
        if self._process.is_dead or not self.is_admitted(incoming.origin):
            return False
        try:
            self._inbox.send_nowait(incoming)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        return True

    def body(self, peer_id: bytes, digest: bytes) -> bytes | None:
        """Raises Refused."""
        if self._process.is_dead or not self.is_admitted(peer_id):
            raise Refused("stream ended by the peer")
        return self._serve_body(digest)

    async def answer(self, peer_id: bytes, protocol: str, request: bytes) -> bytes:
        """In the answerer's process.  Raises Unreachable, Refused."""
        handle, request_bytes_max = self._handlers.get(protocol, (None, 0))
        is_welcome = not self._process.is_dead and self.is_admitted(peer_id)
        if handle is None or not is_welcome or len(request) > request_bytes_max:
            raise Refused("stream ended by the peer")
        answer = _Answer()
        self._process.nursery.start_soon(self._handle, handle, peer_id, request, answer)
        await answer.done.wait()
        if answer.reply is None:
            raise Refused("stream ended by the peer") if answer.is_refused else Unreachable("connection lost")
        self.on_answered(protocol, answer.reply)
        return answer.reply

    async def _handle(self, handle: Handle, peer_id: bytes, request: bytes, answer: _Answer) -> None:
        try:
            answer.reply = await handle(peer_id, request)
        except Exception:  # noqa: BLE001  as in the real one: it costs the sender a stream
            answer.is_refused = True
            self.counters["refused: handler failed"] += 1
        finally:
            answer.done.set()
