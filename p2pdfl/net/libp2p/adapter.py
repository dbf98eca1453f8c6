"""Every repair of py-libp2p that this project makes, each with its reason.  Written against, and only for, 0.8.1.

Those of one layer are beside it: tcp, frames, inbound, negotiation, yamux, peerstore and dht.

The reasons were measured against live nodes: as shipped, one malformed message ends a node, inbound connection slots
are never returned, and closing leaves sockets open.  Each repair has a test in tests/net that fails without it.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any, NoReturn

import trio
from libp2p import new_host
from libp2p.abc import INetConn, INetStream, ITransport
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.keys import KeyType, PublicKey
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.crypto.serialization import key_type_to_public_key_deserializer
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push import ID_PUSH
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.exceptions import StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT, Yamux, YamuxStream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.tools.anyio_service.api import ServiceAPI
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.tcp.tcp import TCPListener
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from p2pdfl.net.addresses import is_circuit, is_wildcard, plain_ip
from p2pdfl.net.libp2p import dht, frames, inbound, negotiation, peerstore, tcp, yamux
from p2pdfl.net.limits.bounds import Limits

LIBP2P_VERSION = "0.8.1"
RESET_S = 1.0
RESTART_PAUSE_S, RESTART_PAUSE_S_MAX = 0.1, 5.0
"""Before a task that failed is started again, doubling."""
HEALTHY_S = 60.0
"""A task that ran for so long before it failed begins at the shortest pause."""


class UnsupportedLibp2p(RuntimeError):
    """The installed py-libp2p is not the one that the repairs were written for."""


def check_version() -> None:
    installed = version("libp2p")
    if installed != LIBP2P_VERSION:
        raise UnsupportedLibp2p(f"py-libp2p {installed} is installed, the repairs are for {LIBP2P_VERSION}")


def create_host(
    key_seed: bytes,
    *,
    limits: Limits,
    counters: Counter[str],
    announce: list[Multiaddr],
    circuits: Sequence[Multiaddr] = (),
    transports: Sequence[ITransport] = (),
) -> BasicHost:
    """A host that speaks TCP, Noise and Yamux only, with every repair applied, not yet listening.

    key_seed: 32 bytes, the ed25519 seed.  announce: read at every use; when it is empty the host announces what it
    listens on.
    """
    check_version()
    _quiet_logs()
    _batch_window_updates()
    _take_ed25519_keys_only()
    for part in (tcp, frames, yamux, negotiation, dht, peerstore):
        part.repair()
    key_pair = create_new_key_pair(key_seed)
    known = peerstore.BoundedPeerStore(
        ID.from_pubkey(key_pair.public_key),
        peers_max=limits.known_addresses_max,
        addresses_max=limits.addresses_per_peer_max,
    )
    # The library's own bounds are out of reach: it refuses the newcomer, whoever it is (`inbound`).
    connections_max = limits.connections_max + limits.handshakes_max
    host = new_host(
        peerstore_opt=known,
        key_pair=key_pair,
        # As shipped, TLS, secio and plaintext are on offer too.
        sec_opt={NOISE_ID: NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX_ID): Yamux},  # as shipped, Mplex too, which has no flow control
        transports=[tcp.CountedTCP(counters), *transports],
        connection_config=ConnectionConfig(
            max_connections=connections_max,
            min_connections=0,
            low_watermark=0,
            high_watermark=connections_max,
            inbound_upgrade_timeout=limits.handshake_s,
            inbound_stream_protocol_negotiation_timeout=limits.handshake_s,
        ),
        addrs_factory=lambda candidates: announce or candidates,
    )
    assert isinstance(host, BasicHost)
    swarm_of(host).retry_config = RetryConfig(max_retries=0)  # discovery has its own backoff
    # As shipped, it dials whatever addresses strangers put into the peerstore, up to half of connections_max.
    swarm_of(host).auto_connector.maybe_connect = _connect_nobody  # type: ignore[method-assign]
    # Which also kept its list of who left short.
    swarm_of(host).auto_connector.record_disconnect = lambda peer_id: None  # type: ignore[method-assign]
    # Asking everybody who they are doubles the CPU of a connection, and the answer is unsigned; gossip's hello and the
    # DHT carry signed address records.  Who asks us is answered.
    host._schedule_identify = lambda peer_id, *, reason: None  # type: ignore[method-assign]
    # Anybody may push anything about himself, and 1000 addresses take a second to compare.
    host.remove_stream_handler(ID_PUSH)
    known.is_connected = lambda peer: is_connected(host, peer)
    # As shipped, a second set of limits: 256 inbound, and fewer for a while when they are reached.
    swarm_of(host).set_resource_manager(None)
    _announce_circuits(host, circuits)
    _contain_stream_failures(host, counters)
    inbound.repair(swarm_of(host), lambda peer: peer in known.protected, limits, counters)
    return host


def protect(host: BasicHost, peers: Collection[ID]) -> None:
    """These keep their connections and addresses when strangers have to make room."""
    known = host.get_peerstore()
    assert isinstance(known, peerstore.BoundedPeerStore)
    known.protected = frozenset(peers)


def swarm_of(host: BasicHost) -> Swarm:
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    return swarm


@asynccontextmanager
async def running(service: ServiceAPI, counters: Counter[str]) -> AsyncIterator[None]:
    """Runs a libp2p service so that a task of it that fails ends neither the service nor the node.

    As shipped, an exception in any task (a bad protobuf is enough) cancels the whole Swarm or Pubsub.
    """
    manager = _ContainedManager(service, counters)
    service._manager = manager
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            await manager.stop()


async def listen(host: BasicHost, addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Listens on all or raises OSError.  Returns what to announce: wildcards as the interfaces they stand for."""
    for address in addresses:
        if not await swarm_of(host).listen(address):
            raise OSError(f"cannot listen on {address}: in use, or not an address of this machine")
    announced: list[Multiaddr] = []
    for address in host.get_transport_addrs():
        announced += expand_wildcard_address(address) if is_wildcard(address) else [address]
    return announced


