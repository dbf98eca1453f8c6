"""From any one address that answers to a connection with every peer of the task.

1. Dial the bootstrap addresses and the peers remembered from before, again and again until they answer: they may start
   later than we do.
2. Once connected to anybody, ask connected peers through the Kademlia DHT for the peers nearest to ourselves, then to
   random keys, until the answers name nobody new; again at growing, jittered intervals, and at once when a stranger to
   us turns up: two halves that formed apart may have met.
3. Dial everybody found; once the members are known (`admit`), the members only, asking by id for who is missing.
4. Dial again, with backoff, whom we lose.  When one comes back the others are dialled at once: whatever cut it off
   is over.
5. Leave, and ask for, provider records of the task, in case the DHT has others in it who know nothing of the task.
   Twenty records per key, first come: who wants to can fill them with liars, so nothing depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import inf

import trio
from libp2p.abc import INetConn
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pdfl.base.types import Entropy
from p2pdfl.net.gossip.pubsub import Gossip
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.libp2p.dht import DhtGuard
from p2pdfl.net.limits.bounds import PEER_ID_BYTES_MAX, Limits
from p2pdfl.net.peers.address_book import AddressBook
from p2pdfl.net.peers.liveness import Liveness

MISSING_LOOKUPS_MAX = 8
"""Members looked up by id in one turn."""
FAILURES_BEFORE_LOOKUP = 3
"""Dials of a member in vain before somebody is asked whether it has moved."""


@dataclass
class _Dialled:
    due: float
    """On trio's clock."""
    failures: int = 0
    """Dials in vain since it was last connected."""
    flaps: int = 0
    """Connections in a row that did not last: who accepts us and hangs up must not be dialled at his pace."""
    in_flight: bool = False
    tried: int = 0
    """Addresses of it so far, one after the other and again from the first."""
    connected_since: float | None = None


@dataclass
class _Deaf:
    """A peer that is connected and does not follow the topic."""

    connections: list[INetConn]
    """At the last look."""
    since: float
    closed: int = 0


