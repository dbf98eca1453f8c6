"""Blobs by digest: whoever holds one serves it, whoever needs one pulls it in chunks from whoever has it.

The digest is the only trust, and it proves each chunk by itself (`blobs.pull`).  A holder that lies is left at its
first lie, one that stalls loses its chunk to another; what was proved stays, also over the end of an attempt.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from math import inf
from weakref import WeakValueDictionary

import trio
from libp2p.peer.id import ID

from p2pdfl.base.codec import Malformed
from p2pdfl.net.blobs.pull import (
    REPLY_BYTES_MAX,
    REQUEST_BYTES,
    Assembly,
    NotHeld,
    Partials,
    Patience,
    Served,
    decode_request,
    encode_reply,
    encode_request,
)
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.requests import Refused, Requests, TooLong, Unreachable

PROTOCOL = "/p2pdfl/blob/2"
IN_THREAD_BYTES = 1 << 20
"""Above this, copying takes long enough to leave the event loop for a thread."""

BlobSource = Callable[[bytes], bytes | None]
"""digest -> the blob, if it is held and may be served.  Called in a worker thread."""


class Blobs:
    def __init__(self, requests: Requests, source: BlobSource, *, limits: Limits, counters: Counter[str]) -> None:
        self._requests = requests
        self._limits = limits
        self._counters = counters
        self._shelf = Shelf(
            source, bytes_max=limits.served_blobs_bytes_max, states_bytes_max=limits.served_states_bytes_max
        )
        self._partials: Partials[ID] = Partials(limits.partial_blobs_bytes_max)
        self._turns: WeakValueDictionary[ID, trio.CapacityLimiter] = WeakValueDictionary()
        requests.serve(
            PROTOCOL,
            self._reply,
            request_bytes_max=REQUEST_BYTES,
            requests_per_stream_max=limits.chunks_per_stream_max,
        )

    async def fetch(self, digest: bytes, holders: Sequence[ID], *, bytes_max: int) -> bytes | None:
        """holders: the likeliest first; the others are asked if it takes longer."""
        patience = Patience(
            requests_per_holder_max=self._limits.chunk_requests_per_holder_max, steal_s=self._limits.chunk_steal_s
        )
        assembly = self._partials.take(digest, bytes_max=bytes_max)
        assembly = assembly or Assembly(digest, bytes_max=bytes_max, patience=patience)
        attempt = _Attempt(assembly, self)
        try:
            with trio.move_on_after(self._limits.blob_attempt_s + bytes_max / self._limits.blob_bytes_per_s_min):
                await attempt.run(holders)
        finally:
            if not assembly.is_complete:
                self._partials.keep(assembly)
        if not assembly.is_complete:
            return None
        if (assembly.length or 0) <= IN_THREAD_BYTES:
            return assembly.blob()
        return await trio.to_thread.run_sync(assembly.blob)

    def turn(self, holder: ID) -> trio.CapacityLimiter:
        return self._turns.setdefault(holder, trio.CapacityLimiter(self._limits.pulls_per_holder_max))

    async def _reply(self, peer: bytes, request: bytes) -> bytes:
        """Raises Malformed, which costs the peer its stream."""
        digest, position = decode_request(request)
        served = await self._shelf.get(digest)
        return b"" if served is None else encode_reply(served.piece(position))


class _Attempt:
    """One call of `fetch`: a task per holder, all at one assembly."""

    def __init__(self, assembly: Assembly[ID], blobs: Blobs) -> None:
        self._assembly = assembly
        self._blobs = blobs
        self._limits = blobs._limits
        self._counters = blobs._counters
        self._open: dict[ID, trio.CancelScope] = {}
        self._changed = trio.Event()

    async def run(self, holders: Sequence[ID]) -> None:
        """Until the blob is complete or every holder has failed."""
        waiting = deque(dict.fromkeys(holders))
        pause_s, next_join_s = self._limits.hedge_s, -inf
        async with trio.open_nursery() as nursery:
            while not self._assembly.is_complete and (waiting or self._open):
                can_join = bool(waiting) and len(self._open) < self._limits.holders_at_once_max
                if can_join and (not self._open or trio.current_time() >= next_join_s):
                    pause_s = 2 * pause_s if self._open else self._limits.hedge_s
                    next_join_s = trio.current_time() + pause_s
                    holder = waiting.popleft()
                    self._open[holder] = trio.CancelScope()
                    nursery.start_soon(self._pull_from, holder)
                    continue
                await self._wait_changed(next_join_s if can_join else inf)
            nursery.cancel_scope.cancel()

    async def _pull_from(self, holder: ID) -> None:
        try:
            with self._open[holder]:
                async with self._blobs.turn(holder):
                    await self._talk(holder)
        except (Malformed, TooLong):
            self._blame(holder, "malformed blob reply")
        except (Unreachable, Refused, NotHeld):
            self._counters["blob attempts failed"] += 1
        finally:
            self._assembly.drop(holder)
            del self._open[holder]
            self._announce_change()

    async def _talk(self, holder: ID) -> None:
        assembly = self._assembly
        asked: deque[int] = deque()
        async with self._blobs._requests.conversation(holder, PROTOCOL, timeout_s=self._limits.chunk_s) as conversation:
            while not assembly.is_complete:
                position = assembly.ask(holder, trio.current_time())
                if position is not None:
                    asked.append(position)
                    await conversation.ask(encode_request(assembly.digest, position))
                elif asked:
                    reply = await conversation.answer(reply_bytes_max=REPLY_BYTES_MAX)
                    self._receive(holder, asked.popleft(), reply)
                    await trio.lowlevel.checkpoint_if_cancelled()
                else:
                    steal_s = assembly.next_steal_s(holder, trio.current_time())
                    await self._wait_changed(inf if steal_s is None else steal_s)

    def _receive(self, holder: ID, position: int, reply: bytes) -> None:
        """Raises Malformed, NotHeld."""
        proved, wasted = len(self._assembly.chunks), self._assembly.wasted_chunks
        liars = self._assembly.receive(holder, position, reply, trio.current_time())
        self._counters["blob chunks proved"] += len(self._assembly.chunks) - proved
        self._counters["blob chunks wasted"] += self._assembly.wasted_chunks - wasted
        for liar in liars:
            self._blame(liar, "blob is not what its digest says")
        self._announce_change()

    def _blame(self, holder: ID, reason: str) -> None:
        """Only what no honest holder does, whatever the path is like, comes here.  It is done with this blob."""
        self._blobs._requests.refuse(holder, reason)
        self._open[holder].cancel()

    async def _wait_changed(self, until_s: float) -> None:
        with trio.move_on_at(until_s):
            await self._changed.wait()

    def _announce_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Shelf:
    """What was served last, with its states, so that a chunk costs neither the disk nor a hash of the whole; and the
    states of much more, so that who has blobs make room for each other costs the disk only."""

    def __init__(self, source: BlobSource, *, bytes_max: int, states_bytes_max: int) -> None:
        self._source = source
        self._bytes_max = bytes_max
        self._states_bytes_max = states_bytes_max
        self._kept: OrderedDict[bytes, Served] = OrderedDict()
        self._states: OrderedDict[bytes, bytes] = OrderedDict()
        self._loading = trio.Lock()
        """One at a time: who asks for many long blobs at once must not bring them all into memory."""

    @property
    def states_bytes(self) -> int:
        return sum(map(len, self._states.values()))

    async def get(self, digest: bytes) -> Served | None:
        if digest not in self._kept:
            async with self._loading:
                if digest not in self._kept:
                    states = self._states.get(digest, b"")
                    served = await trio.to_thread.run_sync(self._load, digest, states)
                    if served is None:
                        return None
                    self._keep(digest, served)
        self._kept.move_to_end(digest)
        return self._kept[digest]

    def _load(self, digest: bytes, states: bytes) -> Served | None:
        blob = self._source(digest)
        return None if blob is None else Served(blob, states)

    def _keep(self, digest: bytes, served: Served) -> None:
        self._kept[digest] = served
        while len(self._kept) > 1 and sum(len(kept.blob) for kept in self._kept.values()) > self._bytes_max:
            self._kept.popitem(last=False)
        self._states[digest] = served.states
        self._states.move_to_end(digest)
        while self.states_bytes > self._states_bytes_max:
            self._states.popitem(last=False)
