"""EIP-712 against eth_account, EIP-2098 signatures, and the digests the contract recomputes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account.messages import encode_typed_data
from eth_keys.datatypes import Signature as EthSignature
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base.types import Address, Digest, Envelope, Head
from p2pdfl.crypto.envelope import (
    BadSignature,
    Domain,
    Signer,
    envelope_digest,
    head_digest,
    list_hash,
    point_address,
    possession_digest,
    recover,
    recover_digest,
)
from p2pdfl.crypto.group import ORDER, InvalidPoint, public_key

DOMAIN = Domain(chain_id=131277322940537, contract=bytes(range(20)))
SIGNER = Signer(bytes(31) + b"\x07")
ENVELOPE = Envelope(task=b"t" * 32, epoch=1, round=14, view=2, kind=3, body=b"b" * 32)

digests = st.binary(min_size=32, max_size=32)
small = st.integers(0, 2**32 - 1)
envelopes = st.builds(
    Envelope, task=digests, epoch=small, round=small, view=small, kind=st.integers(1, 6), body=digests
)
domains = st.builds(Domain, chain_id=st.integers(1, 2**256 - 1), contract=st.binary(min_size=20, max_size=20))

EIP712_DOMAIN = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]


def reference_digest(
    domain: Domain, primary_type: str, fields: Sequence[tuple[str, str]], message: Mapping[str, object]
) -> bytes:
    signable = encode_typed_data(
        full_message={
            "types": {
                "EIP712Domain": EIP712_DOMAIN,
                primary_type: [{"name": name, "type": kind} for kind, name in fields],
            },
            "primaryType": primary_type,
            "domain": {
                "name": "p2pdfl",
                "version": "1",
                "chainId": domain.chain_id,
                "verifyingContract": "0x" + domain.contract.hex(),
            },
            "message": dict(message),
        }
    )
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


@given(domain=domains, envelope=envelopes)
def test_the_envelope_digest_is_eth_accounts(domain: Domain, envelope: Envelope) -> None:
    fields = [
        ("bytes32", "task"),
        ("uint64", "epoch"),
        ("uint64", "round"),
        ("uint64", "view"),
        ("uint8", "kind"),
        ("bytes32", "body"),
    ]
    expected = reference_digest(domain, "Envelope", fields, envelope.model_dump())
    assert envelope_digest(domain, envelope) == expected


@given(domain=domains, task=digests, address=st.binary(min_size=20, max_size=20), peer_id=st.binary(max_size=64))
def test_the_possession_digest_is_eth_accounts(domain: Domain, task: Digest, address: Address, peer_id: bytes) -> None:
    fields = [("bytes32", "task"), ("address", "peer"), ("bytes", "peerId")]
    message = {"task": task, "peer": "0x" + address.hex(), "peerId": peer_id}
    assert possession_digest(domain, task, address, peer_id) == reference_digest(domain, "Possession", fields, message)


@given(domain=domains, envelope=envelopes, secret=st.integers(1, ORDER - 1))
def test_a_signature_recovers_to_its_signer(domain: Domain, envelope: Envelope, secret: int) -> None:
    signer = Signer(secret.to_bytes(32, "big"))
    assert recover(domain, envelope, signer.sign(domain, envelope)) == signer.address


@pytest.mark.parametrize(
    "change",
    [{"task": b"u" * 32}, {"epoch": 0}, {"round": 15}, {"view": 3}, {"kind": 4}, {"body": b"c" * 32}],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_for_one_envelope(change: dict[str, bytes | int]) -> None:
    signature = SIGNER.sign(DOMAIN, ENVELOPE)
    assert recover(DOMAIN, ENVELOPE.replace(**change), signature) != SIGNER.address


@pytest.mark.parametrize("other", [{"chain_id": 1}, {"contract": bytes(20)}], ids=lambda change: next(iter(change)))
def test_a_signature_is_for_one_deployment(other: dict[str, Any]) -> None:
    domain = dataclasses.replace(DOMAIN, **other)
    assert recover(domain, ENVELOPE, SIGNER.sign(DOMAIN, ENVELOPE)) != SIGNER.address


def test_signing_is_deterministic() -> None:
    assert SIGNER.sign(DOMAIN, ENVELOPE) == SIGNER.sign(DOMAIN, ENVELOPE)


def test_a_signature_is_the_one_of_rfc_6979() -> None:
    # secp256k1 with sha256, secret 1, "Satoshi Nakamoto": a vector that wallets share
    signature = Signer(bytes(31) + b"\x01").sign_digest(sha256(b"Satoshi Nakamoto").digest())
    s = int.from_bytes(signature[32:], "big") & ~(1 << 255)
    assert signature[:32].hex() == "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
    assert f"{s:064x}" == "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"


def test_high_s_is_refused() -> None:
    digest = envelope_digest(DOMAIN, ENVELOPE)
    r, s, parity = parts(SIGNER.sign_digest(digest))
    # the same signature mirrored is valid ECDSA, and has another encoding
    mirrored = EthSignature(vrs=(1 - parity, r, ORDER - s))
    assert mirrored.recover_public_key_from_msg_hash(digest).to_canonical_address() == SIGNER.address
    with pytest.raises(BadSignature, match="out of range"):
        # EIP-2098 has no room for most high s: the bit that it needs is the parity's
        recover_digest(digest, join(r, ORDER // 2 + 1, parity))


@pytest.mark.parametrize(
    ("r", "s"),
    [(0, 1), (1, 0), (0, 0), (ORDER, 1), (2**256 - 1, 1), (1, ORDER // 2 + 1), (1, 2**255 - 1)],
)
def test_r_and_s_out_of_range_are_refused(r: int, s: int) -> None:
    with pytest.raises(BadSignature, match="out of range"):
        recover_digest(bytes(32), join(r, s, 0))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(BadSignature, match="64 bytes"):
        recover_digest(bytes(32), b"\x01" * length)


def test_an_r_that_is_no_x_coordinate_is_refused() -> None:
    # 5^3 + 7 = 132 is no square modulo the field's prime
    with pytest.raises(BadSignature, match="no key"):
        recover_digest(b"d" * 32, join(5, 1, 0))


@given(signature=st.binary(min_size=64, max_size=64), digest=digests)
def test_random_signatures_recover_to_strangers_or_are_refused(signature: bytes, digest: Digest) -> None:
    try:
        address = recover_digest(digest, signature)
    except BadSignature:
        return
    assert address != SIGNER.address


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\xff" * 32, b"\x01" * 31], ids=["empty", "0", "over q", "short"])
def test_bad_secrets_are_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"32 bytes|Secret"):
        Signer(secret)


def test_a_signer_does_not_show_its_secret() -> None:
    assert repr(SIGNER) == "Signer(0x" + SIGNER.address.hex() + ")"


def test_a_point_has_the_address_of_its_key() -> None:
    secret = b"\x05" * 32
    assert point_address(public_key(secret)) == Signer(secret).address


def test_a_bad_point_has_no_address() -> None:
    with pytest.raises(InvalidPoint):
        point_address(b"\x04" + bytes(32))


@given(addresses=st.lists(st.binary(min_size=20, max_size=20), max_size=5))
def test_the_list_hash_is_the_abi_encodings(addresses: list[Address]) -> None:
    assert list_hash(addresses) == keccak(abi_encode(["address[]"], [addresses]))


def test_a_head_is_the_hash_of_its_eight_words() -> None:
    words = [bytes([byte]) * 32 for byte in range(8)]
    words[1], words[2] = bytes(31) + b"\x01", bytes(30) + b"\x01\x02"
    names = ("task", "epoch", "round", "parent", "contents", "state", "next_members", "chain_block")
    fields: dict[str, Any] = {**dict(zip(names, words, strict=True)), "epoch": 1, "round": 0x102}
    assert head_digest(Head(**fields)) == sha256(b"".join(words)).digest()


@pytest.mark.parametrize("fields", [{"chain_id": 0}, {"chain_id": 2**256}, {"contract": bytes(19)}], ids=str)
def test_a_domain_that_cannot_be_encoded_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not a"):
        dataclasses.replace(DOMAIN, **fields)


def parts(signature: bytes) -> tuple[int, int, int]:
    tail = int.from_bytes(signature[32:], "big")
    return int.from_bytes(signature[:32], "big"), tail & ~(1 << 255), tail >> 255


def join(r: int, s: int, parity: int) -> bytes:
    return r.to_bytes(32, "big") + (s | parity << 255).to_bytes(32, "big")
