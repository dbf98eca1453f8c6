"""An update's bytes: header, one power-of-two exponent per chunk, one integer code per coordinate.

    task id 32 | round u64 | author 20 | dimension u64 | exponents int8 [chunk] | codes int8 or int4 [dimension]

Integers are big-endian; chunks are consecutive coordinates, the last may be shorter.  A coordinate's value is
code * 2^exponent of its chunk.  The exponent is the smallest within bounds that lets the chunk's largest magnitude
round to at most the largest code, so each decoded vector has exactly one encoding, and encoding it again gives the same
bytes.  Of two codes of 4 bits in a byte the first has the lower half; the half that an odd dimension leaves is zero.

What travels may be compressed (`compression`); what is here is what all compare.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.codec import Malformed
from p2pdfl.base.types import Address, Digest

EXPONENT_MIN = -64
"""Coordinates below 2^-65 become zero: far below any useful step, far above what squares to a float64 denormal."""
EXPONENT_MAX = 63
"""Coordinates above the largest code times 2^63 saturate.  Any sum of squares over them fits a float64, so no aggregate
overflows; the range above a usual update (exponents near -14) leaves room for every scaled attack."""

_HEADER = struct.Struct(">32sQ20sQ")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How coarse codes are, and how many coordinates share an exponent."""

    bits: int
    """Of a code: 8 or 4."""
    chunk: int
    """Even, so that no byte has codes of two."""

    def __post_init__(self) -> None:
        assert self.chunk * self.code_max**2 < 2**24, "products of chunks must be exact in float32 (`aggregate.gram`)"

    @property
    def code_max(self) -> int:
        """The range is symmetric: what one more bit pattern would say is refused."""
        return (1 << self.bits - 1) - 1

    def chunk_count(self, dimension: int) -> int:
        return -(-dimension // self.chunk)

    def update_bytes(self, dimension: int) -> int:
        """The length of every update of this dimension, before it is compressed."""
        return HEADER_BYTES + self.chunk_count(dimension) + -(-dimension * self.bits // 8)


INT8 = Coding(bits=8, chunk=1024)
INT4 = Coding(bits=4, chunk=256)
CODINGS = {"int8": INT8, "int4": INT4}
"""By `Task.codes`."""
CODE_MAX = INT8.code_max
"""Of any coding."""


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
    """exponents: int8 [chunk], codes: int8 [dimension], whatever their coding; not to be written to."""

    exponents: NDArray[np.int8]
    codes: NDArray[np.int8]
    chunk: int = INT8.chunk

    def scales(self) -> NDArray[np.float64]:
        """2^exponent, float64 [chunk]."""
        return np.ldexp(1.0, self.exponents.astype(np.int32))

    def values(self) -> NDArray[np.float64]:
        """float64 [dimension], exact."""
        return self.codes * np.repeat(self.scales(), self.chunk)[: self.codes.size]


def encode(vector: NDArray[np.float64], header: Header, coding: Coding = INT8) -> bytes:
    """The bytes of the nearest representable vector (ties to even codes).

    Total, so that a diverged training has a replay too: NaN becomes 0, what is too large saturates.
    """
    assert vector.shape == (header.dimension,)
    chunks = np.zeros((coding.chunk_count(header.dimension), coding.chunk))
    chunks.reshape(-1)[: header.dimension] = np.nan_to_num(vector, nan=0.0)  # infinities become the largest float64
    mantissas, exponents = np.frexp(np.abs(chunks).max(axis=1))  # mantissa in [0.5, 1), or 0
    fits = np.rint(mantissas * 2 ** (coding.bits - 1)) <= coding.code_max
    exponents -= np.where(fits, coding.bits - 1, coding.bits - 2)
    exponents[mantissas == 0] = EXPONENT_MIN
    exponents = np.clip(exponents, EXPONENT_MIN, EXPONENT_MAX)
    codes = np.rint(np.ldexp(chunks, -exponents[:, None]))
    codes = np.clip(codes, -coding.code_max, coding.code_max).astype(np.int8).reshape(-1)[: header.dimension]
    payload = np.concatenate([exponents.astype(np.int8), _packed(codes, coding)])
    return header.to_bytes() + payload.tobytes()


def decode(update: bytes, header: Header, coding: Coding = INT8) -> NDArray[np.float64]:
    """The vector that `update` is the one encoding of under `header`.  Raises Malformed."""
    return parse(update, header, coding).values()


def parse(update: bytes, header: Header, coding: Coding = INT8) -> Quantized:
    """Raises Malformed unless `update` is what `encode` gives for some vector under `header`."""
    if len(update) != coding.update_bytes(header.dimension):
        raise Malformed("update has the wrong length")
    check_header(update, header)
    quantized = split(update, coding)
    if (quantized.codes < -coding.code_max).any():
        raise Malformed(f"update has a code of {-coding.code_max - 1}")
    if ((quantized.exponents < EXPONENT_MIN) | (quantized.exponents > EXPONENT_MAX)).any():
        raise Malformed("update has an exponent out of range")
    largest = np.maximum.reduceat(np.abs(quantized.codes), np.arange(0, header.dimension, coding.chunk))
    # with a smaller largest code the chunk would fit the next lower exponent
    if ((largest <= coding.code_max // 2) & (quantized.exponents > EXPONENT_MIN)).any():
        raise Malformed("update has an exponent that is not the smallest")
    if coding.bits == 4 and header.dimension % 2 and update[-1] >> 4:
        raise Malformed("update does not end in zeros")
    return quantized


def split(update: bytes, coding: Coding = INT8) -> Quantized:
    """The parts of an update that was checked before."""
    dimension = header_of(update).dimension
    assert len(update) == coding.update_bytes(dimension), "only checked updates come here"
    payload = np.frombuffer(update, dtype=np.int8, offset=HEADER_BYTES)
    count = coding.chunk_count(dimension)
    return Quantized(payload[:count], _unpacked(payload[count:], coding)[:dimension], coding.chunk)


def check_header(update: bytes, header: Header) -> None:
    """Raises Malformed if the update is under another."""
    if update[:HEADER_BYTES] != header.to_bytes():
        raise Malformed("update is under another header")


def header_of(update: bytes) -> Header:
    """What the update says of itself.  Raises Malformed if it is too short to."""
    if len(update) < HEADER_BYTES:
        raise Malformed("update has the wrong length")
    task_id, round, author, dimension = _HEADER.unpack_from(update)
    return Header(task_id=task_id, round=round, author=author, dimension=dimension)


def _packed(codes: NDArray[np.int8], coding: Coding) -> NDArray[np.int8]:
    if coding.bits == 8:
        return codes
    pairs = np.zeros(codes.size + codes.size % 2, np.int8)
    pairs[: codes.size] = codes
    return pairs[0::2] & 15 | pairs[1::2] << 4


def _unpacked(packed: NDArray[np.int8], coding: Coding) -> NDArray[np.int8]:
    if coding.bits == 8:
        return packed
    codes = np.empty(2 * packed.size, np.int8)
    np.right_shift(packed << 4, 4, out=codes[0::2])  # arithmetic: the sign comes along
    np.right_shift(packed, 4, out=codes[1::2])
    return codes
