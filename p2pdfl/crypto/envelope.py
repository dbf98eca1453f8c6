"""Envelopes: what a member signs, so that the contract can check it too (DESIGN 4).

EIP-712: digest = keccak(0x1901 || domainSeparator || hashStruct(message)), by hand because the two structs are fixed
and this runs for every message of every peer.
EIP-2098: a signature is 64 bytes, r then s with the parity of y in s's top bit.  Low s is required, so a signer has
one encoding per signature; nonces are RFC 6979, so one digest always gets the same signature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from coincurve import PrivateKey, PublicKey
from eth_utils.crypto import keccak

from p2pdfl.base.types import Address, Digest, Envelope, Head, Point, Signature
from p2pdfl.crypto import group

NAME = "p2pdfl"
VERSION = "1"
ENVELOPE_TYPE = "Envelope(bytes32 task,uint64 epoch,uint64 round,uint64 view,uint8 kind,bytes32 body)"
POSSESSION_TYPE = "Possession(bytes32 task,address peer,bytes peerId)"

_DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_PARITY_BIT = 1 << 255


class BadSignature(ValueError):
    """Not a signature that the protocol or the contract would accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Which deployment a signature is for; the same envelope on another chain or contract has another digest."""

    chain_id: int
    contract: Address

    def __post_init__(self) -> None:
        if not 0 < self.chain_id < 2**256:
            raise ValueError("chain_id is not a positive 256-bit integer")
        if len(self.contract) != 20:
            raise ValueError("contract is not a 20-byte address")


class Signer:
    """Signs with one secp256k1 key: a member's chain key, or its PVSS key for the proof of possession."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError("a secret key has 32 bytes")
        self._key = PrivateKey(secret)
        self.address: Address = _address(self._key.public_key.format(compressed=False)[1:])

    def __repr__(self) -> str:
        return f"Signer(0x{self.address.hex()})"

    def sign(self, domain: Domain, envelope: Envelope) -> Signature:
        return self.sign_digest(envelope_digest(domain, envelope))

    def sign_digest(self, digest: bytes) -> Signature:
        signed = self._key.sign_recoverable(digest, hasher=None)
        # libsecp256k1 gives the lower s.  Parity 2 or 3 would mean r >= N, which no nonce is known to give.
        assert signed[64] < 2
        s = int.from_bytes(signed[32:64], "big") | (_PARITY_BIT if signed[64] else 0)
        return signed[:32] + _word(s)


def recover(domain: Domain, envelope: Envelope, signature: Signature) -> Address:
    """The address whose key signed.  Raises BadSignature."""
    return recover_digest(envelope_digest(domain, envelope), signature)


def recover_digest(digest: bytes, signature: Signature) -> Address:
    """The address whose key signed.  Raises BadSignature."""
    if len(signature) != 64:
        raise BadSignature("a signature has 64 bytes")
    r = int.from_bytes(signature[:32], "big")
    tail = int.from_bytes(signature[32:], "big")
    s, parity = tail & ~_PARITY_BIT, tail >> 255
    if not (0 < r < group.ORDER and 0 < s <= group.ORDER // 2):
        raise BadSignature("r or s out of range")
    try:
        key = PublicKey.from_signature_and_message(_word(r) + _word(s) + bytes([parity]), digest, hasher=None)
    except ValueError:
        raise BadSignature("no key gives this signature") from None
    return _address(key.format(compressed=False)[1:])


def envelope_digest(domain: Domain, envelope: Envelope) -> Digest:
    return _typed_digest(
        domain,
        _ENVELOPE_TYPE_HASH
        + envelope.task
        + _word(envelope.epoch)
        + _word(envelope.round)
        + _word(envelope.view)
        + _word(envelope.kind)
        + envelope.body,
    )


def possession_digest(domain: Domain, task: Digest, address: Address, peer_id: bytes) -> Digest:
    """What a registering peer signs with its PVSS key's scalar, so that it cannot register somebody else's key, or
    one made from others' keys, as its own."""
    return _typed_digest(domain, _POSSESSION_TYPE_HASH + task + _address_word(address) + keccak(peer_id))


def point_address(point: Point) -> Address:
    """The address that a public key's signatures recover to.  Raises group.InvalidPoint."""
    return _address(group.coordinates(point))


def head_digest(head: Head) -> Digest:
    """sha256 of the head's eight 32-byte words: the head itself wherever one is named."""
    return sha256(
        head.task
        + _word(head.epoch)
        + _word(head.round)
        + head.parent
        + head.contents
        + head.state
        + head.next_members
        + head.chain_block
    ).digest()


def list_hash(addresses: Iterable[Address]) -> Digest:
    """keccak256(abi_encode(address[])), as the contract computes it over a member list."""
    words = [_address_word(address) for address in addresses]
    return keccak(_word(32) + _word(len(words)) + b"".join(words))


def _typed_digest(domain: Domain, struct: bytes) -> Digest:
    return keccak(b"\x19\x01" + _separator(domain) + keccak(struct))


@lru_cache(maxsize=64)
def _separator(domain: Domain) -> bytes:
    return keccak(
        keccak(_DOMAIN_TYPE.encode())
        + keccak(NAME.encode())
        + keccak(VERSION.encode())
        + _word(domain.chain_id)
        + _address_word(domain.contract)
    )


def _address(coordinates: bytes) -> Address:
    return keccak(coordinates)[-20:]


def _address_word(address: Address) -> bytes:
    assert len(address) == 20
    return bytes(12) + address


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


_ENVELOPE_TYPE_HASH = keccak(ENVELOPE_TYPE.encode())
_POSSESSION_TYPE_HASH = keccak(POSSESSION_TYPE.encode())