class Discovery:
    def __init__(
        self,
        host: BasicHost,
        gossip: Gossip,
        bootstrap: list[PeerInfo],
        address_book: AddressBook,
        *,
        task_key: bytes,
        entropy: Entropy,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        """bootstrap: grows with `dial`.  task_key: a multihash, under which the task's peers leave provider records."""
        self._host = host
        self._gossip = gossip
        # Members may well share a subnet; what keeps Sybils out is registration, not their addresses.
        self.dht = KadDHT(host, DHTMode.SERVER, max_peers_per_subnet=0)
        self.dht_guard = DhtGuard(host, self.dht, limits=limits, counters=counters)
        self._given = bootstrap
        self._bootstrap: dict[ID, list[Multiaddr]] = {}
        for info in bootstrap:
            self._take(info)
        self._address_book = address_book
        self._task_key = task_key
        self._found: dict[ID, None] = dict.fromkeys(address_book.peers())
        self._admitted: frozenset[ID] | None = None
        self._dialled: dict[ID, _Dialled] = {}
        self._woken = trio.Event()
        self._stranger_met = trio.Event()
        self._hurried_at = -limits.redial_s_max
        self._deaf: dict[ID, _Deaf] = {}
        self._entropy = entropy
        self._limits = limits
        self._counters = counters
        self._liveness = Liveness(host, jitter=self.jitter, limits=limits, counters=counters)

    def admit(self, peers: Collection[ID]) -> None:
        self._admitted = frozenset(peers)
        self._address_book.keep_only(self._admitted)
        self._found = {peer: None for peer in self._found if peer in self._admitted}
        self.wake()

    def wake(self) -> None:
        """A connection came or went."""
        self._woken.set()
        self._woken = trio.Event()

    def dial(self, info: PeerInfo) -> None:
        """From now on as if it had been a bootstrap address from the start."""
        self._given.append(info)
        self._take(info)
        if info.peer_id in self._dialled:
            self._dialled[info.peer_id].due = trio.current_time()
        self.wake()

    def _take(self, info: PeerInfo) -> None:
        if info.peer_id != self._host.get_id():
            self._bootstrap[info.peer_id] = list(dict.fromkeys([*self._bootstrap.get(info.peer_id, ()), *info.addrs]))

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_dialling)
            nursery.start_soon(self._keep_looking)
            nursery.start_soon(self._keep_meeting)
            nursery.start_soon(self._keep_providing)
            nursery.start_soon(self._keep_remembering)
            nursery.start_soon(self._keep_closing_deaf)
            nursery.start_soon(self._keep_room)
            nursery.start_soon(self._liveness.run)

    # --- dialling --------------------------------------------------------------------------------------------------

    async def _keep_dialling(self) -> None:
        # Who has failed waits apart: the many that are gone must not hold up the one that is there.
        first = trio.CapacityLimiter(self._limits.dials_at_once_max)
        again = trio.CapacityLimiter(self._limits.redials_at_once_max)
        async with trio.open_nursery() as nursery:
            while True:
                woken = self._woken
                now = trio.current_time()
                next_due = now + self._limits.redial_s_max
                for peer in self._wanted():
                    state = self._dialled.get(peer) or _Dialled(due=now + self._first_pause_s(peer))
                    self._dialled[peer] = state
                    if self._note_connection(peer, state, now) or state.in_flight or not self._addresses(peer):
                        continue
                    if state.due <= now:
                        state.in_flight = True
                        nursery.start_soon(self._dial, peer, state, again if state.failures else first)
                    else:
                        next_due = min(next_due, state.due)
                with trio.move_on_at(next_due):
                    await woken.wait()

    def _note_connection(self, peer: ID, state: _Dialled, now: float) -> bool:
        is_connected = adapter.is_connected(self._host, peer)
        if is_connected:
            self._connected(state)
        elif state.connected_since is not None:
            lasted_s, state.connected_since = now - state.connected_since, None
            state.flaps = 0 if lasted_s >= self._limits.redial_s_max else state.flaps + 1
            # The first loss costs no wait: who it is, and who dials, is settled by the ids.
            state.due = now + (self._pause_s(state) if state.flaps > 1 else self._first_pause_s(peer))
        return is_connected

    def _connected(self, state: _Dialled) -> None:
        if state.connected_since is None:
            state.connected_since = trio.current_time()
            if state.failures:
                self._hurry()
            state.failures = 0

    def _pause_s(self, state: _Dialled) -> float:
        doublings = min(max(state.failures + state.flaps - 1, 0), 16)
        return self.jitter(min(self._limits.redial_s * 2.0**doublings, self._limits.redial_s_max))

    def _hurry(self) -> None:
        """One that was lost is back: the others may well be.

        At most once in redial_s_max, for one that comes and goes must not make us dial at its pace.
        """
        now = trio.current_time()
        if now < self._hurried_at + self._limits.redial_s_max:
            return
        self._hurried_at = now
        for state in self._dialled.values():
            if state.failures:
                state.failures = 1
                state.due = min(state.due, now + self.jitter(self._limits.redial_s))
        self.wake()

    async def _dial(self, peer: ID, state: _Dialled, slots: trio.CapacityLimiter) -> None:
        async with slots:
            if peer not in self._wanted():  # it was named by a stranger, and the members are known now
                state.in_flight = False
                return
            connected = await self._try_addresses(peer, state)
        self._counters["dials" if connected else "dials failed"] += 1
        state.in_flight = False
        if connected:
            self._connected(state)  # it may be over before the loop looks
        else:
            state.failures += 1
            state.due = trio.current_time() + self._pause_s(state)
        self.wake()

    async def _try_addresses(self, peer: ID, state: _Dialled) -> bool:
        """Within dial_s in all if it never answered: ATTACK, a stranger names many peers at many dead addresses.  The
        next dial begins where this one ends, or one dead address would hide those that follow it."""
        addresses = self._addresses(peer)[: self._limits.addresses_per_peer_max]
        is_new = not self._is_trusted(peer)
        begin = state.tried % len(addresses) if is_new and addresses else 0
        with trio.move_on_after(self._limits.dial_s if is_new else inf):
            for address in [*addresses[begin:], *addresses[:begin]]:
                state.tried += 1
                if adapter.is_connected(self._host, peer):
                    return True
                if await adapter.dial(self._host, peer, [address], timeout_s=self._limits.dial_s):
                    if self._is_task_peer(peer):
                        self._address_book.worked(peer, address)
                    return True
        return adapter.is_connected(self._host, peer)

    def _wanted(self) -> list[ID]:
        """Bootstrap peers before others, then who was seen last; without ourselves."""
        peers = self._found if self._admitted is None else self._admitted
        return [peer for peer in dict.fromkeys([*self._bootstrap, *peers]) if peer != self._host.get_id()]

    def _is_task_peer(self, peer: ID) -> bool:
        return self._admitted is None or peer in self._admitted

    def _is_trusted(self, peer: ID) -> bool:
        """More than named: given by the operator, or connected once."""
        return peer in self._bootstrap or bool(self._address_book.addresses(peer))

    def _missing(self) -> list[ID]:
        """Members, or whoever was found while these are not known, that are not connected."""
        peers = self._found if self._admitted is None else self._admitted - {self._host.get_id()}
        return [peer for peer in peers if not adapter.is_connected(self._host, peer)]

    def _addresses(self, peer: ID) -> list[Multiaddr]:
        return list(
            dict.fromkeys(
                [
                    *self._bootstrap.get(peer, ()),
                    *self._address_book.addresses(peer),
                    *adapter.addresses_of(self._host, peer),
                ]
            )
        )

    def _first_pause_s(self, peer: ID) -> float:
        """Two that find each other at once would dial each other at once: the larger id waits."""
        if peer in self._bootstrap or self._host.get_id().to_bytes() < peer.to_bytes():
            return 0.0
        return self.jitter(self._limits.defer_dial_s)

    # --- lookups ---------------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        await self._connected_to_anybody()
        await trio.sleep(self.jitter(self._limits.lookup_s / 4))
        pause_s = self._limits.lookup_s
        while True:
            stranger_met = self._stranger_met
            found_somebody = await self._look_around()
            await self._look_up_missing()
            rest_s_max = self._limits.lookup_missing_s if self._missing() else self._limits.lookup_s_max
            pause_s = self._limits.lookup_s if found_somebody else min(2 * pause_s, rest_s_max)
            with trio.move_on_after(self.jitter(pause_s)):
                await self._lost_everybody_or(stranger_met)
                pause_s = self._limits.lookup_s
            # A burst of strangers is one occasion to ask, not many.
            await trio.sleep(self.jitter(self._limits.lookup_s / 2))

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
        self._counters["questions"] += 1
        try:
            named = await self.dht.peer_routing._query_peer_for_closest(peer, key)
        except Exception:  # noqa: BLE001 - a question fails on whatever its answer makes the library raise
            self._counters["contained: lookup"] += 1
            return
        for other in named:
            await self.meet(other)
        self.wake()

    async def _look_up_missing(self) -> None:
        """Asks a connected peer each for members without an address, or with one where they no longer are."""
        missing = [peer for peer in self._missing() if self._is_lost(peer)]
        offset = int.from_bytes(self._entropy(4), "big")
        for number in range(min(len(missing), MISSING_LOOKUPS_MAX)):
            connected = self._host.get_connected_peers()
            if not connected:
                break
            peer = missing[(offset + number) % len(missing)]
            await self._ask(connected[int.from_bytes(self._entropy(4), "big") % len(connected)], peer.to_bytes())

    def _is_lost(self, peer: ID) -> bool:
        state = self._dialled.get(peer)
        return not self._addresses(peer) or (state is not None and state.failures >= FAILURES_BEFORE_LOOKUP)

    async def meet(self, peer: ID) -> None:
        """Takes note of a peer that connected or was named, once an address of it is known."""
        addresses = adapter.addresses_of(self._host, peer)
        if peer == self._host.get_id() or not addresses or len(peer.to_bytes()) > PEER_ID_BYTES_MAX:
            return
        # ATTACK: names without end would keep us asking for more
        if peer not in self._found and self._is_task_peer(peer) and self._has_room():
            self._found[peer] = None
            self._stranger_met.set()
            self._stranger_met = trio.Event()
        # As shipped, only who asks the DHT something gets into its table, so a bootstrap would name few.
        await self.dht.routing_table.add_peer(PeerInfo(peer, addresses))

    def _has_room(self) -> bool:
        """ATTACK: a stranger may name any number of peers that are nowhere.  Who was dialled in vain makes room, but
        not whom we know from elsewhere, who may be back any moment."""
        if len(self._found) < self._limits.known_peers_max:
            return True
        for peer in self._found:
            state = self._dialled.get(peer)
            if state is not None and state.failures and not state.in_flight and not self._is_trusted(peer):
                del self._found[peer], self._dialled[peer]
                return True
        return False

    async def _keep_meeting(self) -> None:
        while True:
            changed = self._gossip.changed
            for peer in self._gossip.reachable():
                await self.meet(peer)
            await changed.wait()

    async def _connected_to_anybody(self) -> None:
        while not self._host.get_connected_peers():
            await self._woken.wait()

    async def _lost_everybody_or(self, happened: trio.Event) -> None:
        """Returns when connected again after having been alone, or when it happened."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while self._host.get_connected_peers():
                    await self._woken.wait()
                await self._connected_to_anybody()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await happened.wait()
            nursery.cancel_scope.cancel()

    # --- provider records ------------------------------------------------------------------------------------------

    async def _keep_providing(self) -> None:
        pause_s = self._limits.provide_first_s
        while True:
            await self._connected_to_anybody()
            await trio.sleep(self.jitter(pause_s))
            pause_s = min(2 * pause_s, self._limits.provide_s)
            for peer in await self._ask_for_providers():
                await adapter.send_provider_record(self.dht, peer, self._task_key, timeout_s=self._limits.dial_s)

    async def _ask_for_providers(self) -> list[ID]:
        """Asks peers nearer and nearer to the task's key.  Returns the nearest that answered."""
        near = [peer for peer in self._host.get_connected_peers() if adapter.is_connected(self._host, peer)]
        asked: list[ID] = []
        for _ in range(self._limits.provider_questions_max):
            untried = [peer for peer in near if peer not in asked]
            if not untried:
                break
            peer = sort_peer_ids_by_distance(self._task_key, untried)[0]
            asked.append(peer)
            providers, nearer = await adapter.ask_for_providers(
                self.dht, peer, self._task_key, timeout_s=self._limits.dial_s
            )
            for other in providers[: self._limits.known_peers_max]:
                await self.meet(other)
            near += [other for other in nearer if adapter.is_connected(self._host, other) and other not in near]
        self.wake()
        return sort_peer_ids_by_distance(self._task_key, asked)[: self._limits.provider_records_at]

    # --- memory ----------------------------------------------------------------------------------------------------

    async def _keep_remembering(self) -> None:
        try:
            while True:
                await trio.sleep(self.jitter(self._limits.remember_s))
                self._note_connected()
                if self._address_book.is_worth_writing:
                    await self._address_book.write()
        finally:
            self._note_connected()

    def _note_connected(self) -> None:
        for peer in self._gossip.reachable():
            self._address_book.announced(peer, adapter.addresses_of(self._host, peer))

    # --- silence ---------------------------------------------------------------------------------------------------

    async def _keep_closing_deaf(self) -> None:
        """A peer of the task that never said hello, or whose hello was lost, says none again: begin anew."""
        while True:
            await trio.sleep(self.jitter(self._limits.deaf_s / 4))
            now, reachable = trio.current_time(), self._gossip.reachable()
            deaf = [
                peer
                for peer in (self._found if self._admitted is None else self._admitted)
                if peer not in reachable and adapter.is_connected(self._host, peer)
            ]
            self._deaf = {peer: state for peer, state in self._deaf.items() if peer not in reachable}
            for peer in deaf:
                connections = adapter.connections_of(self._host, peer)
                state = self._deaf.setdefault(peer, _Deaf(connections, now))
                if not any(connection in state.connections for connection in connections):
                    state.since = now  # each connection is given its time
                state.connections = connections
                patience_s = min(self._limits.deaf_s * 2**state.closed, self._limits.deaf_s_max)
                if now - state.since > patience_s:
                    state.closed = min(state.closed + 1, 16)
                    self._counters["connections closed as deaf"] += 1
                    for connection in connections:
                        await adapter.abort(connection)

    # --- room ------------------------------------------------------------------------------------------------------

    async def _keep_room(self) -> None:
        while True:
            woken = self._woken
            surplus = self._surplus()
            self._counters["connections closed for room"] += len(surplus)
            async with trio.open_nursery() as nursery:
                for connection in surplus:
                    nursery.start_soon(adapter.abort, connection)
            if not surplus:
                await woken.wait()

    def _surplus(self) -> list[INetConn]:
        surplus: list[INetConn] = []
        strangers: list[INetConn] = []
        for peer in self._host.get_connected_peers():
            connections = adapter.connections_of(self._host, peer)
            allowed = self._limits.connections_per_peer_max
            surplus += connections[:-allowed]  # the newest is the likeliest to be alive at both ends
            if peer not in self._bootstrap and peer not in (self._admitted or ()):
                strangers += connections[-allowed:]
        while len(strangers) > self._limits.strangers_max:
            surplus.append(strangers.pop(int.from_bytes(self._entropy(4), "big") % len(strangers)))
        return surplus

    def jitter(self, seconds: float) -> float:
        """Between half and one and a half of it."""
        return seconds * (0.5 + int.from_bytes(self._entropy(4), "big") / 2**32)
