"""Where the resource manager's word counts: at new connections, before and after the handshake, and at new streams.

py-libp2p's own limits know neither whose a stream is nor who sits behind an address: as shipped, one peer may open all
10,000 streams of a node, after which everybody waits for one, and a closed connection may come back at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pdfl.net.libp2p import adapter, tcp
from p2pdfl.net.libp2p.inbound import place_of
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.resource_manager import ResourceManager

CUT_S = 1.0
"""For the library to take note that a socket is closed."""


class ConnectionGater:
    """Installs itself into the host, which must not listen yet."""

    def __init__(
        self, host: BasicHost, resource_manager: ResourceManager, *, limits: Limits, counters: Counter[str]
    ) -> None:
        self._swarm = adapter.swarm_of(host)
        self._resource_manager = resource_manager
        self._limits = limits
        self._counters = counters
        self._streams: dict[ID, set[INetStream]] = {}
        self._accept = self._swarm._handle_inbound_connection
        self._add = self._swarm.add_conn
        self._dial = self._swarm.dial_addr
        self._handle = self._swarm.common_stream_handler
        self._swarm._handle_inbound_connection = self._accept_gated  # type: ignore[method-assign]
        self._swarm.add_conn = self._add_gated  # type: ignore[method-assign]
        self._swarm.dial_addr = self._dial_gated  # type: ignore[method-assign]
        self._swarm.set_stream_handler(self._handle_gated)
        resource_manager.on_refused = self._on_refused
        resource_manager.addresses_of = self._addresses_of

    @property
    def connection_count(self) -> int:
        return sum(map(len, self._swarm.connections.values()))

    @property
    def stream_count(self) -> int:
        """Opened by peers."""
        return sum(map(len, self._streams.values()))

    # --- connections -----------------------------------------------------------------------------------------------

    async def _accept_gated(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        stream, source = read_write_closer, _source(read_write_closer)
        if not self._resource_manager.may_shake_hands(source):
            self._counters["refused: connections over the rate"] += 1
            return await _close_quietly(stream)
        return await self._accept(stream, maddr)

    async def _add_gated(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        peer = muxed_conn.peer_id
        if not self._resource_manager.may_stay(peer, _source(tcp.socket_of(muxed_conn)) or None):
            self._counters["refused: peer is refused"] += 1
            scope = getattr(muxed_conn, "_resource_scope", None)
            if scope is not None:
                scope.close()
            await _cut(muxed_conn, muxed_conn.close)
            raise SwarmException("peer is refused")
        connection = await self._add(muxed_conn, direction)
        if self._resource_manager.is_refused(peer):
            await cut(connection)
            raise SwarmException("peer is refused")
        return connection

    async def _dial_gated(self, addr: Multiaddr, peer_id: ID, source: tuple[str, int] | None = None) -> INetConn:
        if self._resource_manager.is_refused(peer_id):
            raise SwarmException("peer is refused")
        return await self._dial(addr, peer_id, source)

    def _on_refused(self, peer: ID) -> None:
        with suppress(Exception):  # while the host stops there is nothing to cut
            self._swarm.manager.run_task(self._cut_all, peer)

    async def _cut_all(self, peer: ID) -> None:
        for connection in list(self._swarm.connections.get(peer, ())):
            self._counters["connections cut"] += 1
            await cut(connection)

    def _addresses_of(self, peer: ID) -> set[str]:
        sources = {
            _source(tcp.socket_of(connection.muxed_conn)) for connection in self._swarm.connections.get(peer, ())
        }
        return sources - {""}

    # --- streams ---------------------------------------------------------------------------------------------------

    async def _handle_gated(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        reason = self._reason_to_refuse_stream(peer)
        if reason is not None:
            self._counters[f"refused: {reason}"] += 1
            self._resource_manager.blame(peer, reason)
            return await adapter.reset_quietly(stream)
        held = self._streams.setdefault(peer, set())
        held.add(stream)
        try:
            await self._handle(stream)
        finally:
            held.discard(stream)
            if not held and self._streams.get(peer) is held:
                del self._streams[peer]
        return None

    def _reason_to_refuse_stream(self, peer: ID) -> str | None:
        held = self._streams.get(peer, set())
        if not self._resource_manager.takes_stream(peer):
            return "streams over the rate"
        if len(held) >= self._limits.streams_per_peer_max:
            return "too many streams of a peer"
        if sum(_is_negotiating(stream) for stream in held) >= self._limits.negotiations_per_peer_max:
            return "too many streams of a peer"
        if self.stream_count >= self._limits.streams_max:
            return "too many streams"
        return None


async def cut(connection: INetConn) -> None:
    """An orderly close writes a farewell, for which a peer that does not read lets one wait forever."""
    await _cut(connection.muxed_conn, connection.close)


async def _cut(muxed: IMuxedConn, close: Callable[[], Awaitable[None]]) -> None:
    socket = tcp.socket_of(muxed)
    if socket is not None:
        await _close_quietly(socket)
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CUT_S), suppress(Exception):
        await close()


async def _close_quietly(stream: ReadWriteCloser) -> None:
    with suppress(Exception):
        await stream.close()


def _is_negotiating(stream: INetStream) -> bool:
    protocol: TProtocol | None = stream.get_protocol()
    return protocol is None


def _source(stream: ReadWriteCloser | None) -> str:
    """The other end's address, grouped; "" if it has none."""
    return place_of(None if stream is None else stream.get_remote_address())
