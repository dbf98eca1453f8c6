"""The states between the rounds, from the updates' bytes alone; and updates trained again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2pdfl.base.types import Address, Digest, Epoch, Outcome, Round, VerdictEntry
from p2pdfl.learning.learner import Learner, State
from p2pdfl.protocol.assignment import batch_seed
from p2pdfl.protocol.audit import loser
from p2pdfl.protocol.evidence_pool import EVIDENCE_NAMES
from p2pdfl.protocol.history import ClosedRound
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.verify.files import BadFile, Transcript
from p2pdfl.verify.findings import Check, Findings
from p2pdfl.verify.replays import ReplayPlan


@dataclass(slots=True)
class Model:
    learner: Learner
    task_id: Digest
    transcript: Transcript
    findings: Findings
    plan: ReplayPlan
    state: State | None
    """After the last round followed; None once an update or a state was wrong: what comes after rests on it."""
    _deviations: list[tuple[Round, Address]] = field(default_factory=list)
    """Sampled updates that training again does not give."""

    def follow(self, closed: ClosedRound, epochs: Mapping[Epoch, EpochMembers]) -> None:
        """From the round's parent state to its own.  One round's updates are in memory at a time."""
        updates = self._updates(closed)
        parent = self.state
        if parent is None:
            return
        if len(updates) < len(closed.contents.updates):
            self._lose(f"round {closed.round} and after: updates are missing or wrong")
            return
        self._replay(closed, parent, updates, epochs)
        state = self.learner.aggregate(parent, list(updates.values()))
        digest = state.digest()
        problem = f"round {closed.round}: the head's state is {_short(closed.state)}, its updates give {_short(digest)}"
        self.state = state
        if not self.findings.ensure(Check.STATES, digest == closed.state, problem):
            self._lose(f"after round {closed.round}")

    def conclude(self, banned: Mapping[Address, str]) -> None:
        """What deviations mean, once it is known who was banned in the end."""
        for round, author in self._deviations:
            what = f"round {round}: the update of 0x{author.hex()} is not what its assignment gives"
            if author in banned:
                self.findings.confirm(Check.REPLAYS)
                self.findings.remark(Check.REPLAYS, f"{what}; it was banned: {banned[author]}")
            else:
                self.findings.fail(Check.REPLAYS, f"{what}, and nobody was banned for it")

    def _updates(self, closed: ClosedRound) -> dict[Address, bytes]:
        """The valid ones, in member order."""
        updates: dict[Address, bytes] = {}
        for entry in closed.contents.updates:
            author = closed.epoch.addresses[entry.member]
            try:
                data = self.transcript.blob(entry.update, self.learner.update_bytes_max)
            except BadFile as error:
                self.findings.fail(Check.FILES, f"round {closed.round}: update of member {entry.member}: {error}")
                continue
            is_valid = self.learner.is_valid(data, task_id=self.task_id, round=closed.round, author=author)
            problem = f"round {closed.round}: the update of member {entry.member} does not decode under its header"
            if self.findings.ensure(Check.UPDATES, is_valid, problem):
                updates[author] = data
        return updates

    def _lose(self, reason: str) -> None:
        self.state = None
        self.findings.leave(Check.STATES, reason)
        if self.plan.sampled or self.plan.judged:
            self.findings.leave(Check.REPLAYS, reason)

    def _replay(
        self,
        closed: ClosedRound,
        parent: State,
        updates: Mapping[Address, bytes],
        epochs: Mapping[Epoch, EpochMembers],
    ) -> None:
        sampled = {closed.epoch.addresses[member] for member in self.plan.sampled.get(closed.round, ())}
        judged = self._judged(self.plan.judged.get(closed.round, ()), epochs)
        for author in [author for author in updates if author in sampled or author in judged]:
            outcome = self.learner.audit(
                updates[author],
                parent,
                seed=batch_seed(closed.beacon, self.task_id, closed.round, author),
                task_id=self.task_id,
                round=closed.round,
                author=author,
            )
            self._note(closed.round, author, outcome, judged.get(author))

    def _judged(
        self, verdicts: Sequence[VerdictEntry], epochs: Mapping[Epoch, EpochMembers]
    ) -> dict[Address, VerdictEntry]:
        """By accused.  A verdict of an epoch that never comes is refused when its round is followed."""
        return {
            epochs[verdict.epoch].addresses[verdict.accused]: verdict
            for verdict in verdicts
            if verdict.epoch in epochs and verdict.accused < epochs[verdict.epoch].count
        }

    def _note(self, round: Round, author: Address, outcome: Outcome, verdict: VerdictEntry | None) -> None:
        if outcome is Outcome.VOID:
            self.findings.leave(
                Check.REPLAYS,
                f"round {round}: the update of 0x{author.hex()} differs, but by no more than machines may differ",
            )
        elif verdict is not None:
            said = EVIDENCE_NAMES[verdict.outcome]
            problem = f"round {verdict.round}: the verdict on 0x{author.hex()} is {said}, a replay finds otherwise"
            if self.findings.ensure(Check.REPLAYS, outcome == verdict.outcome, problem):
                guilty = "the accuser" if loser(verdict) == verdict.accuser else f"0x{author.hex()}"
                self.findings.remark(
                    Check.REPLAYS, f"round {verdict.round}: a replay finds as the jury did: {said}, so {guilty} loses"
                )
        elif outcome is Outcome.FALSE:
            self.findings.confirm(Check.REPLAYS)
        else:
            self._deviations.append((round, author))


def _short(digest: Digest) -> str:
    return digest.hex()[:16]
