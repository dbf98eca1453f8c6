"""Who can be blamed with proof: two envelopes in one slot (DESIGN 3 "Objective faults", 4).

`SlotLedger` remembers what everybody signed in the rounds that still matter; a second body in a slot is an
equivocation, whatever the kind, and both signatures prove it to anyone, the contract included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.crypto.envelope import BadSignature, Domain, recover
from p2pdfl.types import (
    Address,
    Digest,
    Envelope,
    EquivocationEntry,
    EquivocationProof,
    MemberIndex,
    Packet,
    Round,
    SignedEnvelope,
)

Slot = tuple[int, int, int, MemberIndex]
"""round, view, kind, signer."""


@dataclass(slots=True)
class SlotLedger:
    """Who bounds the views bounds its size: the slots of a round, and for each at most the bodies recorded."""

    _signed: dict[Slot, list[SignedEnvelope]] = field(default_factory=dict)

    def bodies(self, envelope: Envelope, signer: MemberIndex) -> tuple[Digest, ...]:
        """What the signer is known to have signed in this slot, first to last."""
        return tuple(other.envelope.body for other in self._signed.get(_slot(envelope, signer), ()))

    def record(self, packet: Packet, signer: MemberIndex) -> EquivocationProof | None:
        """Takes a body not recorded before; the second one in its slot is an equivocation."""
        signed = self._signed.setdefault(_slot(packet.envelope, signer), [])
        signed.append(SignedEnvelope(envelope=packet.envelope, signature=packet.signature))
        return _prove(signer, signed[0], signed[1]) if len(signed) == 2 else None

    def forget_before(self, round: Round) -> None:
        for slot in [slot for slot in self._signed if slot[0] < round]:
            del self._signed[slot]


def _slot(envelope: Envelope, signer: MemberIndex) -> Slot:
    return (envelope.round, envelope.view, envelope.kind, signer)


def _prove(signer: MemberIndex, first: SignedEnvelope, second: SignedEnvelope) -> EquivocationProof:
    low, high = sorted((first, second), key=lambda signed: signed.envelope.body)
    envelope = low.envelope
    return EquivocationProof(
        entry=EquivocationEntry(
            member=signer,
            epoch=envelope.epoch,
            round=envelope.round,
            view=envelope.view,
            kind=envelope.kind,
            body_low=low.envelope.body,
            body_high=high.envelope.body,
        ),
        signature_low=low.signature,
        signature_high=high.signature,
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
