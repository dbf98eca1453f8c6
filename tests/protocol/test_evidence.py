"""Two envelopes in one slot prove who signed them, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base.types import Close, EquivocationProof, Kind, Notarize, Packet
from p2pdfl.protocol.evidence import SlotLedger, is_equivocation

from .members import DOMAIN, HEAD, OTHER, TASK, a_packet, peers

N, CHEAT = 4, 2
ACCUSED = peers(N)[CHEAT].signer.address


def a_vote(head: bytes, *, member: int = CHEAT, kind: Kind = Kind.CLOSE, **slot: int) -> Packet:
    return a_packet(N, member, kind, Notarize(head=head) if kind == Kind.NOTARIZE else Close(head=head), **slot)


def a_proof() -> EquivocationProof:
    ledger = SlotLedger()
    assert ledger.record(a_vote(HEAD), CHEAT) is None
    proof = ledger.record(a_vote(OTHER), CHEAT)
    assert proof is not None
    return proof


def proves(proof: EquivocationProof, accused: bytes = ACCUSED) -> bool:
    return is_equivocation(proof, DOMAIN, TASK, accused)


def test_two_bodies_in_one_slot_are_a_proof() -> None:
    proof = a_proof()
    assert proves(proof)
    assert (proof.entry.member, proof.entry.kind) == (CHEAT, Kind.CLOSE)
    assert proof.entry.body_low < proof.entry.body_high


def test_the_order_in_which_they_came_does_not_matter() -> None:
    ledger = SlotLedger()
    ledger.record(a_vote(OTHER), CHEAT)
    assert ledger.record(a_vote(HEAD), CHEAT) == a_proof()


@pytest.mark.parametrize(
    "other",
    [
        {"round": 1},
        {"view": 1},
        {"kind": Kind.NOTARIZE},
        {"member": 1},
    ],
)
def test_another_slot_is_no_equivocation(other: dict[str, Any]) -> None:
    ledger = SlotLedger()
    ledger.record(a_vote(HEAD), CHEAT)
    assert ledger.record(a_vote(OTHER, **other), other.get("member", CHEAT)) is None


def test_a_third_body_proves_nothing_new() -> None:
    ledger = SlotLedger()
    third = a_vote(bytes(32))
    for packet in (a_vote(HEAD), a_vote(OTHER)):
        ledger.record(packet, CHEAT)
    assert ledger.record(third, CHEAT) is None
    assert len(ledger.bodies(third.envelope, CHEAT)) == 3


def test_old_rounds_are_forgotten() -> None:
    ledger = SlotLedger()
    old, new = a_vote(HEAD, round=3), a_vote(HEAD, round=4)
    for packet in (old, new):
        ledger.record(packet, CHEAT)
    ledger.forget_before(4)
    assert ledger.bodies(old.envelope, CHEAT) == ()
    assert ledger.bodies(new.envelope, CHEAT) == (new.envelope.body,)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 1},
        {"epoch": 1},
        {"view": 1},
        {"kind": int(Kind.NOTARIZE)},
        {"body_low": bytes(32)},
        {"body_high": b"\xff" * 32},
    ],
)
def test_a_proof_for_another_slot_or_body_fails(change: dict[str, Any]) -> None:
    proof = a_proof()
    assert not proves(proof.replace(entry=proof.entry.replace(**change)))


def test_one_body_twice_is_no_proof() -> None:
    proof = a_proof()
    same = proof.entry.replace(body_high=proof.entry.body_low)
    assert not proves(proof.replace(entry=same, signature_high=proof.signature_low))


def test_bodies_out_of_order_are_no_proof() -> None:
    proof = a_proof()
    entry = proof.entry.replace(body_low=proof.entry.body_high, body_high=proof.entry.body_low)
    assert not proves(
        proof.replace(entry=entry, signature_low=proof.signature_high, signature_high=proof.signature_low)
    )


def test_a_proof_accuses_nobody_else() -> None:
    assert not proves(a_proof(), peers(N)[0].signer.address)


def test_two_members_signatures_are_no_proof() -> None:
    other = a_vote(OTHER, member=1)
    proof = a_proof()
    low = proof.entry.body_low == other.envelope.body
    changed = {"signature_low": other.signature} if low else {"signature_high": other.signature}
    assert not proves(proof.replace(**changed))


@given(st.binary(min_size=64, max_size=64))
def test_junk_for_a_signature_is_no_proof(junk: bytes) -> None:
    assert not proves(a_proof().replace(signature_low=junk))


def test_a_proof_holds_for_its_task_only() -> None:
    assert not is_equivocation(a_proof(), DOMAIN, OTHER, ACCUSED)
