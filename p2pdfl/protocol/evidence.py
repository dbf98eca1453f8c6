"""Who can be blamed with proof: two envelopes in one slot (DESIGN 3 "Objective faults", 4).

`SlotLedger` remembers what everybody signed in the rounds that still matter; a second body in a slot is an
equivocation, whatever the kind, and both signatures prove it to anyone, the contract included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.base.types import (
    Address,
    Digest,
    Envelope,
    EquivocationEntry,
    EquivocationProof,
    MemberIndex,
    Packet,
    Round,
    Signature,
    View,
)
from p2pdfl.crypto.envelope import BadSignature, Domain, recover

Signed = dict[MemberIndex, list[tuple[Envelope, Signature]]]
"""What each signer is known to have signed in its slot, first to last."""


@dataclass(slots=True)
class SlotLedger:
    """Who bounds the views bounds its size: the slots of a round, and for each at most the bodies recorded."""

    _signed: dict[Round, dict[tuple[View, int], Signed]] = field(default_factory=dict)
    """Round -> view and kind -> signer: a slot."""

    def bodies(self, envelope: Envelope, signer: MemberIndex) -> tuple[Digest, ...]:
        """What the signer is known to have signed in this slot, first to last."""
        signed = self._signed.get(envelope.round, {}).get((envelope.view, envelope.kind), {}).get(signer)
        return () if signed is None else tuple([other.body for other, _ in signed])

    def record(self, packet: Packet, signer: MemberIndex) -> EquivocationProof | None:
        """Takes a body not recorded before; the second one in its slot is an equivocation."""
        envelope = packet.envelope
        slots = self._signed.setdefault(envelope.round, {}).setdefault((envelope.view, envelope.kind), {})
        signed = slots.setdefault(signer, [])
        signed.append((envelope, packet.signature))
        return _prove(signer, signed[0], signed[1]) if len(signed) == 2 else None

    def forget_before(self, round: Round) -> None:
        for old in [old for old in self._signed if old < round]:
            del self._signed[old]


def _prove(
    signer: MemberIndex, first: tuple[Envelope, Signature], second: tuple[Envelope, Signature]
) -> EquivocationProof:
    (envelope, signature_low), (high, signature_high) = sorted((first, second), key=lambda signed: signed[0].body)
    return EquivocationProof(
        entry=EquivocationEntry(
            member=signer,
            epoch=envelope.epoch,
            round=envelope.round,
            view=envelope.view,
            kind=envelope.kind,
            body_low=envelope.body,
            body_high=high.body,
        ),
        signature_low=signature_low,
        signature_high=signature_high,
    )


def is_equivocation(proof: EquivocationProof, domain: Domain, task: Digest, accused: Address) -> bool:
    """Whether both signatures are the accused's, over two bodies in one slot."""
    entry = proof.entry
    if entry.body_low >= entry.body_high:
        return False
    try:
        return all(
            recover(
                domain,
                Envelope(task=task, epoch=entry.epoch, round=entry.round, view=entry.view, kind=entry.kind, body=body),
                signature,
            )
            == accused
            for body, signature in ((entry.body_low, proof.signature_low), (entry.body_high, proof.signature_high))
        )
    except BadSignature:
        return False