class LibraryDied(Exception):
    """A part of py-libp2p that runs for as long as the node is gone."""


async def wait_died(host: BasicHost, services: Sequence[ServiceAPI]) -> NoReturn:
    """Raises LibraryDied as soon as one of the services has ended, or a listener has."""
    async with trio.open_nursery() as nursery:

        async def watch(name: str, end: Callable[[], Awaitable[None]]) -> None:
            await end()
            raise LibraryDied(f"{name} has ended")

        for service in services:
            nursery.start_soon(watch, type(service).__name__, service.get_manager().wait_finished)
        for address, listener in swarm_of(host).listeners.items():
            assert isinstance(listener, TCPListener)
            nursery.start_soon(watch, f"the listener on {address}", listener._stopped.wait)
        await trio.sleep_forever()
    raise AssertionError("unreachable")


async def dial(host: BasicHost, peer: ID, addresses: Sequence[Multiaddr], *, timeout_s: float) -> bool:
    """Tries each address in turn until connected.

    As shipped, `host.connect` tries one address only, waits 250 ms after it connected, and after one failure refuses
    to dial that peer for 60 s.
    """
    for address in addresses:
        if is_connected(host, peer):
            return True
        with trio.move_on_after(timeout_s):
            try:
                if is_circuit(address) and not str(address).endswith(f"/p2p/{peer}"):
                    address = Multiaddr(f"{address}/p2p/{peer}")
                await swarm_of(host).dial_addr(address, peer)
            except Exception:  # noqa: BLE001 - whatever a hostile address or listener makes it raise, it is a failed dial
                continue
    return is_connected(host, peer)


def is_connected(host: BasicHost, peer: ID) -> bool:
    return any(not connection.is_closed for connection in swarm_of(host).connections.get(peer, ()))


def addresses_of(host: BasicHost, peer: ID) -> list[Multiaddr]:
    try:
        return list(host.get_peerstore().addrs(peer))
    except PeerStoreError:
        return []


def connections_of(host: BasicHost, peer: ID | None = None) -> list[INetConn]:
    """All that are open, or those to one peer."""
    by_peer = swarm_of(host).connections
    wanted = by_peer.values() if peer is None else [by_peer.get(peer, [])]
    return [connection for connections in wanted for connection in connections if not connection.is_closed]


