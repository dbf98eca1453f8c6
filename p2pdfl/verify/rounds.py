"""The rounds, one after the other, as a member follows them (compare `protocol.run`).

    open      the beacon says who trained, audited and led
    heads     the words that close the round: parent, contents, state
    votes     a quorum finalized this head; its proposal was a leader's to make
    commits   what the contents name: signed, with dealings and shares that verify
    cases     who accused, who judged, who is banned from the next round on
    members   the next epoch's list, where this round names it
    close     the shares give the next beacon

A round that is not sound in what later rounds rest on is the last one followed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode_payload, digest_of
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Address,
    Certificate,
    Commit,
    CommitEntry,
    Contents,
    Digest,
    Envelope,
    Epoch,
    EquivocationEntry,
    Head,
    Judge,
    Kind,
    Member,
    MemberIndex,
    Outcome,
    Packet,
    Payload,
    Propose,
    Round,
    UpdateEntry,
    VerdictEntry,
)
from p2pdfl.chain.contract import Started
from p2pdfl.crypto import group, pvss
from p2pdfl.crypto.envelope import BadSignature, head_digest, recover
from p2pdfl.protocol.agreement import is_certificate
from p2pdfl.protocol.assignment import Assignment
from p2pdfl.protocol.audit import accused_case, is_case, is_party, judge_view, judged_case
from p2pdfl.protocol.beacon import initial_beacon, initial_parent
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext, compute_context
from p2pdfl.protocol.epochs import committed_lately, compute_next_epoch
from p2pdfl.protocol.events import CheckCommits
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.history import ClosedRound
from p2pdfl.protocol.membership import EpochMembers, select_members
from p2pdfl.protocol.proposal import check_proposal
from p2pdfl.protocol.refusal import Reject
from p2pdfl.protocol.sharing import check_commits
from p2pdfl.verify.files import BadFile, RoundIndex, Transcript
from p2pdfl.verify.findings import Check, Findings
from p2pdfl.verify.registry import ChainExport


class Unsound(Exception):
    """What later rounds rest on is missing or wrong; told in the findings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """What the contract is to be shown for it: evidence and round as its event has them."""

    address: Address
    evidence: str
    entry: VerdictEntry | EquivocationEntry
    head_round: Round


@dataclass(slots=True)
class _Packets:
    """What one round's transcript holds, by what it is."""

    commits: dict[CommitEntry, Commit]
    proposals: list[tuple[Envelope, MemberIndex, Propose]]


