"""Accusation, judgement, verdict (DESIGN 3 "Audit", "Objective faults").

An auditor that finds another update than the one revealed accuses; every member but the two parties replays and
signs JUDGE; floor(n/2) equal JUDGEs of the epoch's list are a verdict, and its signatures prove it to anyone.
An objective fault needs no accuser: `accuser` is the accused, and it is judged in a slot of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.base import params
from p2pdfl.base.codec import body_digest
from p2pdfl.base.types import (
    Accuse,
    Ballot,
    Digest,
    Envelope,
    Judge,
    Kind,
    MemberIndex,
    Outcome,
    Round,
    Signature,
    VerdictEntry,
    VerdictProof,
    View,
)
from p2pdfl.crypto.envelope import BadSignature, Domain, recover
from p2pdfl.protocol.assignment import Assignment
from p2pdfl.protocol.membership import EpochMembers


def judge_envelope(task: Digest, entry: VerdictEntry) -> Envelope:
    """What every juror of this verdict signs."""
    judge = Judge(
        accused=entry.accused, accuser=entry.accuser, audited_round=entry.audited_round, outcome=entry.outcome
    )
    return Envelope(
        task=task,
        epoch=entry.epoch,
        round=entry.round,
        view=judge_view(entry),
        kind=Kind.JUDGE,
        body=body_digest(judge),
    )


def judge_view(entry: VerdictEntry) -> View:
    """Which slot of the round a case is judged in: a juror has one finding per accusation, and one per objective fault
    of a member, so that nobody can hide the one behind the other."""
    return params.MEMBER_COUNT_MAX + entry.accused if entry.outcome == Outcome.OBJECTIVE else entry.accuser


def accused_case(envelope: Envelope, accuse: Accuse, accuser: MemberIndex) -> VerdictEntry:
    """The case that an ACCUSE opens; its outcome is for the jurors to fill in."""
    return VerdictEntry(
        epoch=envelope.epoch,
        round=envelope.round,
        accused=accuse.accused,
        accuser=accuser,
        audited_round=accuse.audited_round,
        outcome=Outcome.VOID,
    )


def judged_case(envelope: Envelope, judge: Judge) -> VerdictEntry:
    return VerdictEntry(
        epoch=envelope.epoch,
        round=envelope.round,
        accused=judge.accused,
        accuser=judge.accuser,
        audited_round=judge.audited_round,
        outcome=judge.outcome,
    )


def loser(entry: VerdictEntry) -> MemberIndex | None:
    match entry.outcome:
        case Outcome.GUILTY | Outcome.OBJECTIVE:
            return entry.accused
        case Outcome.FALSE:
            return entry.accuser
        case _:
            return None


def is_case(entry: VerdictEntry, assignment: Assignment | None) -> bool:
    """Whether this accusation may be made at all: by the auditor that its round assigned, or by nobody, where the
    fault is objective.  assignment: of the entry's round, None if that is not known."""
    if entry.outcome == Outcome.OBJECTIVE:
        return entry.accuser == entry.accused and entry.audited_round == entry.round
    return (
        assignment is not None
        and assignment.audits.get(entry.accuser) == entry.accused
        and entry.audited_round == entry.round - params.AUDIT_LAG
    )


def is_party(entry: VerdictEntry, member: MemberIndex) -> bool:
    return member in (entry.accused, entry.accuser)


def is_verdict(proof: VerdictProof, domain: Domain, task: Digest, epoch: EpochMembers) -> bool:
    """Whether floor(n/2) distinct members, neither of them a party, signed this outcome."""
    jurors = [ballot.member for ballot in proof.ballots]
    if len(set(jurors)) != len(jurors) or len(jurors) < epoch.jury or max(jurors) >= epoch.count:
        return False
    envelope = judge_envelope(task, proof.entry)
    try:
        return all(
            not is_party(proof.entry, ballot.member)
            and recover(domain, envelope, ballot.signature) == epoch.addresses[ballot.member]
            for ballot in proof.ballots
        )
    except BadSignature:
        return False


@dataclass(slots=True)
class Jury:
    """The JUDGEs seen so far; a verdict is proven once, by the first floor(n/2) of them."""

    _ballots: dict[VerdictEntry, dict[MemberIndex, Signature]] = field(default_factory=dict)
    proofs: dict[VerdictEntry, VerdictProof] = field(default_factory=dict)

    def add(self, entry: VerdictEntry, juror: MemberIndex, signature: Signature, needed: int) -> VerdictProof | None:
        ballots = self._ballots.setdefault(entry, {})
        ballots[juror] = signature
        if len(ballots) < needed or entry in self.proofs:
            return None
        proof = VerdictProof(
            entry=entry,
            ballots=tuple(Ballot(member=member, signature=ballots[member]) for member in sorted(ballots)),
        )
        self.proofs[entry] = proof
        return proof

    def forget_before(self, round: Round) -> None:
        for entry in [entry for entry in self._ballots if entry.round < round]:
            del self._ballots[entry]
            self.proofs.pop(entry, None)
