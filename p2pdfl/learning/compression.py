"""An update as it is committed, stored and sent: its bytes, or shorter ones, the header in clear and a zstd frame of
the rest (docs/adr/0014).

Which of the two it is, its length tells.  Other versions of zstd compress the same update differently: what is compared
is always what comes out (`expand`).
"""

from __future__ import annotations

import zstandard
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed
from p2pdfl.learning.quantize import HEADER_BYTES, Coding, Header, check_header

_MAGIC = bytes.fromhex("28b52ffd")


def shorten(update: bytes, level: int = params.ZSTD_LEVEL) -> bytes:
    """The update itself if compression does not make it shorter."""
    frame = ZstdCompressor(level=level, write_checksum=True).compress(update[HEADER_BYTES:])
    return min(update, update[:HEADER_BYTES] + frame, key=len)


def expand(sent: bytes, header: Header, coding: Coding) -> bytes:
    """What `shorten` took, as long as `header` demands; still to be parsed.  Raises Malformed.

    Everything is checked before anything is decompressed: a frame of 33 kB may declare 1 GiB.
    """
    length = coding.update_bytes(header.dimension)
    if not HEADER_BYTES < len(sent) <= length:
        raise Malformed("update has the wrong length")
    check_header(sent, header)
    if len(sent) == length:
        return sent
    frame = sent[HEADER_BYTES:]
    # the library also tells the parameters of skippable frames and, for what is unknown, a size that no update has
    if not frame.startswith(_MAGIC):
        raise Malformed("update is no zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except ZstdError:
        raise Malformed("update is no zstd frame") from None
    if parameters.content_size != length - HEADER_BYTES:
        raise Malformed("update does not declare its size")
    if parameters.window_size > params.ZSTD_WINDOW_BYTES_MAX:
        raise Malformed("update's zstd window is too large")
    if parameters.dict_id:
        raise Malformed("update needs a zstd dictionary")
    if not parameters.has_checksum:
        raise Malformed("update's zstd frame has no checksum")
    decompressor = ZstdDecompressor(max_window_size=params.ZSTD_WINDOW_BYTES_MAX)
    try:
        return header.to_bytes() + decompressor.decompress(frame, allow_extra_data=False)
    except ZstdError:
        raise Malformed("update does not decompress") from None