def remote_ips(host: BasicHost, peer: ID) -> set[str]:
    """Where its connections come from, without those through a relay."""
    found = set()
    for connection in connections_of(host, peer):
        muxed = connection.muxed_conn
        assert isinstance(muxed, Yamux)
        # not the connection's own `get_transport_addresses`, which falls back to what the peer announces
        if any(is_circuit(address) for address in muxed.get_transport_addresses()):
            continue
        remote = muxed.get_remote_address()
        if remote is not None:
            found.add(plain_ip(remote[0]))
    return found


def heard_on(connection: INetConn) -> int:
    """A number that changes with everything that arrives."""
    stream = tcp.socket_of(connection.muxed_conn)
    if stream is not None:
        return stream.bytes_received
    # through a relay, by frames
    return connection.muxed_conn.headers_received  # type: ignore[attr-defined, no-any-return]


async def ping(connection: INetConn) -> None:
    """Sends a Yamux ping; who reads `heard_on` sees the answer."""
    muxed = connection.muxed_conn
    assert isinstance(muxed, Yamux)
    muxed._ping_id = (muxed._ping_id + 1) % 2**32
    muxed._ping_event = trio.Event()
    try:
        await muxed._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, muxed._ping_id))
    except Exception:  # noqa: BLE001 - the connection ended meanwhile, in whichever of the library's ways
        return
    muxed._ping_sent_time = trio.current_time()  # the library computes the round trip, for its windows, from this


async def abort(connection: INetConn) -> None:
    """Closes without a word.

    As shipped, closing first sends a farewell, which waits for ever behind whatever a stopped peer does not read.
    """
    stream = tcp.socket_of(connection.muxed_conn)
    if stream is not None:
        stream.stream.socket.close()
    # Not cut short: the library tells others that it has ended as the last thing it does.
    await _close_connection(connection)


async def ask_for_providers(dht: KadDHT, peer: ID, key: bytes, *, timeout_s: float) -> tuple[list[ID], list[ID]]:
    """(providers, peers nearer to the key) that the peer names, with no more trust than it deserves.

    As shipped, `find_providers` asks nobody once one record is held here, and asks everybody before that.
    """
    with trio.move_on_after(timeout_s):
        providers, nearer = await dht.provider_store._get_providers_from_peer_with_closers(peer, key)
        return [info.peer_id for info in providers[:BUCKET_SIZE]], nearer[:BUCKET_SIZE]
    return [], []


async def send_provider_record(dht: KadDHT, peer: ID, key: bytes, *, timeout_s: float) -> None:
    with trio.move_on_after(timeout_s), suppress(Exception):
        await dht.provider_store._send_add_provider(peer, key)


async def open_stream(host: BasicHost, peer: ID, protocol: str) -> INetStream:
    """Raises SwarmException if there is no connection, StreamFailure if the peer does not agree on the protocol."""
    return await host.new_stream(peer, [TProtocol(protocol)])


async def read_some(stream: INetStream, bytes_max: int) -> bytes:
    """b"" at the stream's end, whatever ended it: end, reset or a lost connection."""
    try:
        return await stream.read(bytes_max)
    except StreamError:
        return b""


async def reset_quietly(stream: INetStream) -> None:
    """Also while being cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_S), suppress(Exception):
        await stream.reset()


async def close_quietly(stream: INetStream) -> None:
    """Our direction only.  Also while being cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + RESET_S), suppress(Exception):
        await stream.close()


async def close(host: BasicHost) -> None:
    """Closes connections first and all at once.

    As shipped, stopping the host leaves its sockets open, and `host.close` spends 0.2 s on each connection in turn.
    """
    async with trio.open_nursery() as nursery:
        for connections in list(swarm_of(host).connections.values()):
            for connection in list(connections):
                nursery.start_soon(_close_connection, connection)
    await host.close()


def close_sockets(host: BasicHost) -> None:
    """What is left when there was no time, or no life, for `close`."""
    for listener in swarm_of(host).listeners.values():
        if isinstance(listener, TCPListener) and listener._nursery is not None:
            listener._nursery.cancel_scope.cancel()
    for transport in swarm_of(host).transport_manager.get_transports():
        if isinstance(transport, tcp.CountedTCP):  # a circuit has no socket of its own
            for open_socket in list(transport.sockets):
                open_socket.close()


