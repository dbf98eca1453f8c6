"""Yamux with the bounds that its specification asks for.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped: a window may be overrun without end (the buffer grows until the machine's memory does not); a peer may open
any number of streams, with our ids too; a frame may announce 16 MB for a stream that does not exist, and is read whole
into memory; what was sent before a reset stays for 90 s; a version or type that does not exist is ignored; and closing
a connection waits for ever to say goodbye to a peer that does not read; and two that each owe the other an answer, and
whose sockets are full, read no further and so wait for each other.
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

from p2pdfl.net.limits.bounds import GOODBYE_S, STREAMS_PER_CONNECTION_MAX, WINDOW_BYTES_MAX

ANSWERS_MAX = 256
"""To one connection, unwritten; more than an honest peer waits for."""


def repair() -> None:
    yamux.MAX_WINDOW_SIZE = WINDOW_BYTES_MAX
    Yamux.handle_incoming = _handle_incoming  # type: ignore[method-assign]
    Yamux.close = _close  # type: ignore[method-assign]
    Yamux.headers_received = 0  # type: ignore[attr-defined]


def forget(stream: YamuxStream) -> None:
    """Of a stream that nobody will read again.  As shipped it is kept until the peer ends its side too."""
    buffer = stream.conn.stream_buffers.get(stream.stream_id)
    if buffer is not None:
        buffer.clear()
    stream.recv_closed = stream.closed = True
    stream.conn._finalize_stream_locked(stream, fully_closed=True)


class _Violation(Exception):
    """Of Yamux's rules; it ends the connection."""


class _Answers:
    """What is owed to a peer that opens streams or pings.  A task of its own writes it, so that reading goes on."""

    def __init__(self, muxed: Yamux) -> None:
        self._muxed = muxed
        self._frames: list[bytes] = []
        self._pong = b""
        self._is_writing = False
        self.reading = trio.CancelScope()
        """Ends when nothing can be written any more; who reads then cleans up."""

    async def to_stream(self, stream_id: int, *, is_taken: bool) -> None:
        frame = _header(TYPE_WINDOW_UPDATE, FLAG_ACK if is_taken else FLAG_RST, stream_id, 0)
        # ATTACK: streams opened and reset without end, by a peer that reads no answer
        if len(self._frames) >= ANSWERS_MAX:
            return await self._muxed._write_frame(frame)
        self._frames.append(frame)
        self._start()

    async def to_ping(self, value: int) -> None:
        """Who pings again before it has an answer gets the newest only."""
        self._pong = _header(TYPE_PING, FLAG_ACK, 0, value)
        self._start()
        await trio.lowlevel.checkpoint()  # who pings without end must not keep others from their turn

    def _start(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            assert self._muxed._nursery is not None
            self._muxed._nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            while due := b"".join(self._frames) + self._pong:
                self._frames.clear()
                self._pong = b""
                await self._muxed._write_frame(due)
            self._is_writing = False
        except Exception:  # noqa: BLE001 - a dozen kinds, as when reading; the connection is of no use any more
            self.reading.cancel()


async def _handle_incoming(self: Yamux) -> None:
    answers = _Answers(self)
    # suppressed: whatever ended it, a violation or one of the dozen kinds that a lost connection raises
    with answers.reading, suppress(Exception):
        while not self.event_shutting_down.is_set():
            header = await read_exactly(self.secured_conn, HEADER_SIZE)
            self.headers_received += 1  # type: ignore[attr-defined]
            version, kind, flags, stream_id, length = struct.unpack(YAMUX_HEADER_FORMAT, header)
            if version != 0:
                raise _Violation
            if kind in (TYPE_DATA, TYPE_WINDOW_UPDATE):
                await _take_stream_frame(self, answers, kind, flags, stream_id, length)
            elif kind == TYPE_PING:
                await _take_ping(self, answers, flags, length)
            elif kind == TYPE_GO_AWAY:
                break
            else:
                raise _Violation
    await self._cleanup_on_error()


async def _take_stream_frame(
    self: Yamux, answers: _Answers, kind: int, flags: int, stream_id: int, length: int
) -> None:
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
        await answers.to_stream(stream_id, is_taken=opened is not None)
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
    data = await self._read_data_body(length)
    if stream is None:  # we ended it while this was under way
        return
    stream.recv_window -= length
    buffer = self.stream_buffers.get(stream.stream_id)
    if buffer is not None:
        buffer += data
        self.stream_events[stream.stream_id].set()


async def _take_ping(self: Yamux, answers: _Answers, flags: int, value: int) -> None:
    if flags & FLAG_SYN:
        await answers.to_ping(value)
    elif flags & FLAG_ACK:
        taken = trio.current_time() - self._ping_sent_time
        self._rtt = (self._rtt + taken) / 2 if self._rtt else taken
        self._ping_event.set()


def _header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)


async def _close(self: Yamux, error_code: int = GO_AWAY_NORMAL) -> None:
    if not self.event_shutting_down.is_set():
        self.event_shutting_down.set()
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_GO_AWAY, 0, 0, error_code)
        with trio.move_on_after(GOODBYE_S), suppress(Exception):
            async with self._write_lock:  # not by _write_frame, which nothing cuts short: after this frame comes none
                await self.secured_conn.write(header)
    await self._cleanup_on_error()
