"""zstd frames as no compressor writes them (RFC 8878)."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import zstandard

from p2pdfl.learning.quantize import Coding, Header, encode

BLOCK = 1 << 17
WINDOW_OF_A_BLOCK = 7 << 3


def frame(content: int, *, declared: int | None, window: int | None = WINDOW_OF_A_BLOCK, dictionary: int = 0) -> bytes:
    """Zeros, run-length encoded, without a checksum.  window: its descriptor; None: a single segment."""
    descriptor = (declared is not None) * 0xC0 | (window is None) * 0x20 | (dictionary > 0)
    head = bytes.fromhex("28b52ffd") + bytes([descriptor])
    head += b"" if window is None else bytes([window])
    head += bytes([dictionary]) if dictionary else b""
    head += b"" if declared is None else declared.to_bytes(8, "little")
    sizes = [BLOCK] * (content // BLOCK) + [content % BLOCK]
    blocks = [
        (size << 3 | 1 << 1 | (place == len(sizes) - 1)).to_bytes(3, "little") for place, size in enumerate(sizes)
    ]
    return head + b"".join(block + b"\0" for block in blocks)


def with_checksum(plain: bytes, checked: bytes) -> bytes:
    """checked: a frame of the same content with one."""
    return plain[:4] + bytes([plain[4] | 4]) + plain[5:] + checked[-4:]


def skippable(content: bytes) -> bytes:
    return bytes.fromhex("502a4d18") + len(content).to_bytes(4, "little") + content


def compressed(payload: bytes, level: int = 3, **options: bool) -> bytes:
    settings: dict[str, Any] = {"write_checksum": True, **options}
    return zstandard.ZstdCompressor(level=level, **settings).compress(payload)


def an_update(header: Header, coding: Coding) -> bytes:
    """Of codes that compression shortens."""
    draw = np.random.default_rng(int.from_bytes(sha256(header.to_bytes()).digest()[:8], "big"))
    return encode(0.01 * draw.standard_normal(header.dimension) ** 3, header, coding)