async def _close_connection(connection: INetConn) -> None:
    with suppress(Exception):
        await connection.close()


class _ContainedManager(TrioManager):
    """Counts a failed task; restarts it if the service cannot do without it (a daemon), else lets it go."""

    def __init__(self, service: ServiceAPI, counters: Counter[str]) -> None:
        super().__init__(service)
        self._counters = counters

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        async def contained(*task_args: Any) -> None:
            pause_s = RESTART_PAUSE_S
            while True:
                began_s = trio.current_time()
                try:
                    await async_fn(*task_args)
                    return
                except Exception:  # noqa: BLE001 - this is where the library's failures stop
                    self._counters["contained: task"] += 1
                    if not daemon:
                        return
                if trio.current_time() - began_s >= HEALTHY_S:
                    pause_s = RESTART_PAUSE_S
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RESTART_PAUSE_S_MAX)

        task_name = name or getattr(async_fn, "__name__", None)
        task = async_fn if _internal else contained
        super().run_task(task, *args, daemon=daemon, name=task_name, _internal=_internal)


async def _connect_nobody() -> None:
    pass


def _announce_circuits(host: BasicHost, circuits: Sequence[Multiaddr]) -> None:
    """As shipped, an announced address behind a relay loses the relay, and is the relay's own with our id."""
    direct = host.get_addrs
    behind = [Multiaddr(f"{address}/p2p/{host.get_id()}") for address in circuits]
    host.get_addrs = lambda: [*direct(), *behind]  # type: ignore[method-assign]


def _contain_stream_failures(host: BasicHost, counters: Counter[str]) -> None:
    """An exception in any stream's handler, ours or the library's, resets that stream.

    As shipped it ends the Swarm.
    """
    swarm = swarm_of(host)
    handle = swarm.common_stream_handler

    async def contained(stream: INetStream) -> None:
        try:
            await handle(stream)
        except Exception:  # noqa: BLE001 - this is where a handler's failures stop
            counters["contained: stream"] += 1
            await reset_quietly(stream)
        finally:
            muxed = stream.muxed_stream  # type: ignore[attr-defined]
            if muxed.send_closed:
                yamux.forget(muxed)
            else:
                await reset_quietly(stream)

    swarm.set_stream_handler(contained)


def _quiet_logs() -> None:
    """Peers must not fill the disk: as shipped, many of their mistakes are logged as warnings and errors.

    LIBP2P_DEBUG, the library's own variable, leaves the log as it is.
    """
    if "LIBP2P_DEBUG" not in os.environ:
        logger = logging.getLogger("libp2p")
        logger.setLevel(logging.CRITICAL)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def _take_ed25519_keys_only() -> None:
    """All peers of a task have such a key (docs/wire.md); so it is of no use to read others, wherever they are named.

    As shipped, an RSA key's length is asked for after it was parsed, in a time that grows with its square: a handshake
    of 60 KB holds up the node for a second, one gossip message of 1 MB for minutes.
    """

    def refuse(cls: type[PublicKey], key_bytes: bytes) -> NoReturn:
        raise CryptographyError(f"{cls.__name__} is not taken")

    for kind in (RSAPublicKey, Secp256k1PublicKey):
        kind.from_bytes = classmethod(refuse)  # type: ignore[method-assign, assignment]
    # which holds what those were as shipped
    for key_type in (KeyType.RSA, KeyType.Secp256k1):
        key_type_to_public_key_deserializer.pop(key_type.value, None)


def _batch_window_updates() -> None:
    """Credit is returned when half a window was read, as hashicorp/yamux does.

    As shipped, every read sends a frame of its own, which doubles the frames that small messages cost.
    """

    async def return_credit(stream: YamuxStream, *, bytes_read: int = 0) -> None:
        async with stream.window_lock:
            stream._pending_recv_release += bytes_read
            if stream._pending_recv_release < stream.target_recv_window // 2:
                return
            credit, stream._pending_recv_release = stream._pending_recv_release, 0
            stream.recv_window += credit
            buffered = len(stream.conn.stream_buffers.get(stream.stream_id, b""))
            credit += stream._apply_autotune_epoch(buffered)
        await stream.send_window_update(credit)

    YamuxStream._auto_tune_and_send_window_update = return_credit  # type: ignore[assignment, method-assign]
