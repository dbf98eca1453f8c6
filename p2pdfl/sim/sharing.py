"""A stand-in for `crypto.pvss` without curve arithmetic, for simulations of many peers.

It keeps the interface, the sizes and the threshold: Shamir's sharing over the field of 2^31 - 1, in LANES values at
once.  "Points" are the values, "encryption" multiplies by a number that follows from the holder's public key, and
"proofs" are hashes of what they vouch for.  So it hides nothing from who computes, but fewer than `threshold` shares
do determine nothing, any `threshold` of them the same secret, and whatever is altered, or shown in another context,
does not verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from p2pdfl.base.types import Dealing, Digest, Entropy, Point, Scalar, Share
from p2pdfl.crypto import transcript
from p2pdfl.crypto.pvss import TooFewShares

PRIME = 2**31 - 1
LANES = 4

Values = npt.NDArray[np.uint64]

_PREFIX, _PADDING = b"\x02", bytes(32 - 4 * LANES)


class StandInSharing:
    def deal(self, context: Digest, keys: Sequence[Point], threshold: int, entropy: Entropy) -> Dealing:
        coefficients = _draw(entropy, threshold)
        values = _product(_powers(len(keys), threshold), coefficients)
        shares = _encode(values * _masks(tuple(keys)) % PRIME)
        # one draw hashed further gives what is not looked at
        filler = transcript.digest("sim/filler", entropy(16))
        commitments = tuple(b"\x02" + filler[:28] + index.to_bytes(4, "big") for index in range(len(keys)))
        return Dealing(
            encrypted_shares=shares,
            commitments=commitments,
            response=(_vouch(context, shares, commitments),) + (filler,) * (threshold - 1),
        )

    def find_invalid_dealings(
        self, dealings: Sequence[tuple[Digest, Dealing]], keys: Sequence[Point], threshold: int, entropy: Entropy
    ) -> set[int]:
        return {
            index
            for index, (context, dealing) in enumerate(dealings)
            if len(dealing.encrypted_shares) != len(keys)
            or len(dealing.response) != threshold
            or dealing.response[0] != _vouch(context, dealing.encrypted_shares, dealing.commitments)
        }

    def sum_dealings(self, dealings: Sequence[Dealing]) -> tuple[Point, ...]:
        total: Values = np.zeros((len(dealings[0].encrypted_shares), LANES), dtype=np.uint64)
        for dealing in dealings:
            total += _decode(dealing.encrypted_shares)
        return _encode(total % PRIME)

    def decrypt(self, context: Digest, secret_key: Scalar, public_key: Point, summed: Point, entropy: Entropy) -> Share:
        decrypted = _decrypted(public_key, summed)
        return Share(
            decrypted=decrypted,
            commitment_generator=_PREFIX + bytes(32),
            commitment_decrypted=_PREFIX + bytes(32),
            response=transcript.digest("sim/share", context, public_key, summed, decrypted),
        )

    def find_invalid_shares(self, items: Sequence[tuple[Digest, Point, Point, Share]], entropy: Entropy) -> set[int]:
        return {
            index
            for index, (context, key, summed, share) in enumerate(items)
            if share.decrypted != _decrypted(key, summed)
            or share.response != transcript.digest("sim/share", context, key, summed, share.decrypted)
        }

    def recover(self, shares: Mapping[int, Point], threshold: int) -> Point:
        if len(shares) < threshold:
            raise TooFewShares(f"{len(shares)} of {threshold}")
        chosen = tuple(sorted(shares)[:threshold])
        values = _decode(tuple(shares[index] for index in chosen))
        return _encode(_product(_lagrange(chosen), values))[0]


def _vouch(context: Digest, shares: tuple[Point, ...], commitments: tuple[Point, ...]) -> Digest:
    return transcript.digest("sim/dealing", context, b"".join(shares), b"".join(commitments))


def _decrypted(key: Point, summed: Point) -> Point:
    inverse = np.uint64(pow(_mask(key), -1, PRIME))
    return _encode(_decode((summed,)) * inverse % PRIME)[0]


def _draw(entropy: Entropy, count: int) -> Values:
    raw = np.frombuffer(entropy(4 * LANES * count), dtype="<u4").astype(np.uint64)
    return (raw % PRIME).reshape(count, LANES)


def _encode(values: Values) -> tuple[Point, ...]:
    rows = values.astype("<u4").tobytes()
    width = 4 * LANES
    return tuple(_PREFIX + rows[start : start + width] + _PADDING for start in range(0, len(rows), width))


def _decode(points: Sequence[Point]) -> Values:
    rows = b"".join(point[1 : 1 + 4 * LANES] for point in points)
    return np.frombuffer(rows, dtype="<u4").astype(np.uint64).reshape(len(points), LANES)


def _product(matrix: Values, values: Values) -> Values:
    """[row, column] x [column, lane] mod PRIME.  Halves of 16 bits, so that no sum of up to 256 products overflows."""
    low, high = matrix & np.uint64(0xFFFF), matrix >> np.uint64(16)
    return (low @ values + (high @ values % PRIME << np.uint64(16))) % PRIME


@lru_cache(maxsize=16)
def _powers(holder_count: int, threshold: int) -> Values:
    """[holder, power]: holder i is at i + 1."""
    rows = [[pow(holder + 1, power, PRIME) for power in range(threshold)] for holder in range(holder_count)]
    return np.array(rows, dtype=np.uint64)


@lru_cache(maxsize=16)
def _masks(keys: tuple[Point, ...]) -> Values:
    return np.array([[_mask(key)] for key in keys], dtype=np.uint64)


@lru_cache(maxsize=1024)
def _mask(key: Point) -> int:
    return 1 + int.from_bytes(transcript.digest("sim/mask", key)[:8], "big") % (PRIME - 1)


@lru_cache(maxsize=256)
def _lagrange(chosen: tuple[int, ...]) -> Values:
    points = [index + 1 for index in chosen]
    weights = []
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator = numerator * j % PRIME
                denominator = denominator * (j - i) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return np.array([weights], dtype=np.uint64)
