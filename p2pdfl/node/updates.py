"""The bytes of updates on their way between members: kept while nothing names them yet, pulled when gossip is late,
reported to the machine once they are held (DESIGN 3.4)."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256

import trio

from p2pdfl.base import params
from p2pdfl.base.types import Address, Digest, Round
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.ports import Network, Workers
from p2pdfl.node.store import Store
from p2pdfl.protocol.events import UpdateHeld, WantUpdate


@dataclass(kw_only=True)
class Updates:
    compute: Compute
    store: Store
    network: Network
    workers: Workers
    event_log: EventLog
    nursery: trio.Nursery
    report: Callable[[UpdateHeld], Awaitable[None]]
    rng: random.Random

    _orphans: dict[bytes, OrderedDict[Digest, bytes]] = field(default_factory=dict)
    """Author's peer id -> its last bodies that no verified COMMIT names, or none yet."""
    _announced: dict[bytes, Digest] = field(default_factory=dict)
    """Author's peer id -> the digest that it announced last."""
    _wanted: dict[Digest, dict[Address, WantUpdate]] = field(default_factory=dict)
    """By digest, then by author: a cheater may commit to another's digest, and must not take its place."""
    _fetching: dict[Digest, trio.CancelScope] = field(default_factory=dict)
    _reporting: set[tuple[Round, Address, Digest]] = field(default_factory=set)
    """What the machine is about to be told: it asks again while its queue is long."""

    def receive(self, update: bytes, origin: bytes) -> None:
        """Inline gossip."""
        if len(update) > params.UPDATE_INLINE_BYTES_MAX:
            self.event_log.refused["update is too long"] += 1
            self.network.blame(origin, "update is too long")
            return
        self.take(update, origin)

    def take(self, update: bytes, origin: bytes) -> None:
        self._take(sha256(update).digest(), update, origin)

    def _take(self, digest: Digest, update: bytes, origin: bytes) -> None:
        wanted = self._wanted.pop(digest, None)
        if wanted is not None:
            for want in wanted.values():
                self.nursery.start_soon(self._report_held, want, update)
            return
        # the body may overtake its COMMIT; nobody gets to fill this node's memory with bodies that nothing names
        orphans = self._orphans.setdefault(origin, OrderedDict())
        orphans[digest] = update
        while len(orphans) > params.ORPHAN_BODIES_PER_MEMBER_MAX:
            orphans.popitem(last=False)

    def announced(self, digest: Digest, origin: bytes) -> None:
        """The author holds a body that is too long for gossip."""
        self._announced[origin] = digest
        if digest in self._wanted:
            self._fetch(digest, first=origin)

    async def want(self, want: WantUpdate, author: bytes | None) -> None:
        """author: its peer id, if it is known."""
        if (want.round, want.author, want.update) in self._reporting:
            return
        orphan = self._orphan(want.update)
        if orphan is not None:
            self.nursery.start_soon(self._report_held, want, orphan)
            return
        # first, since it may come while the disk is asked
        self._wanted.setdefault(want.update, {})[want.author] = want
        update = await self.workers.run(self.store.blob, want.update)
        holder = next((origin for origin, digest in self._announced.items() if digest == want.update), None)
        if update is not None:
            self._take(want.update, update, self.network.peer_id)
        elif want.update in self._wanted and (want.fetch or holder is not None):
            self._fetch(want.update, first=holder or author)

    def forget_wanted(self) -> None:
        """The round has closed.  What came early for the next one stays, chunks among it (`Network.fetch`)."""
        self._wanted.clear()
        # ATTACK: bodies that their holders spin out must not pile up, round after round
        for fetching in self._fetching.values():
            fetching.cancel()

    def _orphan(self, digest: Digest) -> bytes | None:
        return next((orphans[digest] for orphans in self._orphans.values() if digest in orphans), None)

    def _fetch(self, digest: Digest, first: bytes | None) -> None:
        if digest not in self._fetching:
            self._fetching[digest] = trio.CancelScope()
            self.nursery.start_soon(self._fetch_from, digest, first)

    async def _fetch_from(self, digest: Digest, first: bytes | None) -> None:
        connected = self.network.connected()
        others = sorted(connected - {first})
        self.rng.shuffle(others)
        holders = [*([first] if first in connected and first is not None else []), *others]
        update = None
        try:
            with self._fetching[digest]:
                update = await self.network.fetch(digest, holders, bytes_max=self.compute.update_bytes_max)
        finally:
            del self._fetching[digest]
        if update is not None:
            self._take(digest, update, self.network.peer_id)

    async def _report_held(self, want: WantUpdate, update: bytes) -> None:
        """Stored before it counts as held: from here on others may ask for it, and aggregation relies on it."""
        key = (want.round, want.author, want.update)
        if key in self._reporting:
            return
        self._reporting.add(key)
        try:
            await self._store_and_report(want, update)
        finally:
            self._reporting.discard(key)

    async def _store_and_report(self, want: WantUpdate, update: bytes) -> None:
        refusal = await self.workers.run(self.compute.refusal, update, want.round, want.author)
        if refusal is not None:
            self.event_log.refused[refusal] += 1
        else:
            await self.workers.finish(self.store.put_blob, want.update, update)
        await self.report(UpdateHeld(round=want.round, author=want.author, update=want.update, valid=refusal is None))
