"""An update's bytes: header, one power-of-two exponent per chunk, one int8 code per coordinate.

    task id 32 | round u64 | author 20 | dimension u64 | exponents int8 [chunk] | codes int8 [dimension]

Integers are big-endian; chunks are CHUNK consecutive coordinates, the last may be shorter.  A coordinate's value is
code * 2^exponent of its chunk.  The exponent is the smallest within bounds that lets the chunk's largest magnitude
round to at most CODE_MAX, so each decoded vector has exactly one encoding, and encoding it again gives the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pdfl.codec import Malformed
from p2pdfl.types import Address, Digest

CHUNK = 1024
CODE_MAX = 127
EXPONENT_MIN = -64
"""Coordinates below 2^-65 become zero: far below any useful step, far above what squares to a float64 denormal."""
EXPONENT_MAX = 63
"""Coordinates above 127 * 2^63 saturate.  Any sum of squares over them fits a float64, so no aggregate overflows; the
range above a usual update (exponents near -14) leaves room for every scaled attack."""

_HEADER = struct.Struct(">32sQ20sQ")
_CODE_CANONICAL_MIN = 64
"""With a smaller largest code the chunk would fit the next lower exponent."""

assert CODE_MAX**2 * CHUNK < 2**24, "dot products of two chunks of codes must be exact in float32 (`aggregate.gram`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an update is bound to.  dimension: number of coordinates."""

    task_id: Digest
    round: int
    author: Address
    dimension: int

    def __post_init__(self) -> None:
        assert len(self.task_id) == 32, "struct would pad or cut it in silence"
        assert len(self.author) == 20, "struct would pad or cut it in silence"

    def to_bytes(self) -> bytes:
        return _HEADER.pack(self.task_id, self.round, self.author, self.dimension)


@dataclass(frozen=True, slots=True)
class Quantized:
    """exponents: int8 [chunk], codes: int8 [dimension]; read-only views of the update's bytes."""

    exponents: NDArray[np.int8]
    codes: NDArray[np.int8]

    def scales(self) -> NDArray[np.float64]:
        """2^exponent, float64 [chunk]."""
        return np.ldexp(1.0, self.exponents.astype(np.int32))

    def values(self) -> NDArray[np.float64]:
        """float64 [dimension], exact."""
        return self.codes * np.repeat(self.scales(), CHUNK)[: self.codes.size]


def chunk_count(dimension: int) -> int:
    return -(-dimension // CHUNK)


def update_bytes(dimension: int) -> int:
    """The length of every update of this dimension."""
    return _HEADER.size + chunk_count(dimension) + dimension


def encode(vector: NDArray[np.float64], header: Header) -> bytes:
    """The bytes of the nearest representable vector (ties to even codes).

    Total, so that a diverged training has a replay too: NaN becomes 0, what is too large saturates.
    """
    assert vector.shape == (header.dimension,)
    count = chunk_count(header.dimension)
    chunks = np.zeros((count, CHUNK))
    chunks.reshape(-1)[: header.dimension] = np.nan_to_num(vector, nan=0.0)  # infinities become the largest float64
    mantissas, exponents = np.frexp(np.abs(chunks).max(axis=1))  # mantissa in [0.5, 1), or 0
    exponents -= np.where(np.rint(mantissas * 128) > CODE_MAX, 6, 7)
    exponents[mantissas == 0] = EXPONENT_MIN
    exponents = np.clip(exponents, EXPONENT_MIN, EXPONENT_MAX)
    codes = np.rint(np.ldexp(chunks, -exponents[:, None]))
    codes = np.clip(codes, -CODE_MAX, CODE_MAX).astype(np.int8)
    payload = np.concatenate([exponents.astype(np.int8), codes.reshape(-1)[: header.dimension]])
    return header.to_bytes() + payload.tobytes()


def decode(update: bytes, header: Header) -> NDArray[np.float64]:
    """The vector that `update` is the one encoding of under `header`.  Raises Malformed."""
    return parse(update, header).values()


def parse(update: bytes, header: Header) -> Quantized:
    """Raises Malformed unless `update` is what `encode` gives for some vector under `header`."""
    if len(update) != update_bytes(header.dimension):
        raise Malformed("update has the wrong length")
    if update[: _HEADER.size] != header.to_bytes():
        raise Malformed("update is under another header")
    quantized = split(update)
    if (quantized.codes < -CODE_MAX).any():
        raise Malformed("update has a code of -128")
    if ((quantized.exponents < EXPONENT_MIN) | (quantized.exponents > EXPONENT_MAX)).any():
        raise Malformed("update has an exponent out of range")
    largest = np.maximum.reduceat(np.abs(quantized.codes), np.arange(0, header.dimension, CHUNK))
    if ((largest < _CODE_CANONICAL_MIN) & (quantized.exponents > EXPONENT_MIN)).any():
        raise Malformed("update has an exponent that is not the smallest")
    return quantized


def split(update: bytes) -> Quantized:
    """The parts of an update that was checked before."""
    dimension = header_of(update).dimension
    assert len(update) == update_bytes(dimension), "only checked updates come here"
    payload = np.frombuffer(update, dtype=np.int8, offset=_HEADER.size)
    return Quantized(payload[: chunk_count(dimension)], payload[chunk_count(dimension) :])


def header_of(update: bytes) -> Header:
    """What the update says of itself.  Raises Malformed if it is too short to."""
    if len(update) < _HEADER.size:
        raise Malformed("update has the wrong length")
    task_id, round, author, dimension = _HEADER.unpack_from(update)
    return Header(task_id=task_id, round=round, author=author, dimension=dimension)
