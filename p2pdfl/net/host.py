"""One peer's network: a libp2p host, gossip, requests and blobs, opened and closed as one.

A peer is named by its libp2p peer id in base58 text, as ASCII bytes: what the contract stores.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pdfl.base.types import Entropy
from p2pdfl.net.addresses import CIRCUIT, announced_address, bootstrap_peer, listen_address, relay_of, relay_peer
from p2pdfl.net.blobs.service import Blobs, BlobSource
from p2pdfl.net.gossip.pubsub import Gossip
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.libp2p.connection_gater import ConnectionGater
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.listeners import Listeners
from p2pdfl.net.limits.resource_manager import ResourceManager
from p2pdfl.net.peers.address_book import AddressBook
from p2pdfl.net.peers.circuit import HOP, STOP, Behind, CircuitTransport, Relaying
from p2pdfl.net.peers.discovery import Discovery
from p2pdfl.net.peers.reachability import DialBack
from p2pdfl.net.requests import Handle, Requests

SHA256_MULTIHASH = b"\x12\x20"
"""What a sha256 digest starts with as a multihash."""

logger = logging.getLogger(__name__)


def holds_nothing(digest: bytes) -> bytes | None:
    return None


class NetworkFailed(Exception):
    """py-libp2p failed as a whole, again and again."""


@asynccontextmanager
async def open_network(
    *,
    key_seed: bytes,
    listen: Sequence[str],
    bootstrap: Sequence[str],
    topic: str,
    blob_source: BlobSource = holds_nothing,
    announce: Sequence[str] = (),
    address_book: Path | None = None,
    via: Sequence[str] = (),
    relay: bool = False,
    entropy: Entropy = secrets.token_bytes,
    limits: Limits | None = None,
) -> AsyncIterator[Network]:
    """Listens, dials, looks for peers and gossips until the block ends; then closes within `Limits.close_s`.

    When the library fails as a whole it is started again, with the same key, addresses, members and handlers, and the
    same Network goes on; meanwhile publications are dropped and requests raise Unreachable.

    key_seed: 32 bytes.  listen, announce: multiaddrs without a peer id; bootstrap: with /p2p/<peer id>.
    via: relays, as bootstrap; others can dial this peer through them.  relay: whether to be one.
    address_book: a file for the peers met, tried first when the same file is given again.
    Raises ValueError for an address it cannot read, OSError for one it cannot listen on, NetworkFailed.
    """
    limits = limits or Limits()
    relays = [*via, *(through for text in bootstrap if (through := relay_of(text)))]
    supervisor = _Supervisor(
        key_seed=key_seed,
        topic=topic,
        blob_source=blob_source,
        listen_on=[listen_address(text) for text in listen],
        announced=[announced_address(text) for text in announce],
        bootstrap=[bootstrap_peer(text) for text in bootstrap] + [relay_peer(text) for text in relays],
        via=via,
        address_book=address_book,
        entropy=entropy,
        limits=limits,
    )
    if relay:
        supervisor.network.relay()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.keep_living, nursery.cancel_scope)
        try:
            await supervisor.ready.wait()
            if supervisor.raised is None:
                yield supervisor.network
        except Exception as error:  # noqa: BLE001 - raised again below, not wrapped in a group
            supervisor.raised = error
        finally:
            supervisor.closing.set()
    if supervisor.raised is not None:
        raise supervisor.raised


class _Supervisor:
    """Starts the library, again when it has failed, and closes it."""

    def __init__(
        self,
        *,
        key_seed: bytes,
        topic: str,
        blob_source: BlobSource,
        listen_on: list[Multiaddr],
        announced: list[Multiaddr],
        bootstrap: list[PeerInfo],
        via: Sequence[str],
        address_book: Path | None,
        entropy: Entropy,
        limits: Limits,
    ) -> None:
        self.ready, self.closing = trio.Event(), trio.Event()
        self.raised: Exception | None = None
        """What the block of `open_network` ends with."""
        self._key_seed = key_seed
        self._topic = topic
        self._listen_on = listen_on
        self._announced = announced
        self._announces_what_it_listens_on = not announced
        self._bootstrap = bootstrap
        self._via = via
        self._entropy = entropy
        self._limits = limits
        self._counters: Counter[str] = Counter()
        self._address_book = AddressBook(address_book, self._counters)
        self._deaths: deque[float] = deque()
        self.network = Network(
            self._create_host(), topic, blob_source, entropy=entropy, limits=limits, counters=self._counters
        )
        self.network._discovery = self._create_discovery()
        self._behind = self.network.behind(via)

    async def keep_living(self, scope: trio.CancelScope) -> None:
        """Until closing.  scope: of all that uses the network; it ends when the library cannot be kept alive."""
        while not self.closing.is_set():
            try:
                await self._live_once()
            except OSError as error:
                if not self.ready.is_set():
                    self.raised = error
                    break
                cause: Exception = error
            except Exception as error:  # noqa: BLE001 - whatever the library dies of, the node does not
                cause = error
            else:
                if self.closing.is_set():
                    break
                # what it died of was lost where closing it was cut short
                cause = NetworkFailed("it ended, and took too long to close")
            self._note_death(cause)
            if self.raised is not None:
                scope.cancel()
                break
            await self._start_again()
        self.ready.set()

    async def _live_once(self) -> None:
        """Until closing, or until the library dies: then raises what it died of."""
        host, gossip, discovery = self.network._host, self.network._gossip, self.network._discovery
        services = [adapter.swarm_of(host), gossip, gossip.mesh, discovery.dht]
        refused: OSError | None = None
        # Shielded: a cancelled libp2p leaves its sockets open, so what cancels us only starts an orderly close.
        with trio.CancelScope(shield=True) as scope:
            async with AsyncExitStack() as running:
                for service in services:
                    await running.enter_async_context(adapter.running(service, self._counters))
                try:
                    await self._listen(host)
                    await gossip.wait_until_ready()
                    await gossip.subscribe(self._topic)
                    adapter.swarm_of(host).register_notifee(_Waker(discovery, gossip))
                    self.ready.set()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(adapter.wait_died, host, services)
                        nursery.start_soon(discovery.run)
                        nursery.start_soon(self._behind.keep_reserved)
                        await self.closing.wait()
                        nursery.cancel_scope.cancel()
                except OSError as error:
                    refused = error  # raised below, where no nursery wraps it in a group
                finally:
                    scope.deadline = trio.current_time() + self._limits.close_s
                    if self._address_book.is_worth_writing:
                        await self._address_book.write()
                    await adapter.close(host)
        if refused is not None:
            raise refused
        adapter.close_sockets(host)

    async def _listen(self, host: BasicHost) -> None:
        """Keeps the addresses with the ports that it got: others know them, so a restart needs the same."""
        found = await adapter.listen(host, self._listen_on)
        if self._announces_what_it_listens_on:
            # in place: the host announces what stands in this list
            self._announced[:] = found
        self._listen_on = list(host.get_transport_addrs())

    def _note_death(self, cause: Exception) -> None:
        adapter.close_sockets(self.network._host)
        self._counters["library restarts"] += 1
        logger.warning("the network library failed and is started again: %s", _first_cause(cause))
        limits, deaths = self._limits, self._deaths
        deaths.append(trio.current_time())
        while deaths[0] < trio.current_time() - limits.restarts_within_s:
            deaths.popleft()
        if len(deaths) > limits.restarts_max:
            self.raised = NetworkFailed(
                f"the network library failed {len(deaths)} times within {limits.restarts_within_s:g} s, the last "
                f"time of {_first_cause(cause)}"
            )

    async def _start_again(self) -> None:
        """With the same key, addresses, members and handlers, after a pause that grows with the failures."""
        network, limits = self.network, self._limits
        network._move_to(self._create_host())
        network._discovery = self._create_discovery()
        if network._admitted is not None:
            network._discovery.admit(network._admitted)
        pause_s = min(limits.restart_s * 2.0 ** (len(self._deaths) - 1), limits.restart_s_max)
        with trio.move_on_after(network._discovery.jitter(pause_s)):
            await self.closing.wait()

    def _create_host(self) -> BasicHost:
        circuits = CircuitTransport()
        circuits.host = host = adapter.create_host(
            self._key_seed,
            limits=self._limits,
            counters=self._counters,
            announce=self._announced,
            circuits=[Multiaddr(f"{text}{CIRCUIT}") for text in self._via],
            transports=[circuits],
        )
        adapter.protect(host, [info.peer_id for info in self._bootstrap])
        return host

    def _create_discovery(self) -> Discovery:
        return Discovery(
            self.network._host,
            self.network._gossip,
            self._bootstrap,
            self._address_book,
            task_key=SHA256_MULTIHASH + sha256(self._topic.encode()).digest(),
            entropy=self._entropy,
            limits=self._limits,
            counters=self._counters,
        )


def _first_cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return repr(error)


class Network:
    """Use from the trio task tree that opened it."""

    _discovery: Discovery

    def __init__(
        self,
        host: BasicHost,
        topic: str,
        blob_source: BlobSource,
        *,
        entropy: Entropy,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        self._host = host
        self._topic = topic
        self._entropy = entropy
        self._limits = limits
        self._admitted: list[ID] | None = None
        self._followers = Listeners(limits)
        self._resource_manager = ResourceManager(limits=limits, counters=counters)
        self._gater = ConnectionGater(host, self._resource_manager, limits=limits, counters=counters)
        self.counters = counters
        """bytes_sent and bytes_received at the socket, messages and copies of gossip, `refused: <reason>`,
        `offence: <reason>`, `contained: <where>`."""
        self._gossip = self._create_gossip()
        self._requests = Requests(
            host,
            lambda peer: self._gossip.is_admitted(peer),
            self._followers,
            self._resource_manager,
            limits=limits,
            counters=counters,
        )
        self._blobs = Blobs(self._requests, blob_source, limits=limits, counters=counters)
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
        self._admitted = peers = [_peer(text) for text in peer_ids]
        self._resource_manager.admit(peers)
        adapter.protect(self._host, peers)
        self._gossip.admit(peers)
        self._discovery.admit(peers)

    @property
    def knows_members(self) -> bool:
        """Whether `admit` has been called."""
        return self._admitted is not None

    def dial(self, address: str) -> None:
        """From now on this address, which ends in /p2p/<peer id>, is dialled as one to join by.

        Raises ValueError with an address that it cannot read.
        """
        self._discovery.dial(bootstrap_peer(address))

    def blame(self, peer_id: bytes, reason: str) -> None:
        """For what the peer signed or answered, if `peer_score.OFFENCES` calls it an offence; enough of them and the
        peer is cut off and refused for a time."""
        self._resource_manager.blame(_peer(peer_id), reason)

    def gauges(self) -> dict[str, int]:
        """What there is now, beside the counters of what has been."""
        return {
            "peers": len(self._gossip.reachable()),
            "connections": self._gater.connection_count,
            "streams": self._gater.stream_count,
            "inbox_messages": len(self.incoming),
            "inbox_bytes": self.incoming.bytes,
            "reply_bytes": self._requests.held_bytes,
            "refused_peers": len(self._resource_manager.refused_peers()),
            "refused_addresses": len(self._resource_manager.refused_addresses()),
        }

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
        """Raises ValueError above `Limits.message_bytes_max`.  Never waits for a slow peer."""
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

    def _create_gossip(self) -> Gossip:
        return Gossip(
            self._host,
            self._topic,
            self._followers,
            self._resource_manager,
            entropy=self._entropy,
            limits=self._limits,
            counters=self.counters,
        )

    def _move_to(self, host: BasicHost) -> None:
        """A new host takes over; what the node holds of this object stays valid."""
        before = self._gossip
        self._host = host
        self._gater = ConnectionGater(host, self._resource_manager, limits=self._limits, counters=self.counters)
        self._gossip = self._create_gossip()
        self._gossip.carry_on(before)
        if self._admitted is not None:
            adapter.protect(host, self._admitted)
        self._requests.move_to(host)
        before.announce_change()


class _Waker(INotifee):
    def __init__(self, discovery: Discovery, gossip: Gossip) -> None:
        self._discovery = discovery
        self._gossip = gossip

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._discovery.wake()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._gossip.connection_ended(conn.muxed_conn.peer_id, conn.muxed_conn)
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
