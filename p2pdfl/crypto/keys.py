"""One 32-byte seed -> a peer's three keys, by HKDF-SHA256 (RFC 5869) with a label each.

Separate labels, so that no key says anything about another: a leaked chain key does not give away the network
identity, and neither opens PVSS shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pdfl.base.types import Address, Point, Scalar
from p2pdfl.crypto import group
from p2pdfl.crypto.envelope import Signer

SEED_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """repr shows the public parts only."""

    peer_secret: bytes = field(repr=False)
    """The seed of the libp2p ed25519 key."""
    chain_secret: Scalar = field(repr=False)
    """Signs envelopes and chain transactions."""
    pvss_secret: Scalar = field(repr=False)
    address: Address
    """Of the chain key: the member's identity."""
    pvss_key: Point
    """pvss_secret * G."""


def derive(seed: bytes) -> Keys:
    """Raises ValueError unless the seed has 32 bytes."""
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes")
    chain_secret = _scalar(seed, b"chain")
    pvss_secret = _scalar(seed, b"pvss")
    return Keys(
        peer_secret=_expand(seed, b"libp2p", 32),
        chain_secret=chain_secret,
        pvss_secret=pvss_secret,
        address=Signer(chain_secret).address,
        pvss_key=group.public_key(pvss_secret),
    )


def _scalar(seed: bytes, label: bytes) -> Scalar:
    """Non-zero; 48 bytes before the reduction keep its bias below 2^-128."""
    return group.encode_scalar(group.nonzero_scalar(_expand(seed, label, group.WIDE_SCALAR_BYTES)))


def _expand(seed: bytes, label: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=b"p2pdfl/keys/1/" + label).derive(seed)
