"""One request, one reply, over a fresh stream: a 4-byte big-endian length, then that many bytes, each way.

A protocol may allow several on one stream, one after the other, answered in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID

from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.listeners import Listeners
from p2pdfl.net.limits.resource_manager import ResourceManager

Handle = Callable[[bytes, bytes], Awaitable[bytes]]
"""(the asking peer's id in base58 text, the request) -> the reply."""

LENGTH_BYTES = 4
READ_BYTES_MAX = 256 << 10


class Unreachable(Exception):
    """No connection to the peer, or no whole reply in time."""


class Refused(Exception):
    """The peer does not serve this, ended the stream, or replied more than asked for."""


class TooLong(Refused):
    """The peer replied more than asked for, which no state of the path explains."""


class Requests:
    def __init__(
        self,
        host: BasicHost,
        is_admitted: Callable[[ID], bool],
        followers: Listeners,
        resource_manager: ResourceManager,
        *,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        self._host = host
        self._resource_manager = resource_manager
        self._is_admitted = is_admitted
        self._followers = followers
        self._limits = limits
        self._counters = counters
        self._served: Counter[ID] = Counter()
        self.held_bytes = 0
        """Of replies that are not sent yet."""
        self._accepting: dict[TProtocol, Callable[[INetStream], Awaitable[None]]] = {}

    def move_to(self, host: BasicHost) -> None:
        """From now this host asks, and serves what the one before did."""
        self._host = host
        for protocol, accept in self._accepting.items():
            host.set_stream_handler(protocol, accept)

    async def request(
        self, peer: ID, protocol: str, request: bytes, *, reply_bytes_max: int, timeout_s: float
    ) -> bytes:
        """Raises Unreachable, Refused."""
        with _told_apart():
            with trio.fail_after(timeout_s):
                stream = await self._open(peer, protocol)
                try:
                    await _write(stream, request)
                    reply = await _read(stream, reply_bytes_max)
                    await stream.close()
                except BaseException:
                    await adapter.reset_quietly(stream)
                    raise
        self._counters["requests_sent"] += 1
        return reply

    @asynccontextmanager
    async def conversation(self, peer: ID, protocol: str, *, timeout_s: float) -> AsyncIterator[Conversation]:
        """timeout_s: for the stream to open, and for each step from then on.  Raises Unreachable, Refused."""
        with _told_apart():
            with trio.fail_after(timeout_s):
                stream = await self._open(peer, protocol)
        conversation = Conversation(stream, timeout_s, self._counters)
        try:
            yield conversation
        finally:
            await conversation.end()

    async def _open(self, peer: ID, protocol: str) -> INetStream:
        if not adapter.is_connected(self._host, peer):
            raise Unreachable("not connected")
        return await adapter.open_stream(self._host, peer, protocol)

    def serve(self, protocol: str, handle: Handle, *, request_bytes_max: int, requests_per_stream_max: int = 1) -> None:
        async def accept(stream: INetStream) -> None:
            peer = stream.muxed_conn.peer_id
            reason = self._reason_to_refuse(peer)
            if reason is not None:
                self.refuse(peer, reason)
                return await adapter.reset_quietly(stream)
            self._served[peer] += 1
            try:
                for number in range(requests_per_stream_max):
                    with trio.fail_after(self._limits.serve_s):
                        request = await _read_next(stream, request_bytes_max, is_first=number == 0)
                        if request is None:
                            break
                        await self._followers.wait_for_turn(peer)
                        await self._reply(stream, peer, await handle(peer.to_base58().encode(), request))
                    self._counters["requests_served"] += 1
                with trio.fail_after(self._limits.serve_s):
                    await stream.close()
            except _TooLong:
                self.refuse(peer, "request too long")
                await adapter.reset_quietly(stream)
            except _NoRoom:
                self.refuse(peer, "replies take too much memory")
                await adapter.reset_quietly(stream)
            except (trio.TooSlowError, IOException, RawConnError, _Broken):
                self._counters["refused: request broken off"] += 1
                await adapter.reset_quietly(stream)
            except Exception:  # noqa: BLE001 - a request that a handler fails on costs its sender one stream
                self._counters["refused: handler failed"] += 1
                await adapter.reset_quietly(stream)
            except trio.Cancelled:
                await adapter.reset_quietly(stream)
                raise
            finally:
                self._served[peer] -= 1
                if not self._served[peer]:
                    del self._served[peer]

        self.accept(protocol, accept)

    def accept(self, protocol: str, handle: Callable[[INetStream], Awaitable[None]]) -> None:
        """The whole stream, whoever opens it."""
        self._accepting[TProtocol(protocol)] = handle
        self._host.set_stream_handler(TProtocol(protocol), handle)

    async def _reply(self, stream: INetStream, peer: ID, reply: bytes) -> None:
        if self.held_bytes > 0 and self.held_bytes + len(reply) > self._limits.served_bytes_max:
            raise _NoRoom
        self.held_bytes += len(reply)
        try:
            wait_s = self._resource_manager.serve_after_s(peer, len(reply))
            if wait_s > 0:
                await trio.sleep(wait_s)
            await _write(stream, reply)
        finally:
            self.held_bytes -= len(reply)

    def refuse(self, peer: ID, reason: str) -> None:
        """Counts it, and blames the peer if it is a fault."""
        self._counters[f"refused: {reason}"] += 1
        self._resource_manager.blame(peer, reason)

    def _reason_to_refuse(self, peer: ID) -> str | None:
        if peer in self._followers:
            if self._served[peer]:
                return "follower's second request"
        elif not self._is_admitted(peer):
            return "stranger's request"
        if self._served[peer] >= self._limits.served_streams_per_peer_max:
            return "too many requests of a peer"
        if self._served.total() >= self._limits.served_streams_max:
            return "too many requests"
        return None


class Conversation:
    """What is asked is answered in order.  Raises Unreachable, Refused."""

    def __init__(self, stream: INetStream, timeout_s: float, counters: Counter[str]) -> None:
        self._stream = stream
        self._timeout_s = timeout_s
        self._counters = counters
        self._owed = 0

    async def ask(self, request: bytes) -> None:
        with _told_apart(), trio.fail_after(self._timeout_s):
            await _write(self._stream, request)
        self._owed += 1

    async def answer(self, *, reply_bytes_max: int) -> bytes:
        """All of it within timeout_s: a byte now and then wins no time."""
        with _told_apart(), trio.fail_after(self._timeout_s):
            reply = await _read(self._stream, reply_bytes_max)
        self._owed -= 1
        self._counters["requests_sent"] += 1
        return reply

    async def end(self) -> None:
        """Also while being cancelled."""
        if self._owed:  # nobody waits for what is still on its way
            await adapter.reset_quietly(self._stream)
        else:
            await adapter.close_quietly(self._stream)


class _Broken(Exception):
    pass


class _TooLong(_Broken):
    pass


class _NoRoom(Exception):
    pass


@contextmanager
def _told_apart() -> Iterator[None]:
    """The library's ways to fail, as Unreachable or Refused."""
    try:
        yield
    except trio.TooSlowError:
        raise Unreachable("no reply in time") from None
    except SwarmException as error:
        raise Unreachable("connection lost") from error
    except _TooLong as error:
        raise TooLong(str(error)) from error
    except (StreamFailure, IOException, RawConnError, _Broken) as error:
        raise Refused(str(error) or "stream ended by the peer") from error


async def _write(stream: INetStream, data: bytes) -> None:
    await stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)


async def _read(stream: INetStream, bytes_max: int, first: bytes = b"") -> bytes:
    """first: what was read of it already."""
    length = int.from_bytes(await _read_exactly(stream, LENGTH_BYTES, first), "big")
    if length > bytes_max:
        raise _TooLong("longer than allowed")
    return await _read_exactly(stream, length)


async def _read_next(stream: INetStream, bytes_max: int, *, is_first: bool) -> bytes | None:
    """None: the peer has no more questions."""
    first = await adapter.read_some(stream, LENGTH_BYTES)
    return await _read(stream, bytes_max, first) if first or is_first else None


async def _read_exactly(stream: INetStream, count: int, first: bytes = b"") -> bytes:
    data = bytearray(first)
    while len(data) < count:
        piece = await adapter.read_some(stream, min(count - len(data), READ_BYTES_MAX))
        if not piece:
            raise _Broken("stream ended early")
        data += piece
    return bytes(data)
