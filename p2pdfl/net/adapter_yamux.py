"""Yamux with the bounds that its specification asks for.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped: a window may be overrun without end (the buffer grows until the machine's memory does not); a peer may open
any number of streams, with our ids too; a frame may announce 16 MB for a stream that does not exist, and is read whole
into memory; what was sent before a reset stays for 90 s; a version or type that does not exist is ignored; and closing
a connection waits for ever to say goodbye to a peer that does not read.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import trio
from libp2p.io.utils import read_exactly
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    GO_AWAY_NORMAL,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from p2pdfl.net.limits import GOODBYE_S, STREAMS_PER_CONNECTION_MAX, WINDOW_BYTES_MAX

DISCARD_BYTES = 64 << 10


def repair() -> None:
    yamux.MAX_WINDOW_SIZE = WINDOW_BYTES_MAX
    Yamux.handle_incoming = _handle_incoming  # type: ignore[method-assign]
    Yamux.close = _close  # type: ignore[method-assign]


def forget(stream: YamuxStream) -> None:
    """Of a stream that nobody will read again.  As shipped it is kept until the peer ends its side too."""
    buffer = stream.conn.stream_buffers.get(stream.stream_id)
    if buffer is not None:
        buffer.clear()
    stream.recv_closed = stream.closed = True
    stream.conn._finalize_stream_locked(stream, fully_closed=True)


class _Violation(Exception):
    """Of Yamux's rules; it ends the connection."""


async def _handle_incoming(self: Yamux) -> None:
    with suppress(Exception):  # whatever ended it: a violation, or one of the dozen kinds that a lost connection raises
        while not self.event_shutting_down.is_set():
            header = await read_exactly(self.secured_conn, HEADER_SIZE)
            version, kind, flags, stream_id, length = struct.unpack(YAMUX_HEADER_FORMAT, header)
            if version != 0:
                raise _Violation
            if kind in (TYPE_DATA, TYPE_WINDOW_UPDATE):
                await _take_stream_frame(self, kind, flags, stream_id, length)
            elif kind == TYPE_PING:
                await _take_ping(self, flags, length)
            elif kind == TYPE_GO_AWAY:
                break
            else:
                raise _Violation
    await self._cleanup_on_error()


async def _take_stream_frame(self: Yamux, kind: int, flags: int, stream_id: int, length: int) -> None:
    # Nobody waits while holding streams_lock, so between two awaits there is no need for it.
    opened = _open(self, stream_id) if flags & FLAG_SYN else None
    stream = self.streams.get(stream_id)
    if kind == TYPE_DATA and length:
        await _take_data(self, stream, length)
    elif kind == TYPE_WINDOW_UPDATE and stream is not None:
        stream.send_window += length
    if stream is not None and flags & (FLAG_FIN | FLAG_RST):
        stream.recv_closed = True
        if flags & FLAG_RST:
            stream.closed = stream.reset_received = True
            self.stream_buffers.get(stream_id, bytearray()).clear()
        elif stream.send_closed:
            stream.closed = True
        if stream_id in self.stream_events:
            self.stream_events[stream_id].set()
        if stream.closed:
            self._finalize_stream_locked(stream, fully_closed=True)
    if flags & FLAG_SYN:
        await _write(self, TYPE_WINDOW_UPDATE, FLAG_ACK if opened else FLAG_RST, stream_id, 0)
    if opened is not None:
        await self.new_stream_send_channel.send(opened)


def _open(self: Yamux, stream_id: int) -> YamuxStream | None:
    """None if the peer has as many as it may have."""
    is_ours = stream_id % 2 == self.is_initiator_value
    if stream_id == 0 or is_ours or stream_id in self.streams:
        raise _Violation
    if sum(not stream.is_initiator for stream in self.streams.values()) >= STREAMS_PER_CONNECTION_MAX:
        return None
    stream = YamuxStream(stream_id, self, False)
    self.streams[stream_id] = stream
    self.stream_buffers[stream_id] = bytearray()
    self.stream_events[stream_id] = trio.Event()
    return stream


async def _take_data(self: Yamux, stream: YamuxStream | None, length: int) -> None:
    if length > (WINDOW_BYTES_MAX if stream is None else stream.recv_window):
        raise _Violation
    if stream is None:  # we ended it while this was under way
        for start in range(0, length, DISCARD_BYTES):
            await read_exactly(self.secured_conn, min(DISCARD_BYTES, length - start))
        return
    data = await self._read_data_body(length)
    stream.recv_window -= length
    buffer = self.stream_buffers.get(stream.stream_id)
    if buffer is not None:
        buffer += data
        self.stream_events[stream.stream_id].set()


async def _take_ping(self: Yamux, flags: int, value: int) -> None:
    if flags & FLAG_SYN:
        await _write(self, TYPE_PING, FLAG_ACK, 0, value)
    elif flags & FLAG_ACK:
        taken = trio.current_time() - self._ping_sent_time
        self._rtt = (self._rtt + taken) / 2 if self._rtt else taken
        self._ping_event.set()


async def _write(self: Yamux, kind: int, flags: int, stream_id: int, length: int) -> None:
    await self._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length))


async def _close(self: Yamux, error_code: int = GO_AWAY_NORMAL) -> None:
    if not self.event_shutting_down.is_set():
        self.event_shutting_down.set()
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, error_code)
        with trio.move_on_after(GOODBYE_S), suppress(Exception):
            async with self._write_lock:  # not by _write_frame, which nothing cuts short: after this frame comes none
                await self.secured_conn.write(header)
    await self._cleanup_on_error()
