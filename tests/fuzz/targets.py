"""What bytes of a stranger may do: each target takes any bytes, and an exception that comes out is a bug.

codec: every wire type decodes to a value with exactly these bytes, or Malformed is raised.
gossip: the stream's frames are cut alike however the bytes come in; no message makes the signature's check raise.
pull: a server answers any request; a puller among holders of any kind believes only what the digest proves, blames
    only who lied, keeps what it promised to keep, and one honest holder is always enough to get to the end.
update: what follows the header, raw or compressed, gives the one update that it is an encoding of, or Malformed is
    raised.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from hashlib import sha256

import numpy as np
from google.protobuf.message import DecodeError
from libp2p.pubsub.pb import rpc_pb2

from p2pdfl.base import types
from p2pdfl.base.codec import Malformed, decode, decode_payload, encode
from p2pdfl.base.params import PACKET_BYTES_MAX
from p2pdfl.learning.compression import expand, shorten
from p2pdfl.learning.quantize import CODINGS, Header, parse
from p2pdfl.learning.quantize import encode as encode_update
from p2pdfl.net.blobs import pull
from p2pdfl.net.blobs.pull import Assembly, NotHeld, Patience, Served
from p2pdfl.net.gossip import pubsub
from p2pdfl.protocol.checkpoint import CheckpointReply, CheckpointRequest
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest

WIRE_TYPES: list[type[types.Wire]] = [
    *(
        declared
        for declared in vars(types).values()
        if isinstance(declared, type) and issubclass(declared, types.Wire) and declared is not types.Wire
    ),
    ResyncRequest,
    ResyncReply,
    CheckpointRequest,
    CheckpointReply,
]
"""A codec input's first byte is a place in this list."""

FRAME_BYTES_MAX = 1 << 12
CHUNK_BYTES = 64
"""Chunks of pulls that are fuzzed."""
HOLDERS = 4
DIMENSION_MAX = 1 << 11
"""Of fuzzed updates."""
PATIENCE = Patience(requests_per_holder_max=2, steal_s=1.0)


def _pass_over(error: Malformed) -> None:
    pass


on_refusal: Callable[[Malformed], None] = _pass_over
"""Told why the codec refused, so that a fuzzer can see progress inside libraries that it cannot look into."""


# --- codec -------------------------------------------------------------------------------------------------------


def codec(data: bytes) -> None:
    if not data:
        return
    kind = WIRE_TYPES[data[0] % len(WIRE_TYPES)]
    try:
        value = decode(kind, data[1:], bytes_max=PACKET_BYTES_MAX)
    except Malformed as error:
        return on_refusal(error)
    assert encode(value) == data[1:]
    assert decode(kind, data[1:], bytes_max=PACKET_BYTES_MAX) == value
    if isinstance(value, types.Packet):
        _open(value)
        # fuzzing finds no sha256: what would be a payload if it were the signed body?
        body = sha256(value.payload).digest()
        _open(value.replace(envelope=value.envelope.replace(body=body)))


def _open(packet: types.Packet) -> None:
    try:
        payload = decode_payload(packet)
    except Malformed as error:
        return on_refusal(error)
    assert encode(payload) == packet.payload


# --- gossip ------------------------------------------------------------------------------------------------------


def gossip(data: bytes) -> None:
    whole = _frames([data])
    assert whole == _frames([data[start : start + 1] for start in range(64)] + [data[64:100], data[100:]])
    for frame in whole[0]:
        assert len(frame) <= FRAME_BYTES_MAX
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(frame)
        except DecodeError:
            continue
        for message in rpc.publish:
            pubsub._is_signed(message)
            pubsub._message_id(message)


