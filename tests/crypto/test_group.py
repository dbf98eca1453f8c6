"""Strict encodings, and petlib's arithmetic against libsecp256k1's."""

from __future__ import annotations

import random

import pytest
from coincurve import PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from petlib.ec import EcGroup, EcPt

from p2pdfl.base.types import Point
from p2pdfl.crypto import group

FIELD = 2**256 - 2**32 - 977

scalars = st.integers(1, group.ORDER - 1)
few = settings(max_examples=25)


def point_of(secret: int) -> Point:
    return group.public_key(group.encode_scalar(secret))


def x_at_or_above_the_order() -> int:
    """An x in [q, field prime) that is on the curve: a valid point that ecrecover cannot express."""
    x = group.ORDER
    while pow((x**3 + 7) % FIELD, (FIELD - 1) // 2, FIELD) != 1:
        x += 1
    return x


@given(secret=scalars)
@few
def test_points_round_trip(secret: int) -> None:
    point = point_of(secret)
    assert group.encode(group.decode(point)) == point


@given(secret=scalars)
@few
def test_decoding_agrees_with_openssl(secret: int) -> None:
    point = point_of(secret)
    assert group.decode(point) == EcPt.from_binary(point, EcGroup(714))


@given(secret=scalars)
@few
def test_a_public_key_is_libsecp256k1s(secret: int) -> None:
    assert point_of(secret) == PublicKey.from_secret(secret.to_bytes(32, "big")).format()


GOOD = point_of(7)
UNCOMPRESSED = PublicKey(GOOD).format(compressed=False)
HYBRID = bytes([6 + (UNCOMPRESSED[-1] & 1)]) + UNCOMPRESSED[1:]


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        (b"", "not 33 bytes"),
        (b"\x00", "not 33 bytes"),
        (UNCOMPRESSED, "not 33 bytes"),
        (HYBRID, "not 33 bytes"),
        (GOOD + b"\x00", "not 33 bytes"),
        (GOOD[:-1], "not 33 bytes"),
        (bytes(33), "not on the curve"),
        (b"\x04" + GOOD[1:], "not on the curve"),
        (b"\x06" + GOOD[1:], "not on the curve"),
        (b"\x00" + GOOD[1:], "not on the curve"),
        (b"\x02" + (5).to_bytes(32, "big"), "not on the curve"),
        (b"\x02" + x_at_or_above_the_order().to_bytes(32, "big"), "x is not below the group order"),
        (b"\x02" + (FIELD + 1).to_bytes(32, "big"), "x is not below the group order"),
    ],
    ids=[
        "empty",
        "infinity",
        "uncompressed",
        "hybrid",
        "trailing byte",
        "truncated",
        "zeros",
        "33 bytes with tag 4",
        "33 bytes with tag 6",
        "33 bytes with tag 0",
        "off the curve",
        "x at or above q",
        "x above the field",
    ],
)
def test_other_encodings_are_refused(encoding: bytes, reason: str) -> None:
    for refuse in (group.decode, group.check, group.coordinates):
        with pytest.raises(group.InvalidPoint, match=reason):
            refuse(encoding)


def test_the_point_with_x_above_the_order_would_otherwise_be_valid() -> None:
    PublicKey(b"\x02" + x_at_or_above_the_order().to_bytes(32, "big"))


@given(data=st.binary(max_size=70) | st.binary(min_size=32, max_size=32).map(lambda x: b"\x03" + x))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        element = group.decode(data)
    except group.InvalidPoint:
        return
    assert group.encode(element) == data


def test_infinity_has_no_encoding() -> None:
    with pytest.raises(group.InvalidPoint, match="infinity"):
        group.encode(group.weighted_sum([], []))


@given(value=st.integers(0, group.ORDER - 1))
def test_scalars_round_trip(value: int) -> None:
    assert group.decode_scalar(group.encode_scalar(value)) == value


@pytest.mark.parametrize("value", [group.ORDER, group.ORDER + 1, 2**256 - 1])
def test_scalars_at_or_above_the_order_are_refused(value: int) -> None:
    with pytest.raises(group.InvalidScalar):
        group.decode_scalar(value.to_bytes(32, "big"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_scalars_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(group.InvalidScalar):
        group.decode_scalar(bytes(length))


def test_zero_is_no_secret() -> None:
    with pytest.raises(group.InvalidScalar, match="zero"):
        group.public_key(bytes(32))


@pytest.mark.parametrize("wide", [bytes(48), b"\xff" * 48, (group.ORDER - 1).to_bytes(48, "big")])
def test_a_random_scalar_is_never_zero(wide: bytes) -> None:
    assert 0 < group.nonzero_scalar(wide) < group.ORDER


@given(base=scalars, secret=scalars)
@few
def test_multiplication_agrees_with_libsecp256k1(base: int, secret: int) -> None:
    ours = group.multiply(group.decode(point_of(base)), secret)
    theirs = PublicKey(point_of(base)).multiply(secret.to_bytes(32, "big")).format()
    assert group.encode(ours) == theirs


@given(weights=st.lists(scalars, min_size=1, max_size=6), seed=st.integers())
@few
def test_a_weighted_sum_agrees_with_libsecp256k1(weights: list[int], seed: int) -> None:
    stream = random.Random(seed)
    points = [point_of(stream.randrange(1, group.ORDER)) for _ in weights]
    products = [
        PublicKey(point).multiply(weight.to_bytes(32, "big")) for weight, point in zip(weights, points, strict=True)
    ]
    ours = group.weighted_sum(weights, [group.decode(point) for point in points])
    assert group.encode(ours) == PublicKey.combine_keys(products).format()


def test_a_weighted_sum_counts_mod_the_order() -> None:
    assert group.weighted_sum([group.ORDER + 3], [group.GENERATOR]) == group.decode(point_of(3))
    assert group.weighted_sum([-1], [group.GENERATOR]) == group.decode(point_of(group.ORDER - 1))


def test_a_weighted_sum_may_be_longer_than_one_product() -> None:
    count = 600
    assert group.weighted_sum([1] * count, [group.GENERATOR] * count) == group.decode(point_of(count))


def test_a_sum_of_points_is_their_sum() -> None:
    assert group.sum_points([point_of(3), point_of(4), point_of(5)]) == point_of(12)


def test_a_sum_that_is_infinity_is_refused() -> None:
    with pytest.raises(group.InvalidPoint, match="sum is infinity"):
        group.sum_points([point_of(3), point_of(group.ORDER - 3)])


def test_the_generator_is_secp256k1s() -> None:
    assert EcGroup(714).generator() == group.GENERATOR
    assert int(EcGroup(714).order().hex(), 16) == group.ORDER
