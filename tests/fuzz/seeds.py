"""Where fuzzing begins: real encoded values, made anew each time."""

from __future__ import annotations

import random
import types as python_types
from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Len, Lt
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_varint_prefixed

from p2pdfl.base.codec import encode
from p2pdfl.base.types import PAYLOAD_TYPES, Envelope, Packet, Wire
from p2pdfl.byzantine.attacks import zip_bomb
from p2pdfl.learning.compression import shorten
from p2pdfl.learning.quantize import CODINGS, HEADER_BYTES, Header
from p2pdfl.learning.quantize import encode as encode_update
from p2pdfl.net.blobs.pull import encode_request

from .targets import WIRE_TYPES


def seeds(target: str) -> list[bytes]:
    return list({"codec": _codec, "gossip": _gossip, "pull": _pull, "update": _update}[target](random.Random(0)))


def _codec(rng: random.Random) -> Iterator[bytes]:
    for place, kind in enumerate(WIRE_TYPES):
        for _ in range(4):
            yield bytes([place]) + encode(_value(kind, (), rng))
    for number, payload_type in PAYLOAD_TYPES.items():
        payload = encode(_value(payload_type, (), rng))
        envelope = Envelope(task=bytes(32), epoch=1, round=5, view=0, kind=number, body=sha256(payload).digest())
        packet = Packet(envelope=envelope, signature=bytes(64), payload=payload)
        yield bytes([WIRE_TYPES.index(Packet)]) + encode(packet)


def _value(annotation: Any, metadata: tuple[Any, ...], rng: random.Random) -> Any:
    """Something that a field's annotation allows; lists have up to three entries."""
    if get_origin(annotation) is Annotated:
        inner, *metadata_of = get_args(annotation)
        return _value(inner, tuple(metadata_of), rng)
    if get_origin(annotation) in (Union, python_types.UnionType):
        return _value(rng.choice(get_args(annotation)), (), rng)
    lengths = [item for item in metadata if isinstance(item, Len)]
    if get_origin(annotation) is tuple:
        count = rng.randint(lengths[0].min_length, max(3, lengths[0].min_length))
        return tuple(_value(get_args(annotation)[0], (), rng) for _ in range(count))
    if annotation is type(None):
        return None
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is int:
        low = max((_number(item.ge) for item in metadata if isinstance(item, Ge)), default=0)
        high = min(_number(item.lt) for item in metadata if isinstance(item, Lt))
        return rng.choice([low, high - 1, rng.randrange(low, high)])
    if annotation is bytes:
        return rng.randbytes(rng.randint(lengths[0].min_length, min(lengths[0].max_length or 64, 64)))
    assert issubclass(annotation, Wire), annotation
    fields = annotation.model_fields.items()
    return annotation(**{name: _value(field.annotation, tuple(field.metadata), rng) for name, field in fields})


def _number(bound: object) -> int:
    assert isinstance(bound, int)
    return bound


def _gossip(rng: random.Random) -> Iterator[bytes]:
    key = create_new_key_pair(bytes(32))
    message = rpc_pb2.Message(
        data=b"hello", topicIDs=["topic"], from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=bytes(8)
    )
    message.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    keyed = rpc_pb2.Message(data=b"x", key=key.public_key.serialize(), from_id=rng.randbytes(38), signature=bytes(64))
    hello = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="topic")])
    graft = rpc_pb2.RPC()
    graft.control.graft.add(topicID="topic")
    graft.control.prune.add(topicID="topic", backoff=60)
    graft.control.ihave.add(topicID="topic", messageIDs=[b"id"])
    frames = [
        encode_varint_prefixed(rpc.SerializeToString())
        for rpc in (rpc_pb2.RPC(publish=[message]), rpc_pb2.RPC(publish=[keyed, message]), hello, graft)
    ]
    yield from frames
    yield b"".join(frames)
    yield encode_varint_prefixed(bytes(5000))
    yield b"\xff" * 10


def _update(rng: random.Random) -> Iterator[bytes]:
    for place, coding in enumerate(CODINGS.values()):
        for dimension in (1, 2, 255, 257, 1025, 2048):
            header = Header(task_id=bytes(32), round=1, author=bytes(20), dimension=dimension)
            for vector in (np.zeros(dimension), np.array([rng.gauss(0, 1) ** 3 for _ in range(dimension)])):
                update = encode_update(vector, header, coding)
                what = place | dimension - 1 << 2
                yield what.to_bytes(2, "big") + update[HEADER_BYTES:]
                for level in (1, 19):
                    yield (what | 2).to_bytes(2, "big") + shorten(update, level)[HEADER_BYTES:]
    yield bytes([0, 2]) + zip_bomb(200)


def _pull(rng: random.Random) -> Iterator[bytes]:
    for position in (0, 3, 4):
        yield encode_request(rng.randbytes(32), position)
    ask, late, drop, receive = 0, 8, 12, 28
    for chunks in (0, 1, 5, 19):
        length = (64 * chunks + 1).to_bytes(2, "big")
        yield length + bytes([ask, receive] * (chunks + 1))
        yield length + bytes([ask, ask + 1, ask + 2, receive, receive + 1, receive + 2, late, 255] * (chunks + 1))
        yield length + bytes([ask, ask, receive, drop, ask + 1, receive + 1] * (chunks + 1))
    for _ in range(10):
        yield rng.randbytes(60)
