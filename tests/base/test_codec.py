"""Every value has one encoding, and bytes from a stranger decode to it or are refused."""

from __future__ import annotations

import types as python_types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import msgpack
import pytest
from annotated_types import Ge, Len, Lt
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base import types
from p2pdfl.base.codec import Malformed, body_digest, decode, decode_payload, digest_of, encode
from p2pdfl.base.types import (
    PAYLOAD_TYPES,
    Accuse,
    Digest,
    Envelope,
    Head,
    Kind,
    Notarize,
    Packet,
    Propose,
    VerdictEntry,
    Wire,
)

LIMIT = 1 << 20
DIGEST = b"d" * 32

WIRE_TYPES = [
    declared
    for declared in vars(types).values()
    if isinstance(declared, type) and issubclass(declared, Wire) and declared is not Wire
]


def values(annotation: Any, metadata: Sequence[object] = ()) -> st.SearchStrategy[Any]:
    """A strategy for what a field's annotation allows; long tuples are cut to three."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return values(inner, metadata)
    if get_origin(annotation) in (Union, python_types.UnionType):
        return st.one_of([values(option) for option in get_args(annotation)])
    if get_origin(annotation) is tuple:
        element, _ = get_args(annotation)
        (length,) = (item for item in metadata if isinstance(item, Len))
        longest = max(3, length.min_length)
        return st.lists(values(element), min_size=length.min_length, max_size=longest).map(tuple)
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low = max((_number(item.ge) for item in metadata if isinstance(item, Ge)), default=0)
        high = min(_number(item.lt) for item in metadata if isinstance(item, Lt))
        return st.integers(low, high - 1)
    if annotation is bytes:
        (length,) = (item for item in metadata if isinstance(item, Len))
        return st.binary(min_size=length.min_length, max_size=min(_number(length.max_length), 64))
    assert issubclass(annotation, Wire), annotation
    fields = {name: values(field.annotation, field.metadata) for name, field in annotation.model_fields.items()}
    return st.builds(annotation, **fields)


def _number(bound: object) -> int:
    assert isinstance(bound, int)
    return bound


MADE = {wire_type: values(wire_type) for wire_type in WIRE_TYPES}
anything = st.sampled_from(WIRE_TYPES).flatmap(MADE.__getitem__)
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.integers() | st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)
few = settings(max_examples=30)


def decodes_canonically_or_not_at_all(wire_type: type[Wire], data: bytes) -> None:
    try:
        value = decode(wire_type, data, bytes_max=LIMIT)
    except Malformed:
        return
    assert encode(value) == data


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("wire_type", WIRE_TYPES, ids=lambda wire_type: wire_type.__name__)
def test_every_type_round_trips(wire_type: type[Wire]) -> None:
    @given(value=MADE[wire_type])
    @few
    def round_trips(value: Wire) -> None:
        assert decode(wire_type, encode(value), bytes_max=LIMIT) == value

    round_trips()


def test_every_payload_type_is_covered() -> None:
    assert set(PAYLOAD_TYPES.values()) <= set(WIRE_TYPES)
    assert set(PAYLOAD_TYPES) == set(Kind)


@given(one=MADE[VerdictEntry], other=MADE[VerdictEntry])
@few
def test_different_values_have_different_bytes(one: VerdictEntry, other: VerdictEntry) -> None:
    assert (encode(one) == encode(other)) == (one == other)
    assert (digest_of(one) == digest_of(other)) == (one == other)


# --- hostile bytes -----------------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200), wire_type=st.sampled_from(WIRE_TYPES))
def test_random_bytes_are_refused_or_canonical(data: bytes, wire_type: type[Wire]) -> None:
    decodes_canonically_or_not_at_all(wire_type, data)


@pytest.mark.slow
@given(tree=trees, wire_type=st.sampled_from(WIRE_TYPES))
@few
def test_random_msgpack_is_refused_or_canonical(tree: object, wire_type: type[Wire]) -> None:
    try:
        data = msgpack.packb(tree)
    except OverflowError:
        return
    decodes_canonically_or_not_at_all(wire_type, data)


@pytest.mark.slow
@given(value=anything, data=st.data())
def test_damaged_encodings_are_refused_or_canonical(value: Wire, data: st.DataObject) -> None:
    encoded = bytearray(encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    match data.draw(st.sampled_from(["change", "cut", "insert"])):
        case "change":
            encoded[position] = data.draw(st.integers(0, 255))
        case "cut":
            del encoded[position:]
        case "insert":
            encoded[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    decodes_canonically_or_not_at_all(type(value), bytes(encoded))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * LIMIT,
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdd\x00\x00\xff\xff" * 13_000,
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc1",
        b"",
    ],
    ids=["deep", "deep and long", "deep and plausible", "bin", "map", "ext", "reserved", "empty"],
)
def test_headers_that_promise_too_much_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(Propose, data, bytes_max=LIMIT)


def test_more_bytes_than_the_limit_are_refused() -> None:
    data = encode(Notarize(head=DIGEST))
    assert decode(Notarize, data, bytes_max=len(data)) == Notarize(head=DIGEST)
    with pytest.raises(Malformed, match="too long"):
        decode(Notarize, data, bytes_max=len(data) - 1)


# --- one encoding ------------------------------------------------------------------------------------------------

ACCUSE = b"\x92\x01\x05"


def test_the_encoding_is_the_array_of_fields() -> None:
    assert encode(Accuse(accused=1, audited_round=5)) == ACCUSE
    assert encode(Notarize(head=DIGEST)) == b"\x91\xc4\x20" + DIGEST


@pytest.mark.parametrize(
    "data",
    [
        b"\x92\xcc\x01\x05",
        b"\x92\xcd\x00\x01\x05",
        b"\x92\xce\x00\x00\x00\x01\x05",
        b"\x92\xcf\x00\x00\x00\x00\x00\x00\x00\x01\x05",
        b"\x92\xd0\x01\x05",
        b"\x92\xd3\x00\x00\x00\x00\x00\x00\x00\x01\x05",
        b"\xdc\x00\x02\x01\x05",
        b"\xdd\x00\x00\x00\x02\x01\x05",
        b"\x92\xc3\x05",
        b"\x92\xca\x3f\x80\x00\x00\x05",
        b"\x92\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\x05",
        b"\x92\xa1\x31\x05",
        b"\x92\xc4\x01\x01\x05",
        b"\x92\xd4\x01\x01\x05",
        b"\x92\xd6\xff\x00\x00\x00\x01\x05",
        b"\x92\xc0\x05",
        b"\x92\xff\x05",
        b"\x92\x91\x01\x05",
        b"\x82\xa7accused\x01\xadaudited_round\x05",
        b"\x92\x80\x05",
        b"\x91\x01",
        b"\x93\x01\x05\x05",
        ACCUSE + b"\x00",
        ACCUSE + ACCUSE,
        b"\x01",
    ],
    ids=[
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int64",
        "array16",
        "array32",
        "bool",
        "float32",
        "float64",
        "text",
        "bytes",
        "extension",
        "timestamp",
        "nil",
        "negative",
        "array",
        "map of fields",
        "empty map",
        "short",
        "long",
        "trailing byte",
        "twice",
        "no array",
    ],
)
def test_any_other_encoding_of_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(Accuse, data, bytes_max=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"\x91\xc5\x00\x20" + DIGEST,
        b"\x91\xc6\x00\x00\x00\x20" + DIGEST,
        b"\x91\xd9\x20" + DIGEST,
        b"\x91\xc4\x1f" + DIGEST[1:],
        b"\x91\xc4\x21" + DIGEST + b"d",
        b"\x91\xdc\x00\x20" + bytes(32),
    ],
    ids=["bin16", "bin32", "text", "short", "long", "array of bytes"],
)
def test_any_other_encoding_of_a_digest_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(Notarize, data, bytes_max=LIMIT)


@pytest.mark.parametrize(
    ("wire_type", "array"),
    [
        (Accuse, (256, 0)),
        (Accuse, (0, 2**32)),
        (Accuse, (0, 2**64 - 1)),
        (Envelope, (DIGEST, 0, 0, 0, 0, DIGEST)),
        (Envelope, (DIGEST, 0, 0, 0, 7, DIGEST)),
        (VerdictEntry, (0, 0, 0, 0, 0, 5)),
    ],
)
def test_numbers_out_of_range_are_refused(wire_type: type[Wire], array: tuple[object, ...]) -> None:
    with pytest.raises(Malformed):
        decode(wire_type, msgpack.packb(array), bytes_max=LIMIT)


def test_a_list_above_its_limit_is_refused() -> None:
    entries = tuple((0, DIGEST) for _ in range(257))
    with pytest.raises(Malformed):
        decode(types.Contents, msgpack.packb((entries, (), (), (), DIGEST)), bytes_max=LIMIT)
    decode(types.Contents, msgpack.packb((entries[:256], (), (), (), DIGEST)), bytes_max=LIMIT)


# --- packets -----------------------------------------------------------------------------------------------------


def packet(kind: Kind, payload_bytes: bytes, body: Digest) -> Packet:
    envelope = Envelope(task=DIGEST, epoch=0, round=0, view=0, kind=kind, body=body)
    return Packet(envelope=envelope, signature=bytes(64), payload=payload_bytes)


@pytest.mark.parametrize("payload", [Notarize(head=DIGEST), Accuse(accused=1, audited_round=5)])
def test_a_packet_carries_the_payload_that_its_kind_says(payload: Notarize | Accuse) -> None:
    (kind,) = (kind for kind, declared in PAYLOAD_TYPES.items() if declared is type(payload))
    assert decode_payload(packet(kind, encode(payload), body_digest(payload))) == payload


def test_a_payload_that_is_not_the_signed_body_is_refused() -> None:
    signed, other = Notarize(head=DIGEST), Notarize(head=bytes(32))
    with pytest.raises(Malformed, match="not the signed body"):
        decode_payload(packet(Kind.NOTARIZE, encode(other), body_digest(signed)))


def test_a_payload_of_another_kind_is_refused() -> None:
    payload = Accuse(accused=1, audited_round=5)
    with pytest.raises(Malformed, match="not a Notarize"):
        decode_payload(packet(Kind.NOTARIZE, encode(payload), body_digest(payload)))


# --- wire values -------------------------------------------------------------------------------------------------


def test_wire_values_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Notarize(head=DIGEST).head = bytes(32)  # type: ignore[misc]


def test_replace_validates() -> None:
    words: dict[str, Any] = {name: 0 if name in ("epoch", "round") else DIGEST for name in Head.model_fields}
    head = Head(**words)
    assert head.replace(round=3).round == 3
    with pytest.raises(ValueError, match="round"):
        head.replace(round=-1)
    with pytest.raises(ValueError, match="task"):
        head.replace(task=b"short")
