"""Canonical bytes <-> wire payloads, with size limits.

Canonical means msgpack arrays of integers, byte strings, nil and arrays in declared field order: no maps, no text
strings, no floats, no extension types, shortest integer form.  `decode` re-encodes and compares, so each value has
exactly one encoding and a digest over bytes is a digest over the value (DESIGN 4).
"""

from __future__ import annotations

from hashlib import sha256
from typing import TypeVar

import msgpack
from pydantic import ValidationError

from p2pdfl.base.types import PAYLOAD_TYPES, Digest, Kind, Packet, Payload, Wire

W = TypeVar("W", bound=Wire)


class Malformed(ValueError):
    """Bytes that are not the canonical encoding of the expected type."""


def encode(value: Wire) -> bytes:
    packed: bytes = msgpack.packb(value.to_array(), use_bin_type=True)
    return packed


def decode(kind: type[W], data: bytes, *, bytes_max: int) -> W:
    """The value that `data` is the one canonical encoding of.  Raises Malformed."""
    if len(data) > bytes_max:
        raise Malformed("too long")
    try:
        array = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=0,
            max_bin_len=len(data),
            max_array_len=max(len(data), 1),
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed("not msgpack within limits") from error
    if not isinstance(array, tuple):
        raise Malformed("not an array")
    try:
        value = kind.model_validate(array)
    except ValidationError as error:
        raise Malformed(f"not a {kind.__name__}") from error
    if encode(value) != data:
        raise Malformed("not canonical")
    return value


def body_digest(payload: Payload) -> Digest:
    return sha256(encode(payload)).digest()


def digest_of(value: Wire) -> Digest:
    return sha256(encode(value)).digest()


def is_signed_payload(packet: Packet) -> bool:
    """Whether the payload is the one that the envelope signs."""
    return sha256(packet.payload).digest() == packet.envelope.body


def decode_payload(packet: Packet) -> Payload:
    """The packet's payload, checked against the body digest that its envelope signs.  Raises Malformed."""
    if not is_signed_payload(packet):
        raise Malformed("payload is not the signed body")
    payload_type: type[Wire] = PAYLOAD_TYPES[Kind(packet.envelope.kind)]
    return decode(payload_type, packet.payload, bytes_max=len(packet.payload))  # type: ignore[return-value]
