"""From one bootstrap address to a connection with every peer of the task.

1. Dial the bootstrap addresses, again and again until they answer: they may start later than we do.
2. Once connected to anybody, ask connected peers through the Kademlia DHT for the peers nearest to ourselves, then to
   random keys, until the answers name nobody new; again at growing, jittered intervals.
3. Dial everybody found; once the members are known (`admit`), the members only, looking up by id who is missing.
4. Dial again, with backoff, whom we lose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pdfl.net import adapter
from p2pdfl.net.limits import Limits
from p2pdfl.net.pubsub import Gossip
from p2pdfl.types import Entropy

MISSING_LOOKUPS_MAX = 8
"""Members looked up by id in one turn."""


@dataclass
class _Dialled:
    due: float
    """On trio's clock."""
    failures: int = 0
    in_flight: bool = False


class Discovery:
    def __init__(
        self,
        host: BasicHost,
        gossip: Gossip,
        bootstrap: Sequence[PeerInfo],
        *,
        entropy: Entropy,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        self._host = host
        self._gossip = gossip
        # Members may well share a subnet; what keeps Sybils out is registration, not their addresses.
        self.dht = KadDHT(host, DHTMode.SERVER, max_peers_per_subnet=0, enable_providers=False, enable_values=False)
        self._bootstrap = {info.peer_id: list(info.addrs) for info in bootstrap if info.peer_id != host.get_id()}
        self._found: dict[ID, None] = {}
        self._admitted: frozenset[ID] | None = None
        self._dialled: dict[ID, _Dialled] = {}
        self._woken = trio.Event()
        self._entropy = entropy
        self._limits = limits
        self._counters = counters

    def admit(self, peers: Collection[ID]) -> None:
        self._admitted = frozenset(peers)
        self.wake()

    def wake(self) -> None:
        """A connection came or went."""
        self._woken.set()
        self._woken = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_dialling)
            nursery.start_soon(self._keep_looking)
            nursery.start_soon(self._keep_meeting)
            nursery.start_soon(self._keep_checking)

    # --- dialling --------------------------------------------------------------------------------------------------

    async def _keep_dialling(self) -> None:
        slots = trio.CapacityLimiter(self._limits.dials_at_once_max)
        async with trio.open_nursery() as nursery:
            while True:
                woken = self._woken
                now = trio.current_time()
                next_due = now + self._limits.redial_s_max
                for peer in self._wanted():
                    if adapter.is_connected(self._host, peer):
                        self._dialled.pop(peer, None)
                        continue
                    state = self._dialled.setdefault(peer, _Dialled(due=now + self._first_pause_s(peer)))
                    if state.in_flight:
                        continue
                    if state.due <= now:
                        state.in_flight = True
                        nursery.start_soon(self._dial, peer, state, slots)
                    else:
                        next_due = min(next_due, state.due)
                with trio.move_on_at(next_due):
                    await woken.wait()

    async def _dial(self, peer: ID, state: _Dialled, slots: trio.CapacityLimiter) -> None:
        async with slots:
            addresses = self._addresses(peer)[: self._limits.addresses_per_peer_max]
            connected = await adapter.dial(self._host, peer, addresses, timeout_s=self._limits.dial_s)
        self._counters["dials" if connected else "dials failed"] += 1
        state.in_flight = False
        pause_s = min(self._limits.redial_s * 2.0 ** min(state.failures, 16), self._limits.redial_s_max)
        state.failures += 1
        state.due = trio.current_time() + self._jitter(pause_s)
        self.wake()

    def _wanted(self) -> list[ID]:
        """Bootstrap peers before others; without ourselves."""
        peers = self._found if self._admitted is None else self._admitted
        return [peer for peer in dict.fromkeys([*self._bootstrap, *peers]) if peer != self._host.get_id()]

    def _addresses(self, peer: ID) -> list[Multiaddr]:
        return list(dict.fromkeys([*self._bootstrap.get(peer, ()), *adapter.addresses_of(self._host, peer)]))

    def _first_pause_s(self, peer: ID) -> float:
        """Two that find each other at once would dial each other at once: the larger id waits."""
        if peer in self._bootstrap or self._host.get_id().to_bytes() < peer.to_bytes():
            return 0.0
        return self._jitter(self._limits.defer_dial_s)

    # --- lookups ---------------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        await self._connected_to_anybody()
        await trio.sleep(self._jitter(self._limits.lookup_s / 4))
        pause_s = self._limits.lookup_s
        while True:
            found_somebody = await self._look_around()
            await self._look_up_missing()
            pause_s = self._limits.lookup_s if found_somebody else min(2 * pause_s, self._limits.lookup_s_max)
            with trio.move_on_after(self._jitter(pause_s)):
                await self._lost_everybody()
                pause_s = self._limits.lookup_s

    async def _look_around(self) -> bool:
        """Asks one connected peer after another, first for our own neighbourhood, until two in a row name nobody new.

        A full Kademlia lookup ends only when it has asked everybody near, which with a few dozen peers is everybody:
        it was measured to cost all the CPU that 16 joining peers had.
        """
        key = self._host.get_id().to_bytes()
        known = len(self._found)
        in_vain = 0
        for _ in range(self._limits.questions_per_lookup_max):
            connected = self._host.get_connected_peers()
            if not connected or in_vain == 2:
                break
            before = len(self._found)
            await self._ask(connected[int.from_bytes(self._entropy(4), "big") % len(connected)], key)
            in_vain = 0 if len(self._found) > before else in_vain + 1
            key = self._entropy(32)
        return len(self._found) > known

    async def _ask(self, peer: ID, key: bytes) -> None:
        """The peers nearest to key that this peer knows, at most 20."""
        try:
            named = await self.dht.peer_routing._query_peer_for_closest(peer, key)
        except Exception:  # noqa: BLE001 - a question fails on whatever its answer makes the library raise
            self._counters["contained: lookup"] += 1
            return
        for other in named:
            await self.meet(other)
        self.wake()

    async def _look_up_missing(self) -> None:
        """Members without a known address, each by a full lookup."""
        missing = [
            peer for peer in self._wanted() if not adapter.is_connected(self._host, peer) and not self._addresses(peer)
        ]
        for peer in missing[:MISSING_LOOKUPS_MAX]:
            try:
                await self.dht.peer_routing.find_closest_peers_network(peer.to_bytes())
            except Exception:  # noqa: BLE001 - as above
                self._counters["contained: lookup"] += 1
            await self.meet(peer)
        if missing:
            self.wake()

    async def meet(self, peer: ID) -> None:
        """Takes note of a peer that connected or was named, once an address of it is known."""
        addresses = adapter.addresses_of(self._host, peer)
        if peer == self._host.get_id() or not addresses:
            return
        if len(self._found) < self._limits.known_peers_max:
            self._found[peer] = None
        # As shipped, only who asks the DHT something gets into its table, so a bootstrap would name few.
        await self.dht.routing_table.add_peer(PeerInfo(peer, addresses))

    async def _keep_meeting(self) -> None:
        while True:
            changed = self._gossip.changed
            for peer in self._gossip.reachable():
                await self.meet(peer)
            await changed.wait()

    async def _connected_to_anybody(self) -> None:
        while not self._host.get_connected_peers():
            await self._woken.wait()

    async def _lost_everybody(self) -> None:
        while self._host.get_connected_peers():
            await self._woken.wait()
        await self._connected_to_anybody()

    # --- silence ---------------------------------------------------------------------------------------------------

    async def _keep_checking(self) -> None:
        silent = adapter.SilentConnections(self._host, silent_s=self._limits.silent_s)
        while True:
            await trio.sleep(self._jitter(self._limits.silent_s / 4))
            self._counters["connections closed as silent"] += await silent.close()

    def _jitter(self, seconds: float) -> float:
        """Between half and one and a half of it."""
        return seconds * (0.5 + int.from_bytes(self._entropy(4), "big") / 2**32)
