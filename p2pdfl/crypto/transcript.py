"""Domain-separated hashing of several parts, each under its length, so that no two lists of parts hash alike."""

from __future__ import annotations

from hashlib import sha256

from p2pdfl.base.types import Digest
from p2pdfl.crypto import group


def digest(domain: str, *parts: bytes) -> Digest:
    hasher = sha256(domain.encode() + b"\0")
    for part in parts:
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()


def challenge(domain: str, *parts: bytes) -> int:
    """A Fiat-Shamir challenge mod q; q is so close to 2^256 that the reduction biases by 2^-128."""
    return int.from_bytes(digest(domain, *parts), "big") % group.ORDER


def word(value: int) -> bytes:
    return value.to_bytes(8, "big")
