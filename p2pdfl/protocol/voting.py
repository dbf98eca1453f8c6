"""What a member says in the agreement (DESIGN 3.4-3.7).

propose    in the views that it leads: all that it holds, or what was notarized before
notarize   one head per view: the first one proposed that follows from what is here and omits nothing
close      once per view: finalize what is notarized in time, else skip
"""

from __future__ import annotations

from collections.abc import Callable

from p2pdfl.base import params
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Address,
    Certificate,
    Close,
    Digest,
    Kind,
    MemberIndex,
    Notarize,
    Propose,
    View,
)
from p2pdfl.protocol.agreement import Agreement
from p2pdfl.protocol.commits import CommitPool, UpdatePool
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import KeepNotarized, phase_notice
from p2pdfl.protocol.proposal import Required
from p2pdfl.protocol.proposal_pool import ProposalPool
from p2pdfl.protocol.signing import Output, Vote


class Voting:
    def __init__(
        self,
        context: RoundContext,
        me: MemberIndex | None,
        *,
        agreement: Agreement,
        commits: CommitPool,
        updates: UpdatePool,
        proposals: ProposalPool,
        overdue: frozenset[Address],
        latest_block: Callable[[], Digest],
    ) -> None:
        """commits, updates: read only.  overdue: who was proven guilty before the round opened: a fresh proposal must
        ban them."""
        self.start_ms = 0
        """From when on it proposes; 0 until the end of its reveal phase."""
        self._context, self._me, self._agreement = context, me, agreement
        self._commits, self._updates, self._proposals = commits, updates, proposals
        self._overdue, self._latest_block = overdue, latest_block
        self._required: Required | None = None
        """None until the end of this member's reveal phase."""
        self._proposed: set[View] = set()
        self._notarized: set[View] = set()
        self._refused: set[tuple[View, Digest]] = set()

    def start(self, start_ms: int) -> None:
        """The reveal phase is over: what is held by now may not be left out."""
        self.start_ms = start_ms
        self._required = Required(frozenset(self._commits.members), frozenset(self._updates.held), self._overdue)
        self._agreement.start(start_ms)

    def propose(self, now_ms: int) -> list[Output]:
        view = self._agreement.view
        if (
            self._me is None
            or self._required is None
            or now_ms < self.start_ms
            or view in self._proposed
            or self._context.assignment.leader(view) != self._me
        ):
            return []
        justified = self._agreement.justification(view)
        if justified is None:
            return []
        notarization, skips = justified
        if notarization is None:
            return self._propose_afresh(view, skips)
        earlier = self._proposals.by_head.get(notarization.head)
        if earlier is None:
            return []
        return self._sent_in(view, earlier.replace(notarization=notarization, skips=skips))

    def _propose_afresh(self, view: View, skips: tuple[Certificate, ...]) -> list[Output]:
        contents, equivocations, verdicts = self._proposals.contents()
        state = self._proposals.states.get(contents.updates)
        if state is None:
            return [*self._proposals.aggregate(contents.updates)]
        # where the chain is out of reach, others may not be able to read this member's newest block
        block = self._latest_block() if view < params.NEWEST_BLOCK_VIEWS else self._context.chain_block
        head = self._proposals.head(contents, state, block)
        if head is None:
            return []
        propose = Propose(
            contents=contents,
            head=head,
            notarization=None,
            skips=skips,
            equivocations=equivocations,
            verdicts=verdicts,
        )
        return self._sent_in(view, propose)

    def _sent_in(self, view: View, propose: Propose) -> list[Output]:
        self._proposed.add(view)
        return [Vote(Kind.PROPOSE, self._context.round, view, propose)]

    def notarize(self) -> list[Output]:
        view = self._agreement.view
        if self._me is None or view in self._notarized:
            return []
        outputs: list[Output] = []
        for digest, propose in self._proposals.by_view.get(view, {}).items():
            if (view, digest) in self._refused:
                continue
            if self._omits(propose, view):
                if self._required is not None:
                    self._refused.add((view, digest))
                continue
            missing = self._proposals.missing_for(propose)
            if missing is not None:
                outputs += missing
                continue
            if not self._proposals.is_sound(propose):
                self._refused.add((view, digest))
                continue
            self._notarized.add(view)
            return [*outputs, Vote(Kind.NOTARIZE, self._context.round, view, Notarize(head=digest))]
        return outputs

    def _omits(self, propose: Propose, view: View) -> bool:
        """Whether a fresh proposal leaves out what this member held at its deadline (before it: holds now)."""
        if propose.notarization is not None or view >= self._context.epoch.count:
            return False
        required = self._required or Required(self._commits.members, self._updates.held, self._overdue)
        return self._proposals.omits(propose, required)

    def close(self, now_ms: int) -> list[Output]:
        if self._me is None or self._agreement.certificate is not None:
            return []
        view = self._agreement.view
        head = self._agreement.close_vote(now_ms)
        if head is None:
            return []
        outputs: list[Output] = []
        if head != ZERO_DIGEST:
            propose = self._proposals.by_head.get(head)
            if propose is None or not self._proposals.is_held(propose):
                return []  # until it is here, or the timer runs out
            outputs.append(
                KeepNotarized(
                    certificate=self._agreement.notarizations[view], packets=self._proposals.packets_of(propose)
                )
            )
        self._agreement.sign_close()
        return [
            *outputs,
            Vote(Kind.CLOSE, self._context.round, view, Close(head=head)),
            phase_notice(self._context.round, view, "close"),
        ]
