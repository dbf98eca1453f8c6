"""Who may do how much here: rates, and the refusal of who has offended (`peer_score`).

Members are judged by their id only, wherever they come from: who shares an address with an attacker loses nothing but
a place in the line of new connections, which has a bound there too.
Strangers make up ids at will, so an address that brought many bad ones is refused too; as a member may be behind it,
a trickle of its handshakes is still done, and who turns out to be a member comes in.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Collection

import trio
from libp2p.peer.id import ID

from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.peer_score import OFFENCES, REFUSE_AT, PeerScores, Sentence
from p2pdfl.net.limits.rates import PASS_ON, Buckets, Rate

MEMBER_ADDRESSES_MAX = 1024


class ResourceManager:
    def __init__(
        self, *, limits: Limits, counters: Counter[str], clock: Callable[[], float] = trio.current_time
    ) -> None:
        self.on_refused: Callable[[ID], None] = lambda peer: None
        """Called when a peer gets refused: to cut its connections."""
        self.addresses_of: Callable[[ID], Collection[str]] = lambda peer: ()
        """The addresses that a peer is connected from."""
        self._limits = limits
        self._counters = counters
        self._clock = clock
        self._members: frozenset[ID] | None = None
        sentence = Sentence(
            half_life_s=limits.offence_half_life_s,
            refuse_s=limits.refuse_s,
            refuse_s_max=limits.refuse_s_max,
            forgive_s=limits.forgive_s,
        )
        of_addresses = Sentence(
            half_life_s=limits.bad_strangers_half_life_s,
            refuse_s=limits.refuse_s,
            refuse_s_max=limits.refuse_s_max,
            forgive_s=limits.forgive_s,
        )
        self._peers = PeerScores[ID](sentence, tracked_max=limits.tracked_peers_max)
        self._addresses = PeerScores[str](of_addresses, tracked_max=limits.tracked_peers_max)
        self._member_addresses: dict[str, None] = {}
        """Where members have been seen; the oldest goes first."""
        self._gossip_messages = self._buckets(limits.gossip_messages)
        self._gossip_bytes = self._buckets(limits.gossip_bytes)
        self._own_messages = self._buckets(limits.own_messages)
        self._relayed_messages = self._buckets(limits.own_messages)
        self._passed_messages = self._buckets(limits.gossip_messages.times(PASS_ON))
        self._passed_bytes = self._buckets(limits.gossip_bytes.times(PASS_ON))
        self._streams = self._buckets(limits.streams)
        self._served_bytes = self._buckets(limits.served_bytes)
        self._handshakes = Buckets[str](limits.handshakes, names_max=limits.tracked_peers_max)
        self._member_handshakes = Buckets[str](limits.handshakes_of_members, names_max=limits.tracked_peers_max)
        self._refused_handshakes = Buckets[str](limits.handshakes_of_refused, names_max=limits.tracked_peers_max)

    def _buckets(self, rate: Rate) -> Buckets[ID]:
        return Buckets[ID](rate, names_max=self._limits.tracked_peers_max)

    def admit(self, members: Collection[ID]) -> None:
        self._members = frozenset(members)
        self._peers.keep(self._members)
        for peer in self._members:
            for address in self.addresses_of(peer):
                self._remember_member_address(address)

    # --- offences --------------------------------------------------------------------------------------------------

    def blame(self, peer: ID, reason: str) -> None:
        """Counts an offence, if this reason is one."""
        weight = OFFENCES.get(reason)
        if weight is None:
            return
        self._counters[f"offence: {reason}"] += 1
        if not self._peers.add(peer, weight, self._clock()):
            return
        self._counters["peers refused"] += 1
        if not self.is_member(peer):
            for address in self.addresses_of(peer):
                # the last of so many tips it, though the first have decayed a little
                weight = REFUSE_AT / (self._limits.bad_strangers_per_address - 0.5)
                if self._addresses.add(address, weight, self._clock()):
                    self._counters["addresses refused"] += 1
        self.on_refused(peer)

    def is_refused(self, peer: ID) -> bool:
        return self._peers.is_refused(peer, self._clock())

    def is_member(self, peer: ID) -> bool:
        return self._members is not None and peer in self._members

    def refused_peers(self) -> list[ID]:
        return self._peers.refused(self._clock())

    def refused_addresses(self) -> list[str]:
        return self._addresses.refused(self._clock())

    # --- rates -----------------------------------------------------------------------------------------------------

    def may_shake_hands(self, address: str) -> bool:
        """address: `group`ed, of a new connection whose peer is not known yet."""
        now_s = self._clock()
        if address in self._member_addresses:
            return self._member_handshakes.take(address, 1, now_s)
        if self._addresses.is_refused(address, now_s):
            return self._refused_handshakes.take(address, 1, now_s)
        return self._handshakes.take(address, 1, now_s)

    def may_stay(self, peer: ID, address: str | None) -> bool:
        """Once the handshake has told who it is."""
        if self.is_refused(peer):
            return False
        if self.is_member(peer):
            self._remember_member_address(address)
            return True
        return address is None or not self._addresses.is_refused(address, self._clock())

    def takes_gossip_bytes(self, forwarder: ID, size: int) -> bool:
        return self._gossip_bytes.take(forwarder, size, self._clock())

    def takes_gossip_messages(self, forwarder: ID, count: int) -> bool:
        return self._gossip_messages.take(forwarder, count, self._clock())

    def takes_own_message(self, author: ID) -> bool:
        """Of an author who sends it itself."""
        return self._own_messages.take(author, 1, self._clock())

    def takes_relayed_message(self, author: ID) -> bool:
        """That it signed and another sends.  A bucket of its own: who replays what the author once said must not use up
        what it has to say itself."""
        return self._relayed_messages.take(author, 1, self._clock())

    def may_pass_on(self, to: ID, size: int) -> bool:
        """What this node may pass on and not be taken for a flooder (`rates`)."""
        now_s = self._clock()
        if not self._passed_messages.has(to, 1, now_s) or not self._passed_bytes.take(to, size, now_s):
            return False
        return self._passed_messages.take(to, 1, now_s)

    def sends_own(self, to: ID, size: int) -> None:
        """Own messages always go, and count."""
        now_s = self._clock()
        self._passed_messages.owe(to, 1, now_s)
        self._passed_bytes.owe(to, size, now_s)

    def takes_stream(self, peer: ID) -> bool:
        return self._streams.take(peer, 1, self._clock())

    def serve_after_s(self, peer: ID, size: int) -> float:
        """For how long a reply has to wait."""
        return self._served_bytes.owe(peer, size, self._clock())

    def _remember_member_address(self, address: str | None) -> None:
        if address is None:
            return
        self._member_addresses.pop(address, None)
        self._member_addresses[address] = None
        if len(self._member_addresses) > MEMBER_ADDRESSES_MAX:
            self._member_addresses.pop(next(iter(self._member_addresses)))


def group(address: str) -> str:
    """What one attacker is assumed to own: an IPv4 address, or an IPv6 network of 2^64."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False).network_address)
        return str(found.ipv4_mapped)
    return str(found)
