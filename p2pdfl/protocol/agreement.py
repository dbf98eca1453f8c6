"""Simplex, once per round: propose, notarize, close (DESIGN 3.5-3.7; Chan & Pass 2023).

A quorum of NOTARIZE for one head in one view is a notarization; a quorum of CLOSE(head) in one view is the round's
certificate; a quorum of CLOSE(zero) is a skip certificate.  A member signs exactly one CLOSE per view.

Safe: two quorums share 2q - n > f members, so a view with a certificate has no skip certificate, and every later
proposal must begin at that head.

Timers are each member's own: they double per view, and view 0's by a level that the rounds before have taught
(`compute_level`, ADR 12).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.base import params
from p2pdfl.base.codec import body_digest
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Ballot,
    Certificate,
    Close,
    Digest,
    Envelope,
    Kind,
    MemberIndex,
    Notarize,
    Round,
    Signature,
    View,
)
from p2pdfl.crypto.envelope import BadSignature, Domain, recover
from p2pdfl.protocol.membership import EpochMembers


def is_certificate(certificate: Certificate, domain: Domain, task: Digest, epoch: EpochMembers) -> bool:
    """Whether a quorum of distinct members signed this vote, in their order."""
    signers = [ballot.member for ballot in certificate.ballots]
    if signers != sorted(set(signers)) or len(signers) < epoch.quorum or max(signers) >= epoch.count:
        return False
    if certificate.epoch != epoch.epoch or not epoch.first_round <= certificate.round <= epoch.last_round:
        return False
    vote = Notarize(head=certificate.head) if certificate.kind == Kind.NOTARIZE else Close(head=certificate.head)
    envelope = Envelope(
        task=task,
        epoch=certificate.epoch,
        round=certificate.round,
        view=certificate.view,
        kind=certificate.kind,
        body=body_digest(vote),
    )
    try:
        return all(
            recover(domain, envelope, ballot.signature) == epoch.addresses[ballot.member]
            for ballot in certificate.ballots
        )
    except BadSignature:
        return False


@dataclass(slots=True)
class Agreement:
    """The votes of one round and the view that this member is in."""

    epoch: EpochMembers
    round: Round
    view_ms: int
    level: int = 0
    """By how many doublings view 0's timer is longer than `view_ms`."""
    view: View = 0
    started_ms: int | None = None
    """From when view 0's timer runs: the end of this member's reveal phase."""
    deadline_ms: int = 0
    """When the current view's timer runs out."""
    notarized_ms: int | None = None
    """When this member saw the current view's notarization."""
    notarizations: dict[View, Certificate] = field(default_factory=dict)
    skips: dict[View, Certificate] = field(default_factory=dict)
    certificate: Certificate | None = None
    certified_ms: int = 0
    """When this member saw the certificate."""
    close_signed: set[View] = field(default_factory=set)
    _votes: dict[tuple[View, int, Digest], dict[MemberIndex, Signature]] = field(default_factory=dict)

    def start(self, now_ms: int) -> None:
        if self.started_ms is None:
            self.started_ms = now_ms
            self.deadline_ms = now_ms + self._timer_ms(self.view)

    def add_vote(
        self, *, kind: int, view: View, head: Digest, voter: MemberIndex, signature: Signature, now_ms: int
    ) -> bool:
        """Whether it completes a quorum; any other vote changes nothing that this member may do."""
        votes = self._votes.setdefault((view, kind, head), {})
        votes[voter] = signature
        if len(votes) != self.epoch.quorum:
            return False
        ballots = tuple(Ballot(member=member, signature=votes[member]) for member in sorted(votes))
        self.add_certificate(
            Certificate(epoch=self.epoch.epoch, round=self.round, view=view, kind=kind, head=head, ballots=ballots),
            now_ms,
        )
        return True

    def add_certificate(self, certificate: Certificate, now_ms: int) -> None:
        """The certificate's signatures have been verified."""
        if certificate.kind == Kind.NOTARIZE:
            self.notarizations.setdefault(certificate.view, certificate)
            if certificate.view == self.view and self.notarized_ms is None:
                self.notarized_ms = now_ms
        elif certificate.head == ZERO_DIGEST:
            self.skips.setdefault(certificate.view, certificate)
        elif self.certificate is None:
            self.certificate = certificate
            self.certified_ms = now_ms

    def certificates(self) -> list[Certificate]:
        """What closes the round first: a resync's reply holds only so many."""
        closing = [] if self.certificate is None else [self.certificate]
        return [*closing, *self.notarizations.values(), *self.skips.values()]

    def knows(self, certificate: Certificate) -> bool:
        """Whether this certificate, or one that says the same, is here already."""
        if certificate.kind == Kind.NOTARIZE:
            return certificate.view in self.notarizations
        if certificate.head == ZERO_DIGEST:
            return certificate.view in self.skips
        return self.certificate is not None

    def view_max(self) -> View:
        """The highest view that messages are taken for: a quorum has been within reach of it, or this member has."""
        certified = self.certificate.view if self.certificate is not None else 0
        return max(self.view, certified, *self.notarizations, *self.skips) + params.VIEWS_AHEAD_MAX

    def close_vote(self, now_ms: int) -> Digest | None:
        """The CLOSE to sign now in the current view: a head, zero for skip, None for not yet."""
        if self.view in self.close_signed:
            return None
        is_late = self.started_ms is not None and now_ms >= self.deadline_ms
        if self.view in self.notarizations and not is_late:
            return self.notarizations[self.view].head
        return ZERO_DIGEST if is_late else None

    def sign_close(self) -> None:
        """That vote is on its way."""
        self.close_signed.add(self.view)

    def advance(self, now_ms: int) -> bool:
        """Enters the next view if the rules allow it."""
        if self.certificate is not None or self.started_ms is None:
            return False
        is_stuck = self.notarized_ms is not None and now_ms >= self.notarized_ms + self._close_timeout_ms()
        if self.view not in self.skips and not is_stuck:
            return False
        # a member that leaves a view without having signed its CLOSE never signs it later
        self.close_signed.add(self.view)
        self.view += 1
        self.deadline_ms = now_ms + self._timer_ms(self.view)
        self.notarized_ms = now_ms if self.view in self.notarizations else None
        return True

    def justification(self, view: View) -> tuple[Certificate | None, tuple[Certificate, ...]] | None:
        """What the leader of `view` shows: the latest notarization before it and the skip certificates after that,
        or None while something is missing."""
        skips: list[Certificate] = []
        for earlier in range(view - 1, -1, -1):
            if earlier in self.notarizations:
                return self.notarizations[earlier], tuple(reversed(skips))
            if earlier not in self.skips:
                return None
            if len(skips) == params.VIEW_COUNT_MAX:
                return None
            skips.append(self.skips[earlier])
        return None, tuple(reversed(skips))

    def deadlines_ms(self) -> list[int]:
        times = [self.deadline_ms] if self.started_ms is not None else []
        if self.notarized_ms is not None:
            times.append(self.notarized_ms + self._close_timeout_ms())
        return times

    def next_level(self) -> int:
        """Once there is a certificate."""
        # certified before its own timer began, as at a member whose phases ended last: none could have been too short
        elapsed_ms = 0 if self.started_ms is None else self.certified_ms - self.started_ms
        assert self.certificate is not None
        return compute_level(self.level, view=self.certificate.view, elapsed_ms=elapsed_ms, timer_ms=self._timer_ms(0))

    def _timer_ms(self, view: View) -> int:
        return self.view_ms << min(self.level + view, params.VIEW_DOUBLINGS_MAX)

    def _close_timeout_ms(self) -> int:
        """Whatever the level: all members see a notarization at about the same time, and enter the next view so too."""
        return self.view_ms << min(self.view, params.VIEW_DOUBLINGS_MAX)


def compute_level(level: int, *, view: View, elapsed_ms: int, timer_ms: int) -> int:
    """The next round's, after one that closed in this view; elapsed_ms: from the start of view 0's timer, which was
    timer_ms, to the certificate."""
    if view > 0:
        level += view  # that view's timer worked
    elif elapsed_ms >= timer_ms:
        level += 1
    elif 4 * elapsed_ms <= timer_ms:
        # a quarter: half a timer is left even after it, so that the level does not go to and fro
        level -= 1
    return min(max(level, 0), params.VIEW_LEVEL_MAX)


def is_justified(*, view: View, head: Digest, notarization: Certificate | None, skips: tuple[Certificate, ...]) -> bool:
    """Whether these certificates (signatures verified elsewhere) let the leader of `view` propose `head`."""
    first_skipped = 0
    if notarization is not None:
        if notarization.kind != Kind.NOTARIZE or notarization.head != head or notarization.view >= view:
            return False
        first_skipped = notarization.view + 1
    return len(skips) == view - first_skipped and all(
        (skip.kind, skip.head, skip.view) == (Kind.CLOSE, ZERO_DIGEST, first_skipped + place)
        for place, skip in enumerate(skips)
    )