def _frames(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """The frames, and whether they end with a bad one."""
    frames = pubsub._Frames(None, FRAME_BYTES_MAX)  # type: ignore[arg-type]
    taken: list[bytes] = []
    try:
        for piece in pieces:
            frames._unread += piece
            while (frame := frames._take()) is not None:
                taken.append(frame)
    except pubsub._BadFrame:
        return taken, True
    return taken, False


# --- pull --------------------------------------------------------------------------------------------------------


def pull_(data: bytes) -> None:
    before = pull.CHUNK_BYTES
    pull.CHUNK_BYTES = CHUNK_BYTES
    try:
        _serve(data)
        _assemble(data)
    finally:
        pull.CHUNK_BYTES = before


def _serve(request: bytes) -> None:
    try:
        digest, position = pull.decode_request(request)
        assert pull.encode_request(digest, position) == request
        piece = Served(digest * 10).piece(position)
    except Malformed:
        return
    assert pull.decode_reply(pull.encode_reply(piece), position) == piece


def _assemble(script: bytes) -> None:
    """Two bytes of the blob's length, then steps: a byte for what happens to whom, and what it needs."""
    reader = _Reader(script)
    served = _served(reader.number(2) % (20 * CHUNK_BYTES))
    blob = served.blob
    one: Assembly[int] = Assembly(sha256(blob).digest(), bytes_max=20 * CHUNK_BYTES, patience=PATIENCE)
    asked: dict[int, list[int]] = {holder: [] for holder in range(HOLDERS)}
    liars: set[int] = set()
    now_s = 0.0
    while not reader.is_empty:
        step = reader.number(1)
        holder, action = step % HOLDERS, step // HOLDERS % 8
        match action:
            case 0 | 1:
                position = one.ask(holder, now_s)
                if position is not None:
                    assert position not in asked[holder]
                    asked[holder].append(position)
            case 2:
                now_s += reader.number(1) / 16
                one.next_steal_s(holder, now_s)
            case 3:
                one.drop(holder)
                asked[holder].clear()
            case 4:
                one.pause()
                for positions in asked.values():
                    positions.clear()
            case _ if asked[holder]:
                position = asked[holder].pop(0)
                reply = true = pull.encode_reply(served.piece(position))
                if action == 5:
                    reply = reader.bytes(reader.number(1))
                elif action == 6:
                    reply = _changed(true, reader)
                if reply != true:
                    liars.add(holder)
                _give(one, holder, position, reply, now_s, asked, liars)
        assert len(one._unproved) <= HOLDERS * (PATIENCE.requests_per_holder_max + 1)
        assert all(len(positions) <= PATIENCE.requests_per_holder_max + 1 for positions in asked.values())
    proved = b"".join(reversed(one.chunks))
    assert len(proved) == one.proved_bytes
    assert blob.endswith(proved), "a lie is believed"
    assert one.length in (None, len(blob))
    _finish(one, served, now_s)
    assert one.blob() == blob


@cache
def _served(length: int) -> Served:
    return Served(random.Random(0).randbytes(length))


def _give(
    one: Assembly[int],
    holder: int,
    position: int,
    reply: bytes,
    now_s: float,
    asked: dict[int, list[int]],
    liars: set[int],
) -> None:
    try:
        piece = pull.decode_reply(reply, position)
        assert piece is None or pull.encode_reply(piece) == reply
        gone = one.receive(holder, position, reply, now_s)
    except (Malformed, NotHeld):
        assert holder in liars
        gone = {holder}
    assert gone <= liars, "who told the truth is blamed"
    for liar in gone:
        one.drop(liar)
        asked[liar].clear()


def _changed(true: bytes, reader: _Reader) -> bytes:
    reply = bytearray(true)
    place = reader.number(2) % len(reply)
    reply[place] ^= reader.number(1)
    return bytes(reply)


def _finish(one: Assembly[int], served: Served, now_s: float) -> None:
    """One honest holder comes along, and what others keep back or lied about holds it up for no more than patience."""
    for _ in range(200):
        if one.is_complete:
            return
        now_s += PATIENCE.steal_s
        position = one.ask(HOLDERS, now_s)
        if position is not None:
            for liar in one.receive(HOLDERS, position, pull.encode_reply(served.piece(position)), now_s):
                assert liar != HOLDERS
                one.drop(liar)
    raise AssertionError("an honest holder is not enough")


# --- update ------------------------------------------------------------------------------------------------------


def update(data: bytes) -> None:
    """A bit for the codes and one for compression, fourteen for the dimension; then what follows the header."""
    reader = _Reader(data)
    what = reader.number(2)
    coding = list(CODINGS.values())[what & 1]
    header = Header(task_id=bytes(32), round=1, author=bytes(20), dimension=1 + (what >> 2) % DIMENSION_MAX)
    sent = header.to_bytes() + data[2:]
    try:
        expanded = expand(sent, header, coding) if what & 2 else sent
        quantized = parse(expanded, header, coding)
    except Malformed as error:
        return on_refusal(error)
    values = quantized.values()
    assert len(expanded) == coding.update_bytes(header.dimension)
    assert values.size == header.dimension
    assert np.isfinite(values).all()
    assert encode_update(values, header, coding) == expanded
    assert expand(shorten(expanded), header, coding) == expanded


class _Reader:
    """Zeros at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.bytes(count), "big")


TARGETS: dict[str, Callable[[bytes], None]] = {"codec": codec, "gossip": gossip, "pull": pull_, "update": update}
