"""From an audit to the bans that follow (DESIGN 3 "Audit", "Bans").

    audit        an auditor that the round assigned replays an earlier update
    on_replayed  what it finds guilty it accuses; a juror judges what it was asked to replay
    on_accuse    every member but the two parties replays
    on_judge     enough equal judgements are a verdict, which goes to the evidence pool for a leader to list
    sentence     a certified head lists it: banned, and the proof is for the contract

Nothing here signs: what a member has to say is returned as `Vote`s.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pdfl.base import params
from p2pdfl.base.types import (
    Accuse,
    Address,
    Envelope,
    Epoch,
    Judge,
    Kind,
    MemberIndex,
    Outcome,
    Packet,
    Propose,
    Round,
    VerdictEntry,
)
from p2pdfl.protocol.assignment import Assignment, batch_seed, turn_ms
from p2pdfl.protocol.audit import Jury, accused_case, is_case, is_party, judge_view, judged_case
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import Effect, Replay, Replayed, SubmitEquivocation, SubmitVerdict, hex_of, notice
from p2pdfl.protocol.evidence_pool import EVIDENCE_NAMES, EvidencePool
from p2pdfl.protocol.history import History
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Ignore, Reject
from p2pdfl.protocol.signing import Output, Vote

Case = tuple[Round, Address]
"""Audited round and author."""


class Court:
    def __init__(
        self,
        config: RunConfig,
        address: Address,
        *,
        epochs: Mapping[Epoch, EpochMembers],
        history: History,
        evidence_pool: EvidencePool,
        banned: Mapping[Address, str],
    ) -> None:
        """address: of the member whose court this is.  epochs, history: read only."""
        self.banned = dict(banned)
        """Address -> kind of evidence."""
        self.replays: dict[Case, Outcome] = {}
        """Those that are done."""
        self._config, self._address = config, address
        self._epochs, self._history, self._evidence_pool = epochs, history, evidence_pool
        self._jury = Jury()
        self._context: RoundContext
        """Of the open round; `open_round` comes first."""
        self._waiting: dict[Case, list[VerdictEntry]] = {}
        """Accusations that wait for this member's replay; the outcome is filled in."""
        self._packets: dict[Round, list[Packet]] = {}
        self._heard: list[Packet] = []
        """ACCUSEs and JUDGEs taken since the last round closed, whatever their round."""

    def open_round(self, context: RoundContext) -> None:
        self._context = context

    @property
    def packets(self) -> list[Packet]:
        """The ACCUSEs and JUDGEs that still matter."""
        return [packet for packets in self._packets.values() for packet in packets]

    # --- audit, accuse -----------------------------------------------------------------

    def audit(self) -> list[Effect]:
        """The open round's replay, if this member is one of its auditors."""
        context = self._context
        target = self._target(context.epoch, context.assignment)
        if target is None:
            return []
        return self._replay((context.round - params.AUDIT_LAG, context.epoch.addresses[target]))

    def on_replayed(self, event: Replayed) -> list[Output]:
        case = (event.audited_round, event.author)
        self.replays[case] = event.outcome
        outputs = self._accuse(event)
        for entry in self._waiting.pop(case, []):
            outputs += self._judge(entry.replace(outcome=int(event.outcome)))
        return outputs

    def _accuse(self, event: Replayed) -> list[Output]:
        """If it was this member's to audit, what it found; and if that is guilt, the accusation."""
        round = event.audited_round + params.AUDIT_LAG
        epoch = self._epochs.get(self._config.task.epoch_of(round))
        if epoch is None:
            return []
        target = self._target(epoch, self._assignment(round))
        if target is None or epoch.addresses[target] != event.author:
            return []
        finding = notice(
            "audit",
            round=round,
            target=hex_of(event.author),
            audited_round=event.audited_round,
            outcome=EVIDENCE_NAMES[event.outcome],
        )
        if event.outcome is not Outcome.GUILTY:
            return [finding]
        return [finding, Vote(Kind.ACCUSE, round, 0, Accuse(accused=target, audited_round=event.audited_round))]

    def _target(self, epoch: EpochMembers, assignment: Assignment | None) -> MemberIndex | None:
        """Whose update this member audits."""
        me = epoch.indices.get(self._address)
        return None if me is None or assignment is None else assignment.audits.get(me)

    def _replay(self, case: Case) -> list[Effect]:
        audited_round, author = case
        closed = self._history.closed.get(audited_round)
        update = None if closed is None else closed.updates_by_address().get(author)
        if closed is None or update is None:
            return []
        return [
            Replay(
                audited_round=audited_round,
                parent_state=closed.parent_state,
                seed=batch_seed(closed.beacon, self._config.task_id, audited_round, author),
                author=author,
                update=update,
            )
        ]

    # --- what others say -----------------------------------------------------------------

    def check(self, envelope: Envelope, payload: Accuse | Judge, sender: MemberIndex) -> None:
        """Raises Refusal for what is not worth taking."""
        if self._context.round > envelope.round + self._config.task.verdict_rounds:
            raise Ignore("case has lapsed")
        if isinstance(payload, Accuse):
            if not is_case(accused_case(envelope, payload, sender), self._assignment(envelope.round)):
                raise Reject("accuse: not the assigned auditor")
            return
        case = judged_case(envelope, payload)
        is_assigned = is_case(case, self._assignment(envelope.round))
        if not is_assigned or envelope.view != judge_view(case) or is_party(case, sender):
            raise Reject("judge: no such case")

    def take(self, packet: Packet, payload: Accuse | Judge, sender: MemberIndex) -> list[Output]:
        """Checked before."""
        self._packets.setdefault(packet.envelope.round, []).append(packet)
        self._heard.append(packet)
        if isinstance(payload, Accuse):
            return self._on_accuse(packet.envelope, payload, sender)
        return self._on_judge(packet, payload, sender)

    def _on_accuse(self, envelope: Envelope, accuse: Accuse, accuser: MemberIndex) -> list[Output]:
        epoch = self._epochs[envelope.epoch]
        outputs: list[Output] = [
            notice(
                "accusation",
                round=envelope.round,
                accuser=hex_of(epoch.addresses[accuser]),
                accused=hex_of(epoch.addresses[accuse.accused]),
                audited_round=accuse.audited_round,
            )
        ]
        entry = accused_case(envelope, accuse, accuser)
        me = epoch.indices.get(self._address)
        if me is None or is_party(entry, me):
            return outputs
        case = (accuse.audited_round, epoch.addresses[accuse.accused])
        if case in self.replays:
            return outputs + self._judge(entry.replace(outcome=int(self.replays[case])))
        self._waiting.setdefault(case, []).append(entry)
        return [*outputs, *self._replay(case)]

    def _on_judge(self, packet: Packet, judge: Judge, juror: MemberIndex) -> list[Output]:
        epoch = self._epochs[packet.envelope.epoch]
        entry = judged_case(packet.envelope, judge)
        proof = self._jury.add(entry, juror, packet.signature, epoch.jury)
        if proof is None:
            return []
        self._evidence_pool.file_verdict(proof)
        return [
            notice(
                "verdict",
                round=entry.round,
                accuser=hex_of(epoch.addresses[entry.accuser]),
                accused=hex_of(epoch.addresses[entry.accused]),
                audited_round=entry.audited_round,
                outcome=EVIDENCE_NAMES[entry.outcome],
            )
        ]

    # --- judge -----------------------------------------------------------------

    def judge_objective(self, culprit: MemberIndex) -> list[Output]:
        """A fault in the open round that every member sees for itself."""
        context = self._context
        return self._judge(
            VerdictEntry(
                epoch=context.epoch.epoch,
                round=context.round,
                accused=culprit,
                accuser=culprit,
                audited_round=context.round,
                outcome=Outcome.OBJECTIVE,
            )
        )

    def _judge(self, entry: VerdictEntry) -> list[Output]:
        me = self._epochs[entry.epoch].indices.get(self._address)
        if me is None or is_party(entry, me):
            return []
        judge = Judge(
            accused=entry.accused, accuser=entry.accuser, audited_round=entry.audited_round, outcome=entry.outcome
        )
        return [Vote(Kind.JUDGE, entry.round, judge_view(entry), judge)]

    def _assignment(self, round: Round) -> Assignment | None:
        if round == self._context.round:
            return self._context.assignment
        closed = self._history.closed.get(round)
        return None if closed is None else closed.assignment

    # --- close the round -----------------------------------------------------------------

    def sentence(self, propose: Propose) -> list[Effect]:
        """The bans that this head makes effective, and their proofs for the contract."""
        context, contents, evidence_pool = self._context, propose.contents, self._evidence_pool
        effects: list[Effect] = []
        cases = {evidence_pool.loser_address(entry): entry for entry in contents.verdicts}
        for address, evidence in evidence_pool.bans(contents).items():
            self.banned[address] = evidence
            case = cases.get(address)
            found: dict[str, str | int] = {}
            if case is not None:
                accuser = self._epochs[case.epoch].addresses[case.accuser]
                found = {"accuser": hex_of(accuser), "audited_round": case.audited_round, "verdict_round": case.round}
            effects.append(notice("ban", round=context.round, member=hex_of(address), evidence=evidence, **found))
        delay_ms = turn_ms(context.assignment, context.epoch.indices.get(self._address))
        return effects if delay_ms is None else effects + self._submit(propose, delay_ms)

    def _submit(self, propose: Propose, delay_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for verdict in propose.verdicts:
            members = self._epochs[verdict.entry.epoch].addresses
            effects.append(SubmitVerdict(proof=verdict, members=members, delay_ms=delay_ms))
        for equivocation in propose.equivocations:
            accused = self._epochs[equivocation.entry.epoch].addresses[equivocation.entry.member]
            effects.append(SubmitEquivocation(proof=equivocation, accused=accused, delay_ms=delay_ms))
        return effects

    def take_heard(self) -> tuple[Packet, ...]:
        """Once per round, for its transcript."""
        heard, self._heard = tuple(self._heard), []
        return heard

    def forget_before(self, round: Round) -> None:
        self._jury.forget_before(round)
        for old in [old for old in self._packets if old < round]:
            del self._packets[old]
        for case in [case for case in (*self._waiting, *self.replays) if case[0] < round]:
            self._waiting.pop(case, None)
            self.replays.pop(case, None)
