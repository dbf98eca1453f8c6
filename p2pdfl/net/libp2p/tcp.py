"""The TCP transport and its listener.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped: nothing is counted; each Yamux header costs four system calls; names are looked up past the machine's own
resolver; an IPv6 address has no other end that is known; and a port may be taken twice, or for both families at once.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import trio
from libp2p.abc import IMuxedConn, IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp import tcp
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from p2pdfl.net.addresses import Unresolved, is_circuit, resolve

SOCKET_READ_BYTES = 64 << 10
LISTEN_BACKLOG = 128


def repair() -> None:
    _listen_on_one_family()


def socket_of(muxed: IMuxedConn) -> CountedStream | None:
    """None for a connection through a relay."""
    layer: Any = muxed
    # Yamux, the secure session, Noise's messages, its packets, the raw connection
    for name in ("secured_conn", "conn", "read_writer", "read_write_closer", "stream"):
        layer = getattr(layer, name, None)
    return layer if isinstance(layer, CountedStream) else None


class CountedStream(TrioTCPStream):
    """Counts bytes, and reads the socket in large pieces: as shipped each Yamux header costs four system calls."""

    def __init__(self, stream: trio.SocketStream, counters: Counter[str]) -> None:
        super().__init__(stream)
        self._counters = counters
        self._unread = bytearray()
        self.bytes_received = 0

    def get_remote_address(self) -> tuple[str, int] | None:
        """As shipped, None on IPv6, where a socket's name has four parts."""
        if self._cached_remote_address is None:
            with suppress(OSError):
                host, port, *_ = self.stream.socket.getpeername()
                self._cached_remote_address = host, port
        return self._cached_remote_address

    async def write(self, data: bytes) -> None:
        self._counters["bytes_sent"] += len(data)
        self._counters["writes"] += 1
        await super().write(data)

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if not self._unread:
            data = await super().read(SOCKET_READ_BYTES)
            self._counters["bytes_received"] += len(data)
            self._counters["reads"] += 1
            self.bytes_received += len(data)
            if n is None or len(data) <= n:
                return data
            self._unread += data
        data = bytes(self._unread[:n])
        del self._unread[: len(data)]
        return data


class CountedTCP(TCP):
    def __init__(self, counters: Counter[str]) -> None:
        super().__init__()
        self._counters = counters
        self.sockets: WeakSet[trio.socket.SocketType] = WeakSet()
        """All that may still be open, also those that no connection was made of yet."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """As shipped, names are looked up past the machine's own resolver and its hosts file."""
        failure: Exception | None = None
        try:
            for resolved in await resolve(maddr):
                try:
                    return await self._dial_resolved(resolved)
                except OpenConnectionError as error:
                    failure = error
        except Unresolved as error:
            failure = error
        raise OpenConnectionError(f"cannot connect to {maddr}: {failure}") from failure

    def can_dial(self, maddr: Multiaddr) -> bool:
        """As shipped, an address behind a relay is dialled as if the relay were the peer, and then, since it is
        another, all addresses of the peer are forgotten."""
        return super().can_dial(maddr) and not is_circuit(maddr)

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> IRawConnection:
        connection = await super()._dial_resolved(maddr, source)
        assert isinstance(connection, RawConnection)
        assert isinstance(connection.stream, TrioTCPStream)
        connection.stream = CountedStream(connection.stream.stream, self._counters)
        self.sockets.add(connection.stream.stream.socket)
        return connection

    def create_listener(self, handler_function: THandler) -> TCPListener:
        async def counted(stream: ReadWriteCloser) -> None:
            assert isinstance(stream, TrioTCPStream)
            self.sockets.add(stream.stream.socket)
            await handler_function(CountedStream(stream.stream, self._counters))

        return _Listener(counted, self.sockets)


class _Listener(TCPListener):
    def __init__(self, handler_function: THandler, sockets: WeakSet[trio.socket.SocketType]) -> None:
        super().__init__(handler_function)
        self._sockets = sockets

    async def listen(self, maddr: Multiaddr) -> None:
        await super().listen(maddr)
        self._sockets.update(listener.socket for listener in self.listeners)

    async def _spawn_background_task(self) -> None:
        """As shipped, an accept that fails in an unforeseen way raises in trio's system nursery: the process ends."""

        async def serve() -> None:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._nursery_ready.set()
                    await trio.sleep_forever()
            except* Exception as errors:  # noqa: BLE001 - `wait_died` sees the end, whatever brought it about
                logging.getLogger(__name__).warning("a listener failed: %r", errors.exceptions[0])
            finally:
                self._nursery = None
                self._stopped.set()

        trio.lowlevel.spawn_system_task(serve)
        await self._nursery_ready.wait()


def _listen_on_one_family() -> None:
    """An /ip6 address takes IPv6 connections, so that /ip4 and /ip6 may share a port; nobody else may.

    As shipped, /ip6/::/tcp/9000 takes the IPv4 port too, and /ip4/0.0.0.0/tcp/9000 beside it is in use.  And a second
    node on one port starts without an error (SO_REUSEPORT, for hole punching) and steals half the connections.
    """

    async def open_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
        assert host is not None, "only addresses with an IP are listened on"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await listening.bind((host, port))
            listening.listen(LISTEN_BACKLOG)
            return [trio.SocketListener(listening)]
        except BaseException:
            listening.close()
            raise

    tcp._open_reuseport_listeners = open_listeners