class Follower:
    def __init__(self, config: RunConfig, transcript: Transcript, export: ChainExport, findings: Findings) -> None:
        """Raises Unsound if the export gives no list to begin with."""
        initial_state = config.task.initial_state
        assert initial_state is not None, "the task is measured"
        self._config, self._transcript, self._export, self._findings = config, transcript, export, findings
        members, closing_block = self._registered()
        task, task_id = config.task, config.task_id
        first = EpochMembers(epoch=0, first_round=0, last_round=task.last_round_of(0), members=members)
        self.epochs: dict[Epoch, EpochMembers] = {0: first}
        self.banned: dict[Address, str] = {}
        self.bans: list[Ban] = []
        self.anchorable: dict[Epoch, Head] = {}
        """The last head of each epoch followed to its end."""
        self._evidence_pool = EvidencePool(config, self.epochs)
        self._closed: dict[Round, ClosedRound] = {}
        self._chain_block = closing_block
        self.state = initial_state
        self._head = initial_parent(task_id, first.list_hash, self.state, closing_block)
        self._beacons = {
            round: initial_beacon(task_id, first.list_hash, closing_block, round)
            for round in range(min(2, task.total_rounds))
        }
        findings.confirm(Check.BEACONS, len(self._beacons))

    def follow(self, round: Round) -> ClosedRound:
        """Raises Unsound."""
        try:
            index = self._transcript.index(round)
            contents = self._transcript.wire(Contents, index.contents)
            certificate = self._transcript.wire(Certificate, index.certificate)
            context = self._open(round)
            head = index.head_words()
            self._check_head(context, head, contents, index)
            self._check_certificate(context, head, certificate)
            packets = self._packets(context, index)
        except BadFile as error:
            self._findings.fail(Check.FILES, f"round {round}: {error}")
            raise Unsound from None
        self._check_proposals(context, head, contents, packets)
        commits = self._check_commits(context, contents, packets)
        self._check_updates(context, contents, commits)
        self._check_verdicts(context, contents)
        self._choose_members(context, head, contents)
        closed = ClosedRound(
            round=round,
            epoch=context.epoch,
            beacon=context.beacon,
            assignment=context.assignment,
            parent_state=context.parent_state,
            contents=contents,
            state=head.state,
            certificate=certificate,
            dealings=tuple(commit.dealing for _, commit in commits),
            packets=(),
        )
        self._close(context, head, closed, commits)
        return closed

    # --- before the first round -------------------------------------------------------------------------------------

    def _registered(self) -> tuple[tuple[Member, ...], Digest]:
        """The members that registration closed with, and the block that closed it."""
        started = self._export.of(Started)
        if len(started) != 1:
            raise self._unsound(Check.REGISTRY, f"chain.json: {len(started)} events that close registration, not one")
        block = self._export.block_hash(started[0].block)
        if block is None:
            raise self._unsound(Check.REGISTRY, "chain.json: lacks the block that closed registration")
        members = select_members(self._export.started_with(), excluded=())
        listed = EpochMembers(epoch=0, first_round=0, last_round=0, members=members)
        if not 0 < len(members) <= params.MEMBER_COUNT_MAX or listed.list_hash != started[0].list_hash:
            raise self._unsound(Check.REGISTRY, "chain.json: registration closed with another list than was registered")
        self._findings.confirm(Check.REGISTRY, len(self._export.events))
        return members, block

    # --- open -------------------------------------------------------------------------------------------------------

    def _open(self, round: Round) -> RoundContext:
        try:
            return compute_context(
                task=self._config.task,
                task_id=self._config.task_id,
                round=round,
                epochs=self.epochs,
                closed=self._closed,
                beacon=self._beacons[round],
                parent=self._head,
                parent_state=self.state,
                chain_block=self._chain_block,
                banned=frozenset(self.banned),
                undelivered=(),
            )
        except group.InvalidPoint as error:
            raise self._unsound(Check.BEACONS, f"round {round}: the dealings of the round before: {error}") from None

    # --- heads, votes -----------------------------------------------------------------------------------------------

    def _check_head(self, context: RoundContext, head: Head, contents: Contents, index: RoundIndex) -> None:
        round = context.round
        wrong = [
            name
            for name, holds in (
                ("task", head.task == self._config.task_id),
                ("epoch", head.epoch == context.epoch.epoch),
                ("round", head.round == round),
                ("parent", head.parent == context.parent),
                ("contents", head.contents == digest_of(contents)),
            )
            if not holds
        ]
        if wrong:
            raise self._unsound(Check.HEADS, f"round {round}: the head's {', '.join(wrong)} is another")
        self._findings.confirm(Check.HEADS)
        if [(entry.member, entry.digest) for entry in index.updates] != [
            (entry.member, entry.update) for entry in contents.updates
        ]:
            self._findings.fail(Check.FILES, f"round {round}: its file lists other updates than its contents name")

    def _check_certificate(self, context: RoundContext, head: Head, certificate: Certificate) -> None:
        round = context.round
        if certificate.head != head_digest(head):
            self._findings.fail(Check.CERTIFICATES, f"round {round}: the certificate is for another head")
            return
        is_valid = (certificate.round, certificate.kind) == (round, Kind.CLOSE) and is_certificate(
            certificate, self._config.domain, self._config.task_id, context.epoch
        )
        self._findings.ensure(
            Check.CERTIFICATES, is_valid, f"round {round}: the certificate has no quorum of valid signatures"
        )

    def _check_proposals(self, context: RoundContext, head: Head, contents: Contents, packets: _Packets) -> None:
        """All rules for a proposal, among them those for what its contents name."""
        round = context.round
        proposals = [item for item in packets.proposals if item[2].head == head and item[2].contents == contents]
        if not proposals:
            raise self._unsound(Check.PROPOSALS, f"round {round}: there is no proposal of this head")
        for envelope, leader, propose in proposals:
            try:
                self._evidence_pool.check(propose, round, context.banned)
            except Reject as refusal:
                raise self._unsound(Check.CASES, f"round {round}: {refusal.reason}") from None
            try:
                check_proposal(
                    propose,
                    envelope.view,
                    leader,
                    config=self._config,
                    context=context,
                    evidence_pool=self._evidence_pool,
                )
            except Reject as refusal:
                raise self._unsound(Check.PROPOSALS, f"round {round}: {refusal.reason}") from None
            self._findings.confirm(Check.PROPOSALS)

    # --- commits ----------------------------------------------------------------------------------------------------

    def _packets(self, context: RoundContext, index: RoundIndex) -> _Packets:
        """Every packet, its signature checked.  Accusations and judgements are checked at once and not kept."""
        packets = _Packets(commits={}, proposals=[])
        for entry in index.packets:
            packet = self._transcript.wire(Packet, entry.digest)
            envelope = packet.envelope
            kind = Kind(envelope.kind)
            if (entry.kind, entry.round, entry.view) != (kind.name.lower(), envelope.round, envelope.view):
                raise BadFile(f"packet {entry.digest.hex()}: is another than the round's file says")
            check = {Kind.COMMIT: Check.COMMITS, Kind.PROPOSE: Check.PROPOSALS}.get(kind, Check.CASES)
            what = f"round {context.round}: {kind.name} in blob {entry.digest.hex()[:16]}"
            opened = self._opened(context, packet)
            if isinstance(opened, str):
                self._findings.fail(check, f"{what}: {opened}")
                continue
            sender, payload = opened
            match payload:
                case Commit():
                    packets.commits[CommitEntry(member=sender, body=envelope.body)] = payload
                case Propose():
                    packets.proposals.append((envelope, sender, payload))
                case Accuse():
                    case = accused_case(envelope, payload, sender)
                    is_assigned = is_case(case, self._assignment(context, envelope.round))
                    self._findings.ensure(Check.CASES, is_assigned, f"{what}: by another than the assigned auditor")
                case Judge():
                    case = judged_case(envelope, payload)
                    is_juror = envelope.view == judge_view(case) and not is_party(case, sender)
                    is_assigned = is_case(case, self._assignment(context, envelope.round))
                    self._findings.ensure(Check.CASES, is_juror and is_assigned, f"{what}: judges no case there is")
                case _:
                    self._findings.fail(Check.FILES, f"{what}: has no place in a transcript")
        return packets

    def _opened(self, context: RoundContext, packet: Packet) -> tuple[MemberIndex, Payload] | str:
        """Who signed what; or why that cannot be said."""
        envelope = packet.envelope
        is_of_now = envelope.round == context.round
        if envelope.kind in (Kind.ACCUSE, Kind.JUDGE):
            verdict_rounds = self._config.task.verdict_rounds
            is_of_now = context.round - verdict_rounds <= envelope.round <= context.round
        if envelope.task != self._config.task_id or not is_of_now:
            return "of another task or round"
        members = self.epochs.get(envelope.epoch)
        if members is None or envelope.epoch != self._config.task.epoch_of(envelope.round):
            return "of another epoch"
        try:
            sender = members.indices.get(recover(self._config.domain, envelope, packet.signature))
            payload = decode_payload(packet)
        except BadSignature:
            return "its signature does not verify"
        except Malformed as error:
            return str(error)
        return "signed by no member" if sender is None else (sender, payload)

    def _check_commits(
        self, context: RoundContext, contents: Contents, packets: _Packets
    ) -> list[tuple[MemberIndex, Commit]]:
        """Those that the contents name."""
        round = context.round
        missing = [entry.member for entry in contents.commits if entry not in packets.commits]
        if missing:
            raise self._unsound(Check.COMMITS, f"round {round}: no valid COMMIT of {_members(missing)} as named")
        named = [(entry, packets.commits[entry]) for entry in contents.commits]
        odd = [
            entry.member
            for entry, commit in named
            if commit.parent != context.parent or (commit.share is None) != (context.fixed is None)
        ]
        if odd:
            raise self._unsound(Check.COMMITS, f"round {round}: another parent, or no share, from {_members(odd)}")
        effect = CheckCommits(
            round=round,
            checks=tuple(
                context.check_of(self._config.task_id, entry.member, entry.body, commit) for entry, commit in named
            ),
            keys=context.dealt_to.keys,
            threshold=context.dealt_to.threshold,
        )
        invalid = check_commits(effect, secrets.token_bytes)
        if invalid:
            culprits = _members(entry.member for entry, _ in named if entry.body in invalid)
            raise self._unsound(Check.COMMITS, f"round {round}: dealing or share does not verify, from {culprits}")
        self._findings.confirm(Check.COMMITS, len(named))
        return [(entry.member, commit) for entry, commit in named]

    def _check_updates(
        self, context: RoundContext, contents: Contents, commits: list[tuple[MemberIndex, Commit]]
    ) -> None:
        promised = {
            UpdateEntry(member=member, update=commit.update)
            for member, commit in commits
            if member in context.assignment.trainers and commit.update != ZERO_DIGEST
        }
        unpromised = [entry.member for entry in contents.updates if entry not in promised]
        self._findings.ensure(
            Check.ASSIGNMENTS,
            not unpromised,
            f"round {context.round}: not a trainer there, or committed to another update: {_members(unpromised)}",
        )

    # --- cases ------------------------------------------------------------------------------------------------------

    def _assignment(self, context: RoundContext, round: Round) -> Assignment | None:
        if round == context.round:
            return context.assignment
        return self._closed[round].assignment if round in self._closed else None

    def _check_verdicts(self, context: RoundContext, contents: Contents) -> None:
        """Their signatures are checked with the proposal; here, that they are about what was to be judged."""
        self._findings.confirm(Check.CASES, len(contents.evidence))
        for verdict in contents.verdicts:
            is_assigned = is_case(verdict, self._assignment(context, verdict.round))
            what = f"round {context.round}: the verdict on member {verdict.accused} of epoch {verdict.epoch}"
            self._findings.ensure(Check.CASES, is_assigned, f"{what} judges no case there is")
            if verdict.outcome == Outcome.OBJECTIVE:
                self._findings.remark(
                    Check.CASES, f"{what} rests on the jurors' signatures: what was faulty is in no head"
                )

    # --- members ----------------------------------------------------------------------------------------------------

    def _choose_members(self, context: RoundContext, head: Head, contents: Contents) -> None:
        round = context.round
        if not context.chooses_next_members:
            if (head.next_members, head.chain_block) != (context.next_members, context.chain_block):
                raise self._unsound(Check.MEMBERS, f"round {round}: names another list or chain block than before")
            return
        number, before = self._export.numbers.get(head.chain_block), self._export.numbers[self._chain_block]
        if number is None:
            raise self._unsound(
                Check.MEMBERS, f"round {round}: names chain block {head.chain_block.hex()[:16]}, which chain.json lacks"
            )
        if number < before:
            raise self._unsound(Check.MEMBERS, f"round {round}: names chain block {number}, older than {before} before")
        following = compute_next_epoch(
            self._config.task,
            context.epoch,
            self._export.registrations(number),
            committed=committed_lately(round, context.epoch, contents, self._closed),
            banned=self.banned.keys() | self._evidence_pool.bans(contents).keys(),
        )
        if following.list_hash != head.next_members:
            raise self._unsound(Check.MEMBERS, f"round {round}: names another list for epoch {following.epoch}")
        self._findings.confirm(Check.MEMBERS)
        self.epochs[following.epoch] = following

    # --- close ------------------------------------------------------------------------------------------------------

    def _close(
        self, context: RoundContext, head: Head, closed: ClosedRound, commits: list[tuple[MemberIndex, Commit]]
    ) -> None:
        round = context.round
        if context.fixed is not None:
            try:
                self._beacons[round + 1] = context.fixed.recover(
                    {member: commit.share for member, commit in commits if commit.share is not None}
                )
            except (pvss.TooFewShares, group.InvalidPoint) as error:
                raise self._unsound(Check.BEACONS, f"round {round}: its shares give no beacon: {error}") from None
            self._findings.confirm(Check.BEACONS)
        self.banned.update(self._evidence_pool.bans(closed.contents))
        self.bans += self._new_bans(closed)
        self._closed[round] = closed
        self._head, self.state, self._chain_block = head_digest(head), head.state, head.chain_block
        if round == context.epoch.last_round:
            self.anchorable[context.epoch.epoch] = head
        oldest = round - self._config.history_rounds
        self._closed.pop(oldest, None)
        self._beacons.pop(oldest, None)

    def _new_bans(self, closed: ClosedRound) -> Iterator[Ban]:
        for evidence in closed.contents.evidence:
            address = self.epochs[evidence.epoch].addresses[evidence.member]
            yield Ban(address=address, evidence=self.banned[address], entry=evidence, head_round=closed.round)
        for verdict in closed.contents.verdicts:
            loser = self._evidence_pool.loser_address(verdict)
            if loser is not None:
                yield Ban(address=loser, evidence=self.banned[loser], entry=verdict, head_round=closed.round)

    def _unsound(self, check: Check, problem: str) -> Unsound:
        self._findings.fail(check, problem)
        return Unsound()


def _members(indices: Iterable[MemberIndex]) -> str:
    return "members " + ", ".join(str(index) for index in indices)
