"""What one frame costs on its way down and up.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped, a copy of a small message makes 19 passes through trio's scheduler, both ends together: each of eight locks
on the way makes one although nobody else holds it.  And a full Yamux frame of 64 KB is cut into two Noise messages, the
second of 17 bytes, each with its own system call.  And a Noise message that comes in more than a hundred pieces ends
the connection.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.io.abc import Reader
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.msgio import BaseMsgReadWriter
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.net_stream import NetStream
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, SIZE_NOISE_MESSAGE_LEN, NoisePacketReadWriter
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT, Yamux, YamuxStream

FRAME_BYTES_MAX = MAX_PLAINTEXT_LENGTH - HEADER_SIZE
"""So that a frame with its header is one Noise message."""
FRAME_S = 10.0
"""A peer that takes no byte off the wire so long loses its connection."""

LOCKS: dict[type, tuple[str, ...]] = {
    TrioTCPStream: ("read_lock", "write_lock"),
    Yamux: ("streams_lock", "_write_lock"),
    YamuxStream: ("window_lock", "close_lock"),
    NetStream: ("_state_lock",),
}


def repair() -> None:
    if YamuxStream.write is _write:
        return
    for owner, names in LOCKS.items():
        _replace_locks(owner, names)
    YamuxStream.write = _write  # type: ignore[method-assign]
    YamuxStream.read = _read  # type: ignore[method-assign]
    Yamux._write_frame = _write_frame  # type: ignore[method-assign]
    NoisePacketReadWriter.read_msg = _read_packet  # type: ignore[method-assign]


class QuickLock:
    """A trio.Lock that costs no pass through the scheduler while it is free.  Whoever waits is served in turn."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self._held:
            await self._waiting.park()  # woken as the holder
        self._held = True

    async def __aexit__(self, *exception: object) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._held = False


def _replace_locks(owner: type, names: tuple[str, ...]) -> None:
    shipped: Callable[..., None] = owner.__init__  # type: ignore[misc]

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        shipped(self, *args, **kwargs)
        for name in names:
            setattr(self, name, QuickLock())

    owner.__init__ = init  # type: ignore[misc]


_write_slowly: Callable[[YamuxStream, bytes], Awaitable[None]] = YamuxStream.write


async def _write(self: YamuxStream, data: bytes) -> None:
    """As shipped where the window is too small, which waits for it."""
    sent = 0
    while sent < len(data):
        if self.send_closed or self.closed:
            raise MuxedStreamError("stream is closed")
        length = min(FRAME_BYTES_MAX, len(data) - sent)
        if length <= self.send_window:
            self.send_window -= length
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, length)
            await self.conn._write_frame(header + data[sent : sent + length])
        else:
            await _write_slowly(self, data[sent : sent + length])
        sent += length


_read_slowly: Callable[[YamuxStream, int | None], Awaitable[bytes]] = YamuxStream.read


async def _read(self: YamuxStream, n: int | None = -1) -> bytes:
    """As shipped where the stream is at its end; there it says which."""
    waited = False
    while n is not None and n > 0 and not (self.closed or self.reset_received):
        buffer = self.conn.stream_buffers.get(self.stream_id)
        arrived = self.conn.stream_events.get(self.stream_id)
        if buffer is None or arrived is None or self.conn.event_shutting_down.is_set():
            break
        if buffer:
            data = bytes(buffer[:n])
            del buffer[:n]
            await self._auto_tune_and_send_window_update(bytes_read=len(data))
            if not waited:  # whoever sends without end must not keep others from their turn
                await trio.lowlevel.checkpoint()
            return data
        if self.recv_closed:
            break
        await arrived.wait()
        waited = True
        if self.conn.stream_events.get(self.stream_id) is arrived:
            self.conn.stream_events[self.stream_id] = trio.Event()
    return await _read_slowly(self, n)


async def _write_frame(self: Yamux, data: bytes) -> None:
    """A frame that is begun is written to its end, whatever is cancelled meanwhile.

    As shipped, a write that is cancelled, by a time-out for one, leaves half a frame on the wire or Noise's counter one
    ahead: the connection is lost, and all other streams on it.
    """
    async with self._write_lock:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FRAME_S) as scope:
            await self.secured_conn.write(data)  # makes a checkpoint at the socket
        if scope.cancelled_caught:
            await self.secured_conn.close()
            raise RawConnError("the peer takes nothing off the wire")


async def _read_packet(self: BaseMsgReadWriter) -> bytes:
    """In as many pieces as it comes.

    As shipped it gives up after a hundred reads, as if the other side had: 64 KB over a slow path, in segments of 536
    bytes, is a hundred and twenty.
    """
    length = int.from_bytes(await _read_whole(self.read_write_closer, SIZE_NOISE_MESSAGE_LEN), "big")
    return await _read_whole(self.read_write_closer, length)


async def _read_whole(reader: Reader, length: int) -> bytes:
    data = await reader.read(length)
    if len(data) == length:
        return data
    pieces = bytearray(data)
    while data and len(pieces) < length:
        data = await reader.read(length - len(pieces))
        pieces += data
    if len(pieces) < length:
        raise IncompleteReadError("the connection ended within a Noise message")
    return bytes(pieces)
