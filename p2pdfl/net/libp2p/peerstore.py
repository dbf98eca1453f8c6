"""What is remembered of peers, bounded.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped: above 1000 peers those without addresses are forgotten first, which is ourselves, with our private key, and
then whoever was known first; one peer may have any number of addresses, and a signed record of any length; and
what a third party says about a peer's addresses is added to what that peer signed; and
what is named need be no address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from libp2p.kad_dht import utils as dht_utils
from libp2p.peer.envelope import Envelope, consume_envelope
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerdata import PeerData
from libp2p.peer.peerstore import PeerRecordState, PeerStore
from libp2p.pubsub import utils as pubsub_utils
from multiaddr import Multiaddr

from p2pdfl.net.addresses import is_dialable
from p2pdfl.net.limits.bounds import ADDRESS_BYTES_MAX, ADDRESS_RECORD_BYTES_MAX, PEER_ID_BYTES_MAX

SCANNED_PER_KEPT = 4


def repair() -> None:
    """Records that are too long are refused before they are parsed, which takes 10 us for each address."""
    for module in (dht_utils, pubsub_utils):
        module.consume_envelope = _consume_envelope  # type: ignore[attr-defined]


class BoundedPeerStore(PeerStore):
    def __init__(self, own_id: ID, *, peers_max: int, addresses_max: int) -> None:
        super().__init__(max_records=peers_max, max_peers=peers_max)
        self._own_id = own_id
        self._addresses_max = addresses_max
        self.protected: frozenset[ID] = frozenset()
        """Peers that are not forgotten."""
        self.is_connected: Callable[[ID], bool] = lambda peer: False

    def _enforce_peer_limit(self) -> None:
        surplus = len(self.peer_data_map) - self.max_peers
        if surplus <= 0:
            return
        for peer in list(islice((peer for peer in self.peer_data_map if self._is_forgettable(peer)), surplus)):
            del self.peer_data_map[peer]
            self.peer_record_map.pop(peer, None)

    def _is_forgettable(self, peer: ID) -> bool:
        return peer != self._own_id and peer not in self.protected and not self.is_connected(peer)

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        record = envelope.record()
        peer, known = record.peer_id, self.peer_record_map.get(record.peer_id)
        if ID.from_pubkey(envelope.public_key) != peer or (known is not None and known.seq > record.seq):
            return False
        self.peer_record_map[peer] = PeerRecordState(envelope, record.seq)
        self._set_addresses(peer, list(dict.fromkeys(record.addrs)), ttl)
        return True

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Hearsay: ignored about a peer that signed its addresses; else the last that were heard are kept."""
        # ATTACK: 47 KB of an id take seconds to become text
        if len(peer_id.to_bytes()) > PEER_ID_BYTES_MAX:
            return
        if self.get_peer_record(peer_id) is not None:
            return
        known = self.peer_data_map[peer_id].addrs if peer_id in self.peer_data_map else []
        self._set_addresses(peer_id, list(dict.fromkeys([*known, *addrs])), ttl)

    def _set_addresses(self, peer_id: ID, addresses: list[Multiaddr], ttl: int) -> None:
        data = self.peer_data_map.setdefault(peer_id, PeerData())
        # the last ones, and of a list without end not all are looked at
        last = addresses[: -SCANNED_PER_KEPT * self._addresses_max - 1 : -1]
        usable = (one for one in last if len(one.to_bytes()) <= ADDRESS_BYTES_MAX and is_dialable(one))
        data.addrs = list(islice(usable, self._addresses_max))[::-1]
        data.set_ttl(ttl)
        data.update_last_identified()
        self._enforce_peer_limit()


def _consume_envelope(data: bytes, domain: str) -> tuple[Envelope, PeerRecord]:
    if len(data) > ADDRESS_RECORD_BYTES_MAX:
        raise ValueError("address record too long")
    return consume_envelope(data, domain)
