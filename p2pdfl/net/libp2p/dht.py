"""The DHT's streams, bounded.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped twelve streams on which nothing is asked keep everybody from asking; a message may have 4 MB; anybody may
leave 50,000 values of 1 MB, although values are switched off, and provider records of any number of keys; and a full
bucket of the routing table dials its oldest peer, at whatever addresses a stranger gave for it, while a question waits.
"""

from __future__ import annotations

from collections import Counter

import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht import kad_dht, peer_routing, provider_store
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import KBucket
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from p2pdfl.net.limits.bounds import DHT_MESSAGE_BYTES_MAX, DHT_PROVIDED_KEYS_MAX, DHT_PROVIDER_ADDRESSES_MAX, Limits


def repair() -> None:
    for module in (kad_dht, peer_routing, provider_store):
        module.MAX_DHT_MESSAGE_SIZE = DHT_MESSAGE_BYTES_MAX  # type: ignore[attr-defined]
    KBucket._ping_peer = _is_connected  # type: ignore[method-assign]
    ValueStore.put_record = _keep_nothing  # type: ignore[method-assign]
    ProviderStore.add_provider = _add_provider  # type: ignore[method-assign]


class DhtGuard:
    """Stands before the DHT's stream handler."""

    def __init__(self, host: BasicHost, dht: KadDHT, *, limits: Limits, counters: Counter[str]) -> None:
        self._dht = dht
        self._limits = limits
        self._counters = counters
        self._open: Counter[ID] = Counter()
        dht._inbound_limiter.total_tokens = limits.dht_streams_max + 1
        host.set_stream_handler(PROTOCOL_ID, self._handle)

    async def _handle(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        of_peer, of_all = self._open[peer], self._open.total()
        if of_peer >= self._limits.dht_streams_per_peer_max or of_all >= self._limits.dht_streams_max:
            self._counters["refused: too many DHT streams"] += 1
            return await stream.reset()
        self._open[peer] += 1
        try:
            with trio.move_on_after(self._limits.dht_stream_s):
                return await self._dht.handle_stream(stream)
            self._counters["refused: DHT stream too slow"] += 1
            await stream.reset()
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


def _keep_nothing(self: ValueStore, key: bytes, record: object) -> None:
    pass


_add_provider_unbounded = ProviderStore.add_provider


def _add_provider(self: ProviderStore, key: bytes, provider: PeerInfo) -> None:
    """Beyond the bound the oldest key goes that we do not provide ourselves."""
    _add_provider_unbounded(self, key, PeerInfo(provider.peer_id, list(provider.addrs[-DHT_PROVIDER_ADDRESSES_MAX:])))
    if len(self.providers) > DHT_PROVIDED_KEYS_MAX:
        own = str(self.host.get_id())
        others = (known for known, providers in self.providers.items() if own not in providers)
        self.providers.pop(next(others, key))


async def _is_connected(self: KBucket, peer_id: ID) -> bool:
    return peer_id in self.host.get_connected_peers()
