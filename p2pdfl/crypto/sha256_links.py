"""sha256 link by link: the state before a piece of the message, the piece, and the state after it.

sha256 (FIPS 180-4) reads its message in blocks of 64 bytes and carries 32 bytes of state from block to block; the
digest is the state after the last block, which ends with the message's length.  So whoever knows the digest can check
a message piece by piece from its end: (state before, last piece) must give the digest, then (state before, last but
one piece) must give that state, and so on to the first, whose state before is the constant INITIAL_STATE.  For a lie
to pass, two pairs of state and piece would have to give the same state: a collision of the compression function, with
the state chosen freely.  None is known; and once all links hold, the whole message has been hashed as hashlib would.

hashlib does not let its state be read or set, OpenSSL does; petlib has loaded it.
"""

from __future__ import annotations

import ctypes
from hashlib import sha256

from petlib import _petlib

BLOCK_BYTES = 64
STATE_BYTES = 32
INITIAL_STATE = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")


def state_after(state: bytes, piece: bytes) -> bytes:
    """piece: whole blocks."""
    assert len(state) == STATE_BYTES
    assert len(piece) % BLOCK_BYTES == 0
    context = _context(state, 0)
    _update(context, piece, len(piece))
    return b"".join(word.to_bytes(4, "big") for word in context.state)


def digest_after(state: bytes, bytes_before: int, piece: bytes) -> bytes:
    """The digest of a message of which bytes_before bytes, whole blocks, led to state, and piece is the rest."""
    assert len(state) == STATE_BYTES
    assert bytes_before % BLOCK_BYTES == 0
    context = _context(state, bytes_before)
    _update(context, piece, len(piece))
    digest = ctypes.create_string_buffer(32)
    _final(digest, context)
    return digest.raw


class _Context(ctypes.Structure):
    """SHA256_CTX of openssl/sha.h."""

    _fields_ = [
        ("state", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("unread", ctypes.c_uint32 * 16),
        ("unread_bytes", ctypes.c_uint),
        ("digest_bytes", ctypes.c_uint),
    ]


def _context(state: bytes, bytes_before: int) -> _Context:
    context = _Context()
    _init(context)
    for place in range(8):
        context.state[place] = int.from_bytes(state[4 * place : 4 * place + 4], "big")
    context.bits_high, context.bits_low = divmod(8 * bytes_before % 2**64, 2**32)
    return context


# A handle's symbols include those of what it was linked with: the very OpenSSL that petlib uses.
_openssl = ctypes.CDLL(_petlib.__file__)
try:
    _init, _update, _final = _openssl.SHA256_Init, _openssl.SHA256_Update, _openssl.SHA256_Final
except AttributeError as error:
    raise RuntimeError("the OpenSSL that petlib was built with lacks SHA256_Init, _Update, _Final") from error
_init.argtypes = [ctypes.POINTER(_Context)]
_update.argtypes = [ctypes.POINTER(_Context), ctypes.c_char_p, ctypes.c_size_t]
_final.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Context)]

if digest_after(state_after(INITIAL_STATE, bytes(64)), 64, b"abc") != sha256(bytes(64) + b"abc").digest():
    raise RuntimeError("OpenSSL's SHA256_CTX is not what openssl/sha.h has declared since version 1.0")
