"""The open cases: equivocations and verdicts that are proven but that no head lists yet (DESIGN 3 "Bans").

A ban takes effect when a certified head lists its proof, from the next round.  Cases go by address, since indices
change with the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from p2pdfl.base.types import (
    Address,
    Contents,
    Digest,
    Envelope,
    Epoch,
    EquivocationProof,
    MemberIndex,
    Outcome,
    Packet,
    Propose,
    Round,
    VerdictEntry,
    VerdictProof,
    Wire,
)
from p2pdfl.protocol.audit import is_verdict, loser
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.evidence import SlotLedger, is_equivocation
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Reject

EVIDENCE_NAMES: Mapping[int, str] = {
    Outcome.GUILTY: "guilty",
    Outcome.FALSE: "false",
    Outcome.VOID: "void",
    Outcome.OBJECTIVE: "objective",
}


@dataclass(slots=True)
class EvidencePool:
    config: RunConfig
    epochs: Mapping[Epoch, EpochMembers]
    ledger: SlotLedger = field(default_factory=SlotLedger)
    equivocations: dict[Address, EquivocationProof] = field(default_factory=dict)
    verdicts: dict[Address, VerdictProof] = field(default_factory=dict)
    """By loser, the latest: an earlier one may lapse before a head lists it."""

    def bodies(self, envelope: Envelope, signer: MemberIndex) -> tuple[Digest, ...]:
        """What the signer is known to have signed in this slot, first to last."""
        return self.ledger.bodies(envelope, signer)

    def record(self, packet: Packet, signer: MemberIndex) -> EquivocationProof | None:
        """Takes the slot; what is signed in it as the second body is proof."""
        proof = self.ledger.record(packet, signer)
        if proof is not None:
            self.file_equivocation(proof)
        return proof

    def file_equivocation(self, proof: EquivocationProof) -> None:
        address = self._address(proof.entry.epoch, proof.entry.member)
        known = self.equivocations.get(address)
        if known is None or known.entry.round < proof.entry.round:
            self.equivocations[address] = proof

    def file_verdict(self, proof: VerdictProof) -> None:
        address = self.loser_address(proof.entry)
        if address is None:
            return
        known = self.verdicts.get(address)
        if known is None or known.entry.round < proof.entry.round:
            self.verdicts[address] = proof

    def pending(
        self, round: Round, banned: Collection[Address]
    ) -> tuple[tuple[EquivocationProof, ...], tuple[VerdictProof, ...]]:
        """What a proposal of `round` lists, each loser once."""
        equivocations = {
            address: proof
            for address, proof in self.equivocations.items()
            if address not in banned and self._is_timely(proof.entry.round, round)
        }
        verdicts = [
            proof
            for address, proof in self.verdicts.items()
            if address not in banned and address not in equivocations and self._is_timely(proof.entry.round, round)
        ]
        return tuple(sorted(equivocations.values(), key=_order)), tuple(sorted(verdicts, key=_order))

    def pending_losers(self, round: Round, banned: Collection[Address]) -> set[Address]:
        equivocations, verdicts = self.pending(round, banned)
        return {self._address(proof.entry.epoch, proof.entry.member) for proof in equivocations} | {
            address for proof in verdicts if (address := self.loser_address(proof.entry)) is not None
        }

    def check(self, propose: Propose, round: Round, banned: Collection[Address]) -> None:
        """The evidence and verdicts that a proposal lists are proven, timely, and new.  Raises Reject."""
        contents = propose.contents
        if contents.evidence != tuple(proof.entry for proof in propose.equivocations):
            raise Reject("propose: evidence without its proof")
        if contents.verdicts != tuple(proof.entry for proof in propose.verdicts):
            raise Reject("propose: verdict without its proof")
        for entries in (contents.evidence, contents.verdicts):
            keys = [entry.to_array() for entry in entries]
            if keys != sorted(set(keys)):
                raise Reject("propose: cases out of order")
        seen: set[Address] = set(banned)
        for equivocation in propose.equivocations:
            entry = equivocation.entry
            address = self._member_address(entry.epoch, entry.member)
            if not self._is_in_epoch(entry.epoch, entry.round):
                raise Reject("propose: evidence is stale or repeated")
            if address is None or address in seen or not self._is_timely(entry.round, round):
                raise Reject("propose: evidence is stale or repeated")
            if not is_equivocation(equivocation, self.config.domain, self.config.task_id, address):
                raise Reject("propose: evidence does not verify")
            seen.add(address)
        for verdict in propose.verdicts:
            epoch = self.epochs.get(verdict.entry.epoch)
            if epoch is None or not self._is_in_epoch(verdict.entry.epoch, verdict.entry.round):
                raise Reject("propose: verdict is stale or repeated")
            if not is_verdict(verdict, self.config.domain, self.config.task_id, epoch):
                raise Reject("propose: verdict does not verify")
            address = self.loser_address(verdict.entry)
            if address is None or address in seen or not self._is_timely(verdict.entry.round, round):
                raise Reject("propose: verdict is stale or repeated")
            seen.add(address)

    def bans(self, contents: Contents) -> dict[Address, str]:
        """Whom a head's contents ban, and by what kind of evidence."""
        bans = {self._address(entry.epoch, entry.member): "equivocation" for entry in contents.evidence}
        for entry in contents.verdicts:
            address = self.loser_address(entry)
            if address is not None:
                bans[address] = EVIDENCE_NAMES[entry.outcome]
        return bans

    def loser_address(self, entry: VerdictEntry) -> Address | None:
        index = loser(entry)
        return None if index is None else self._member_address(entry.epoch, index)

    def forget_before(self, round: Round) -> None:
        self.ledger.forget_before(round)
        filed: tuple[dict[Address, EquivocationProof] | dict[Address, VerdictProof], ...]
        filed = (self.equivocations, self.verdicts)
        for cases in filed:
            for address in [address for address, proof in cases.items() if proof.entry.round < round]:
                del cases[address]

    def _is_in_epoch(self, epoch: Epoch, round: Round) -> bool:
        members = self.epochs.get(epoch)
        return members is not None and members.first_round <= round <= members.last_round

    def _is_timely(self, case_round: Round, round: Round) -> bool:
        return case_round <= round <= case_round + self.config.task.verdict_rounds

    def _member_address(self, epoch: Epoch, index: int) -> Address | None:
        members = self.epochs.get(epoch)
        return members.addresses[index] if members is not None and index < members.count else None

    def _address(self, epoch: Epoch, index: int) -> Address:
        return self.epochs[epoch].addresses[index]


def _order(proof: EquivocationProof | VerdictProof) -> tuple[object, ...]:
    entry: Wire = proof.entry
    return entry.to_array()
