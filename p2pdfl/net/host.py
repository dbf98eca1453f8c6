"""One peer's network: a libp2p host, gossip, requests and blobs, opened and closed as one.

A peer is named by its libp2p peer id in base58 text, as ASCII bytes: what the contract stores.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pdfl.net import adapter
from p2pdfl.net.addresses import CIRCUIT, announced_address, bootstrap_peer, listen_address, relay_of, relay_peer
from p2pdfl.net.blobs import Blobs, BlobSource
from p2pdfl.net.circuit import HOP, STOP, Behind, CircuitTransport, Relaying
from p2pdfl.net.discovery import Discovery
from p2pdfl.net.limits import Limits
from p2pdfl.net.pubsub import Gossip
from p2pdfl.net.reachability import DialBack
from p2pdfl.net.requests import Handle, Requests
from p2pdfl.types import Entropy


def holds_nothing(digest: bytes) -> bytes | None:
    return None


@asynccontextmanager
async def open_network(
    *,
    key_seed: bytes,
    listen: Sequence[str],
    bootstrap: Sequence[str],
    topic: str,
    blob_source: BlobSource = holds_nothing,
    announce: Sequence[str] = (),
    via: Sequence[str] = (),
    relay: bool = False,
    entropy: Entropy = secrets.token_bytes,
    limits: Limits | None = None,
) -> AsyncIterator[Network]:
    """Listens, dials, looks for peers and gossips until the block ends; then closes within `limits.close_s`.

    key_seed: 32 bytes.  listen, announce: multiaddrs without a peer id; bootstrap: with /p2p/<peer id>.
    via: relays, as bootstrap; others can dial this peer through them.  relay: whether to be one.
    Raises ValueError for an address it cannot read, OSError for one it cannot listen on.
    """
    limits = limits or Limits()
    counters: Counter[str] = Counter()
    listen_on = [listen_address(text) for text in listen]
    announced = [announced_address(text) for text in announce]
    relays = [*via, *(through for text in bootstrap if (through := relay_of(text)))]
    bootstrap_peers = [bootstrap_peer(text) for text in bootstrap] + [relay_peer(text) for text in relays]
    circuits = CircuitTransport()
    host = adapter.create_host(
        key_seed,
        connections_max=limits.connections_max,
        counters=counters,
        announce=announced,
        circuits=[Multiaddr(f"{text}{CIRCUIT}") for text in via],
        transports=[circuits],
    )
    circuits.host = host
    network = Network(host, topic, blob_source, limits=limits, counters=counters)
    if relay:
        network.relay()
    behind = network.behind(via)
    discovery = Discovery(host, network._gossip, bootstrap_peers, entropy=entropy, limits=limits, counters=counters)
    network._discovery = discovery
    ready, closing = trio.Event(), trio.Event()
    raised: Exception | None = None

    async def run_library() -> None:
        nonlocal raised
        # Shielded: a cancelled libp2p leaves its sockets open, so what cancels us only starts an orderly close.
        with trio.CancelScope(shield=True) as scope:
            async with (
                adapter.running(adapter.swarm_of(host), counters),
                adapter.running(network._gossip, counters),
                adapter.running(network._gossip.mesh, counters),
                adapter.running(discovery.dht, counters),
            ):
                try:
                    found = await adapter.listen(host, listen_on)
                except OSError as error:
                    raised = error
                else:
                    announced[:] = announced or found
                    await network._gossip.wait_until_ready()
                    await network._gossip.subscribe(topic)
                    adapter.swarm_of(host).register_notifee(_Waker(discovery))
                    ready.set()
                    await closing.wait()
                scope.deadline = trio.current_time() + limits.close_s
                ready.set()
                await adapter.close(host)

    looking = trio.CancelScope()

    async def look_for_peers() -> None:
        with looking:
            async with trio.open_nursery() as inner:
                inner.start_soon(discovery.run)
                inner.start_soon(behind.keep_reserved)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_library)
        try:
            await ready.wait()
            if raised is None:
                nursery.start_soon(look_for_peers)
                yield network
        except Exception as error:  # noqa: BLE001 - raised again below, not wrapped in a group
            raised = error
        finally:
            closing.set()
            looking.cancel()
    if raised is not None:
        raise raised


class Network:
    """Use from the trio task tree that opened it."""

    _discovery: Discovery

    def __init__(
        self, host: BasicHost, topic: str, blob_source: BlobSource, *, limits: Limits, counters: Counter[str]
    ) -> None:
        self._host = host
        self._gossip = Gossip(host, topic, limits=limits, counters=counters)
        self._requests = Requests(host, self._gossip.is_admitted, limits=limits, counters=counters)
        self._blobs = Blobs(self._requests, blob_source, limits=limits, counters=counters)
        self.counters = counters
        """bytes_sent and bytes_received at the socket, messages and copies of gossip, `refused: <reason>`,
        `contained: <where>`."""
        self.incoming = self._gossip.incoming
        """Gossip of others, each message once.  If it is not taken, it is dropped and counted."""
        self.peer_id: bytes = host.get_id().to_base58().encode()
        self.limits = limits
        DialBack(self, limits=limits, counters=counters)

    @property
    def addresses(self) -> list[str]:
        """What others may dial, each with /p2p/<peer id>."""
        return [str(address) for address in self._host.get_addrs()]

    @property
    def listening(self) -> list[str]:
        """The sockets' own addresses, wildcards as such."""
        return [str(address) for address in self._host.get_transport_addrs()]

    def admit(self, peer_ids: Collection[bytes]) -> None:
        """From now only these author gossip and send requests.  Before the first call everyone may.

        Raises ValueError for what is not a peer id.
        """
        peers = [_peer(text) for text in peer_ids]
        self._gossip.admit(peers)
        self._discovery.admit(peers)

    def connected(self) -> set[bytes]:
        """Admitted peers that gossip reaches directly."""
        return {peer.to_base58().encode() for peer in self._gossip.reachable()}

    def known(self) -> dict[bytes, list[str]]:
        """Whom others have named, with the addresses that they gave."""
        peers = self._host.get_peerstore().peers_with_addrs()
        return {
            peer.to_base58().encode(): [str(address) for address in adapter.addresses_of(self._host, peer)]
            for peer in peers
            if peer != self._host.get_id()
        }

    async def speaks(self, peer_id: bytes, protocol: str) -> bool:
        """Whether a connected peer agrees on the protocol."""
        try:
            with trio.move_on_after(self.limits.dial_s):
                await adapter.reset_quietly(await adapter.open_stream(self._host, _peer(peer_id), protocol))
                return True
        except (SwarmException, StreamFailure):
            pass
        return False

    def relay(self) -> None:
        """Passes on for others from now, within the limits."""
        relaying = Relaying(
            lambda: self._host, lambda peer: self._gossip.is_admitted(peer), limits=self.limits, counters=self.counters
        )
        self._requests.accept(HOP, relaying.serve)

    def behind(self, relays: Sequence[str]) -> Behind:
        behind = Behind(lambda: self._host, relays, limits=self.limits)
        if relays:
            self._requests.accept(STOP, behind.accept)
        return behind

    def remote_ips(self, peer_id: bytes) -> set[str]:
        """The IP addresses that the peer's connections come from, relayed ones apart."""
        return adapter.remote_ips(self._host, _peer(peer_id))

    async def wait_connected(self, count: int) -> None:
        """Until at least count peers are `connected`."""
        while len(self._gossip.reachable()) < count:
            await self._gossip.changed.wait()

    async def publish(self, data: bytes) -> None:
        """Raises ValueError above `limits.message_bytes_max`.  Never waits for a slow peer."""
        await self._gossip.send(data)

    async def request(
        self, peer_id: bytes, protocol: str, request: bytes, *, reply_bytes_max: int, timeout_s: float
    ) -> bytes:
        """Raises Unreachable, Refused; ValueError for what is not a peer id."""
        return await self._requests.request(
            _peer(peer_id), protocol, request, reply_bytes_max=reply_bytes_max, timeout_s=timeout_s
        )

    def serve(self, protocol: str, handle: Handle, *, request_bytes_max: int) -> None:
        """handle(peer_id, request) -> reply.  If it raises, that stream is reset and nothing else happens."""
        self._requests.serve(protocol, handle, request_bytes_max=request_bytes_max)

    async def fetch(self, digest: bytes, holders: Sequence[bytes], *, bytes_max: int) -> bytes | None:
        """The blob with this sha256, from the first holder that has it; None if none has."""
        return await self._blobs.fetch(digest, [_peer(text) for text in holders], bytes_max=bytes_max)


class _Waker(INotifee):
    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._discovery.wake()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._discovery.wake()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass


def is_peer_id(text: bytes) -> bool:
    try:
        _peer(text)
    except ValueError:
        return False
    return True


def _peer(text: bytes) -> ID:
    try:
        peer = ID.from_base58(text.decode("ascii"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a peer id in base58") from error
    if not peer.to_bytes():
        raise ValueError(f"{text!r} is not a peer id in base58")
    return peer
