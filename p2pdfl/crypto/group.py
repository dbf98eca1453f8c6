"""The group secp256k1, of prime order q: strict encodings, and two ways to multiply.

`multiply` is petlib's (OpenSSL's) ladder, constant-time in the scalar: every secret goes through it alone.
`weighted_sum` is OpenSSL's multi-scalar product, an order of magnitude faster per point and measurably dependent on
the scalars: public values only.
Points are parsed by libsecp256k1 (coincurve), four times faster than OpenSSL and without its leniency towards the
infinity, uncompressed and hybrid encodings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from coincurve import PublicKey
from petlib.bn import Bn
from petlib.ec import EcGroup, EcPt

from p2pdfl.base.types import Entropy, Point, Scalar

if not __debug__:
    # Under -O petlib checks no return code: a failed sum is silently the point at infinity, and proofs pass.
    raise RuntimeError("p2pdfl does not run under `python -O`: petlib would accept forged proofs; start without -O")

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""q, which the contract's side calls N."""
WIDE_SCALAR_BYTES = 48
"""Random bytes per scalar: 16 more than q has, so that reduction mod q biases by less than 2^-128."""
WEIGHT_BYTES = 16
"""Random weights of batch checks: a false equation passes with probability 2^-128."""

Element: TypeAlias = EcPt
"""A decoded point.  Never mutated here: petlib's in-place operations are not used."""

_SUM_POINTS_MAX = 256
"""Points per multi-scalar product; OpenSSL gets slower per point beyond (measured)."""
_NID_SECP256K1 = 714

_GROUP = EcGroup(_NID_SECP256K1, optimize_mult=False)


class InvalidPoint(ValueError):
    """Not the 33-byte encoding of a point other than infinity with x < q."""


class InvalidScalar(ValueError):
    """Not a 32-byte big-endian integer below q."""


def decode(point: Point) -> Element:
    """Raises InvalidPoint."""
    return EcPt.from_binary(_parse(point).format(compressed=False), _GROUP)


def check(point: Point) -> None:
    """Raises InvalidPoint; what a registration's PVSS key must pass."""
    _parse(point)


def coordinates(point: Point) -> bytes:
    """x, then y, 32 bytes each.  Raises InvalidPoint."""
    return _parse(point).format(compressed=False)[1:]


def encode(element: Element) -> Point:
    """Raises InvalidPoint for infinity, which has no encoding here."""
    encoded: bytes = element.export()
    if len(encoded) != 33:
        raise InvalidPoint("infinity")
    return encoded


def decode_scalar(scalar: Scalar) -> int:
    """Raises InvalidScalar."""
    value = int.from_bytes(scalar, "big")
    if len(scalar) != 32 or value >= ORDER:
        raise InvalidScalar("not below the group order in 32 bytes")
    return value


def encode_scalar(value: int) -> Scalar:
    assert 0 <= value < ORDER
    return value.to_bytes(32, "big")


def random_scalar(entropy: Entropy) -> int:
    """Uniform in [1, q)."""
    return nonzero_scalar(entropy(WIDE_SCALAR_BYTES))


def random_weight(entropy: Entropy) -> int:
    """ATTACK: weights that a prover can foresee let it cancel one false equation against another."""
    return int.from_bytes(entropy(WEIGHT_BYTES), "big")


def nonzero_scalar(wide: bytes) -> int:
    """WIDE_SCALAR_BYTES of randomness -> [1, q)."""
    assert len(wide) == WIDE_SCALAR_BYTES
    return int.from_bytes(wide, "big") % (ORDER - 1) + 1


def multiply(element: Element, secret: int) -> Element:
    """Constant-time in `secret`, which must be in [1, q)."""
    assert 0 < secret < ORDER
    return element.pt_mul(_big_number(secret))


def weighted_sum(weights: Sequence[int], elements: Sequence[Element]) -> Element:
    """Not constant-time: never a secret here.  Weights count mod q; the empty sum is infinity."""
    assert len(weights) == len(elements)
    total = _GROUP.infinite()
    for start in range(0, len(elements), _SUM_POINTS_MAX):
        stop = start + _SUM_POINTS_MAX
        total = total + _GROUP.wsum(
            [_big_number(weight % ORDER) for weight in weights[start:stop]], list(elements[start:stop])
        )
    return total


def sum_points(points: Iterable[Point]) -> Point:
    """At least one.  Raises InvalidPoint if one of them is, or if they sum to infinity."""
    keys = [_parse(point) for point in points]
    assert keys, "libsecp256k1 aborts the process on an empty sum"
    try:
        return PublicKey.combine_keys(keys).format()
    except ValueError:
        raise InvalidPoint("sum is infinity") from None


def public_key(secret: Scalar) -> Point:
    """secret * G.  Raises InvalidScalar, also for zero."""
    scalar = decode_scalar(secret)
    if scalar == 0:
        raise InvalidScalar("zero")
    return encode(multiply(GENERATOR, scalar))


def _parse(point: Point) -> PublicKey:
    if len(point) != 33:
        raise InvalidPoint("not 33 bytes")
    # The contract multiplies by way of ecrecover, which knows no x at or above q: such a point could not be disputed.
    if int.from_bytes(point[1:], "big") >= ORDER:
        raise InvalidPoint("x is not below the group order")
    try:
        return PublicKey(point)
    except ValueError:
        raise InvalidPoint("not on the curve") from None


def _big_number(value: int) -> Bn:
    # Bn(int) is limited to 64 bits
    return Bn.from_binary(value.to_bytes(32, "big"))


GENERATOR = decode(bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"))
"""G, secp256k1's standard base point (SEC 2)."""
