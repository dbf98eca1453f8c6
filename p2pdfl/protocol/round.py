"""One round, from the beacon to the certificate (DESIGN 3).  START HERE.

    assign    beacon[r] says who trains on what, who audits whom, who leads
    train     effects: Train or Replay, Deal for beacon[r+2], Decrypt the share for beacon[r+1]
    commit    one COMMIT per member: digest of the update, dealing, share; valid if both proofs verify
    reveal    the bytes under the committed digests
    propose   the view's leader names COMMITs, updates, evidence, and the head that follows
    notarize  whoever holds all of it and computes the same head signs it
    close     finalize or skip; a quorum of finalize is the certificate, and the round is over

`OpenRound` holds what one member knows of the open round.  `run.Run` owns it, opens the next one, and keeps what
outlives a round: epochs, bans, accusations.  Nothing here signs: what to send is returned as `Vote`s and `Run` signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from p2pdfl.base import params
from p2pdfl.base.codec import digest_of
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Address,
    Certificate,
    Close,
    Commit,
    CommitEntry,
    Contents,
    Dealing,
    Digest,
    EquivocationProof,
    Head,
    Kind,
    MemberIndex,
    Notarize,
    Packet,
    Payload,
    Propose,
    Round,
    Share,
    UpdateEntry,
    VerdictProof,
    View,
)
from p2pdfl.crypto.envelope import head_digest, list_hash
from p2pdfl.protocol.agreement import Agreement, is_certificate, is_justified
from p2pdfl.protocol.assignment import Assignment, batch_seed
from p2pdfl.protocol.beacon import FixedDealings, dealing_context
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import (
    Aggregate,
    CheckCommits,
    Deal,
    DealingCheck,
    Decrypt,
    Effect,
    KeepNotarized,
    Notice,
    ReadChain,
    Resync,
    Reveal,
    Train,
    WantUpdate,
)
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Ignore, Reject


class Diverged(Exception):
    """A quorum certified a state that this machine computes differently.  Going on would serve a wrong model."""


class Phase(Enum):
    COMMIT = "commit"
    REVEAL = "reveal"
    PROPOSE = "propose"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What is fixed when a round opens; the same at every member."""

    round: Round
    epoch: EpochMembers
    parent: Digest
    parent_state: Digest
    chain_block: Digest
    beacon: Digest
    fixed: FixedDealings | None
    """None in round 0."""
    dealt_to: EpochMembers
    """Who will hold the shares of this round's dealings."""
    assignment: Assignment
    is_training_round: bool
    banned: frozenset[Address]
    present: frozenset[MemberIndex]
    """Members whose COMMIT the last head names."""
    undelivered: frozenset[MemberIndex]
    """Members whose last committed update was not in the head: the reveal phase does not wait for them."""
    next_members: Digest
    """List hash of the next epoch in the last round of an epoch that has one, else zero."""
    chooses_next_members: bool
    """Last-but-one round of an epoch that has a successor: the head names the next list."""

    @property
    def banned_hash(self) -> Digest:
        """`Contents.banned`; nobody banned is the hash of the empty list."""
        return list_hash(sorted(self.banned))

    def check_of(self, task: Digest, member: MemberIndex, body: Digest, commit: Commit) -> DealingCheck:
        """What is to be verified of a COMMIT that passed `OpenRound.check_commit`."""
        return DealingCheck(
            body=body,
            commit=commit,
            dealing_context=dealing_context(task, self.round, self.epoch.addresses[member], self.dealt_to),
            share_context=self.fixed.share_context(member) if self.fixed else None,
            holder_key=self.epoch.keys[member],
            summed=self.fixed.summed[member] if self.fixed else None,
        )


@dataclass(frozen=True, slots=True)
class Vote:
    """To be signed by `Run` and sent."""

    kind: Kind
    view: View
    payload: Payload


@dataclass(slots=True)
class HeldCommit:
    member: MemberIndex
    commit: Commit
    packet: Packet
    promised: UpdateKey | None
    """The update that counts if its bytes come: committed by a trainer of this round."""


CommitKey = tuple[MemberIndex, Digest]
"""Signer and body.  ATTACK: whoever signs a copy of another's payload has a COMMIT with the same body."""

UpdateKey = tuple[MemberIndex, Digest]
"""Author and digest.  ATTACK: another may commit the same digest, and under its header the bytes are invalid."""

Output = Effect | Vote


@dataclass(slots=True)
class OpenRound:
    context: RoundContext
    setup: RunConfig
    me: MemberIndex | None
    """None: an observer, which follows and signs nothing."""
    evidence_pool: EvidencePool
    next_list_hash: Callable[[Contents, Digest], Digest | None]
    """(contents, chain block) -> hash of the next epoch's list; None while that block is unknown here."""
    latest_block: Callable[[], Digest]
    """The newest confirmed chain block known here, at or after the parent head's."""
    level: int = 0
    """`Agreement.level`."""
    agreement: Agreement = field(init=False)
    phase: Phase = Phase.COMMIT
    was_late: bool = False
    """Whether a phase ended by its deadline, with something missing."""

    dealing: Dealing | None = None
    share: Share | None = None
    update: Digest | None = None
    is_committed: bool = False

    commits: dict[CommitKey, HeldCommit] = field(default_factory=dict)
    """Valid COMMITs.  An equivocator may have several."""
    invalid: set[CommitKey] = field(default_factory=set)
    unchecked: dict[CommitKey, HeldCommit] = field(default_factory=dict)
    checking: dict[Digest, HeldCommit] = field(default_factory=dict)
    """The batch that is being verified, by body."""
    held_updates: set[UpdateKey] = field(default_factory=set)
    bad_updates: set[UpdateKey] = field(default_factory=set)
    committed: set[MemberIndex] = field(default_factory=set)
    """Whose COMMIT is among `commits`."""
    awaited: dict[UpdateKey, None] = field(default_factory=dict)
    """Promised, and neither held nor bad yet; in the order of the COMMITs."""
    unwanted: list[UpdateKey] = field(default_factory=list)
    """Those of the awaited that have not been asked for since the last resync."""
    states: dict[tuple[UpdateEntry, ...], Digest] = field(default_factory=dict)
    aggregating: set[tuple[UpdateEntry, ...]] = field(default_factory=set)

    proposals: dict[View, dict[Digest, Propose]] = field(default_factory=dict)
    proposal_packets: dict[Digest, list[Packet]] = field(default_factory=dict)
    """By head."""
    known_heads: dict[Digest, Propose] = field(default_factory=dict)
    proposed: set[View] = field(default_factory=set)
    refused: set[tuple[View, Digest]] = field(default_factory=set)
    required: tuple[frozenset[MemberIndex], frozenset[UpdateKey]] | None = None
    """Members and updates that this member held at its own deadline; a fresh proposal must name them."""

    overdue: frozenset[Address] = frozenset()
    """Who was proven guilty before the round opened: a fresh proposal must ban them."""
    asked: set[tuple[object, ...]] = field(default_factory=set)
    """What has been asked for since the last resync."""

    packets: list[Packet] = field(default_factory=list)
    """Everything signed that was taken in this round, for resync."""

    is_begun: bool = False
    begin_ms: int = 0
    train_deadline_ms: int = 0
    deadline_ms: int = 0
    propose_ms: int = 0
    resync_ms: int = 0
    due_ms: int = 0
    """The first deadline after `progress` last ran: every one up to then has been acted on."""

    def __post_init__(self) -> None:
        self.agreement = Agreement(
            epoch=self.context.epoch, round=self.context.round, view_ms=self.setup.task.view_ms, level=self.level
        )

    # --- open: assign, train ---------------------------------------------------------------------------------------

    def open(self, now_ms: int, *, is_followed: bool) -> None:
        """is_followed: the others closed the round before this one without this member.  So they may be further still,
        and its work may come too late: it begins once somebody who is asked does not know that this round is closed."""
        task, context = self.setup.task, self.context
        self.overdue = frozenset(self.evidence_pool.pending_losers(context.round, context.banned))
        self.train_deadline_ms = now_ms + task.commit_ms * 3 // 4
        self.deadline_ms = now_ms + task.commit_ms
        self.resync_ms = now_ms if is_followed else now_ms + task.resync_ms
        self.begin_ms = now_ms + task.resync_ms if is_followed else now_ms

    def is_due(self, now_ms: int) -> bool:
        """Whether this member's own work should begin; never once the round is closed without it."""
        return not self.is_begun and now_ms >= self.begin_ms and self.agreement.certificate is None

    def begin(self) -> list[Output]:
        self.is_begun = True
        context = self.context
        outputs: list[Output] = [self._notice("train")]
        if self.me is None:
            return outputs
        address = self._address(self.me)
        outputs.append(
            Deal(
                round=context.round,
                context=dealing_context(self.setup.task_id, context.round, address, context.dealt_to),
                keys=context.dealt_to.keys,
                threshold=context.dealt_to.threshold,
            )
        )
        if context.fixed is not None:
            outputs.append(
                Decrypt(
                    round=context.round,
                    context=context.fixed.share_context(self.me),
                    summed=context.fixed.summed[self.me],
                )
            )
        if self._is_trainer(self.me):
            outputs.append(
                Train(
                    round=context.round,
                    parent_state=context.parent_state,
                    seed=batch_seed(context.beacon, self.setup.task_id, context.round, address),
                )
            )
        return outputs

    # --- commit -----------------------------------------------------------------

    def check_commit(self, commit: Commit) -> None:
        """What can be checked without cryptography.  Raises Reject."""
        if commit.parent != self.context.parent:
            raise Reject("commit: other parent")
        if (commit.share is None) != (self.context.fixed is None):
            raise Reject("commit: share missing or unasked for")

    def on_commit(self, packet: Packet, commit: Commit, sender: MemberIndex, *, is_own: bool) -> bool:
        """is_own: this member signed it itself, which is more than that its key did.
        Returns whether anything follows before the batch that is being verified is done."""
        promised = None
        if self._is_trainer(sender) and commit.update != ZERO_DIGEST:
            promised = (sender, commit.update)
        held = HeldCommit(sender, commit, packet, promised)
        if is_own:
            self._take_commit((sender, packet.envelope.body), held)
            return True
        self.unchecked[sender, packet.envelope.body] = held
        return not self.checking

    def _take_commit(self, key: CommitKey, held: HeldCommit) -> None:
        self.commits[key] = held
        self.committed.add(held.member)
        promised = held.promised
        if promised is None or promised in self.awaited or self._has_come(promised):
            return
        self.awaited[promised] = None
        self.unwanted.append(promised)

    def on_checked(self, checked: tuple[Digest, ...], invalid: frozenset[Digest]) -> list[MemberIndex]:
        """Returns the members whose COMMIT proved invalid: an objective fault."""
        culprits: list[MemberIndex] = []
        for body in checked:
            held = self.checking.pop(body)
            if body in invalid:
                self.invalid.add((held.member, body))
                culprits.append(held.member)
            else:
                self._take_commit((held.member, body), held)
        return culprits

    # --- reveal -----------------------------------------------------------------

    def on_update(self, author: MemberIndex, update: Digest, *, valid: bool) -> bool:
        """Whether it is one that counts: committed by a trainer of this round."""
        key = (author, update)
        if key not in self.awaited and not self._has_come(key):
            return False
        self.awaited.pop(key, None)
        (self.held_updates if valid else self.bad_updates).add(key)
        return True

    def _has_come(self, key: UpdateKey) -> bool:
        return key in self.held_updates or key in self.bad_updates

    # --- propose, notarize, close -----------------------------------------------------------------

    def check_view(self, view: View) -> None:
        # most are for the view that this member is in, and looking further is slow
        if view > self.agreement.view and view > self.agreement.view_max():
            raise Ignore("view far ahead")

    def needs(self, sender: MemberIndex, body: Digest, payload: Payload) -> bool:
        """Whether the round cannot close here without this very message, however many its sender has signed."""
        match payload:
            case Commit():
                return any(
                    CommitEntry(member=sender, body=body) in propose.contents.commits
                    for propose in self.known_heads.values()
                )
            case Propose():
                certificates = [*self.agreement.notarizations.values()]
                if self.agreement.certificate is not None:
                    certificates.append(self.agreement.certificate)
                digest = head_digest(payload.head)
                return digest not in self.known_heads and any(digest == found.head for found in certificates)
            case _:
                # votes reach others as certificates
                return False

    def on_propose(self, packet: Packet, propose: Propose, now_ms: int) -> None:
        """Checked before.  What it proves is known from now on, whatever becomes of it."""
        for certificate in _justification(propose):
            self.agreement.add_certificate(certificate, now_ms)
        for equivocation in propose.equivocations:
            self.evidence_pool.file_equivocation(equivocation)
        for verdict in propose.verdicts:
            self.evidence_pool.file_verdict(verdict)
        digest = head_digest(propose.head)
        self.proposals.setdefault(packet.envelope.view, {})[digest] = propose
        self.proposal_packets.setdefault(digest, []).append(packet)
        self.known_heads.setdefault(digest, propose)

    def check_vote(self, vote: Notarize | Close) -> None:
        """Raises Reject."""
        if isinstance(vote, Notarize) and vote.head == ZERO_DIGEST:
            raise Reject("notarize: no head")

    def on_vote(self, packet: Packet, vote: Notarize | Close, sender: MemberIndex, now_ms: int) -> bool:
        """Returns whether anything follows: it completes a quorum."""
        envelope = packet.envelope
        return self.agreement.add_vote(
            kind=envelope.kind,
            view=envelope.view,
            head=vote.head,
            voter=sender,
            signature=packet.signature,
            now_ms=now_ms,
        )

    def on_certificate(self, certificate: Certificate, now_ms: int) -> None:
        if self.agreement.knows(certificate):
            raise Ignore("seen before")
        if not is_certificate(certificate, self.setup.domain, self.setup.task_id, self.context.epoch):
            raise Reject("certificate: no quorum of signatures")
        self.agreement.add_certificate(certificate, now_ms)

    def on_aggregated(self, updates: tuple[UpdateEntry, ...], state: Digest) -> None:
        self.aggregating.discard(updates)
        self.states[updates] = state

    # --- what follows from what is known -----------------------------------------------------------------

    def progress(self, now_ms: int) -> list[Output]:
        """Everything this member can do now.  Call until it returns nothing: own votes are taken in between."""
        outputs: list[Output] = []
        outputs += self._commit(now_ms)
        outputs += self._check_commits()
        if self.unwanted:
            outputs += [want for key in self.unwanted if key in self.awaited for want in self._want(key)]
            self.unwanted.clear()
        outputs += self._end_phases(now_ms)
        outputs += self._change_view(now_ms)
        outputs += self._propose(now_ms)
        outputs += self._notarize()
        outputs += self._close_view(now_ms)
        outputs += self._resync(now_ms)
        self.due_ms = self._next_due_ms(now_ms)
        return outputs

    def hurry(self, resync_ms: int) -> None:
        """To ask soon instead of at the next resync."""
        if resync_ms < self.resync_ms:
            self.resync_ms = resync_ms
            self.due_ms = min(self.due_ms, resync_ms)

    def _commit(self, now_ms: int) -> list[Output]:
        if self.me is None or self.is_committed or self.dealing is None:
            return []
        if self.context.fixed is not None and self.share is None:
            return []
        if self._is_trainer(self.me) and self.update is None and now_ms < self.train_deadline_ms:
            return []
        self.is_committed = True
        commit = Commit(
            parent=self.context.parent, update=self.update or ZERO_DIGEST, dealing=self.dealing, share=self.share
        )
        return [Vote(Kind.COMMIT, 0, commit), self._notice("commit")]

    def _check_commits(self) -> list[Output]:
        """One batch at a time, with each body once: what arrives meanwhile makes the next one."""
        if self.checking or not self.unchecked:
            return []
        for (member, body), held in list(self.unchecked.items()):
            if body not in self.checking:
                self.checking[body] = held
                del self.unchecked[member, body]
        context = self.context
        checks = tuple(
            context.check_of(self.setup.task_id, held.member, body, held.commit) for body, held in self.checking.items()
        )
        return [
            CheckCommits(
                round=context.round,
                checks=checks,
                keys=context.dealt_to.keys,
                threshold=context.dealt_to.threshold,
            )
        ]

    def _end_phases(self, now_ms: int) -> list[Output]:
        if self.phase is Phase.PROPOSE:
            return []
        outputs: list[Output] = []
        task = self.setup.task
        committed = self.committed
        if self.phase is Phase.COMMIT:
            is_late = now_ms >= self.deadline_ms
            if len(committed) < self.context.epoch.quorum:
                return []
            missing = self.context.present - committed - {member for member, _ in self.invalid}
            if missing and not is_late:
                return []
            self.phase = Phase.REVEAL
            self.was_late |= bool(missing)
            self.deadline_ms = now_ms + task.reveal_ms
            outputs.append(self._notice("reveal"))
            own = next((held.commit.update for held in self.commits.values() if held.member == self.me), ZERO_DIGEST)
            if own != ZERO_DIGEST:
                outputs.append(Reveal(round=self.context.round, update=own))
        if self.phase is Phase.REVEAL:
            is_late = now_ms >= self.deadline_ms
            is_waiting = self._is_waiting()
            if is_waiting and not is_late:
                return outputs
            self.phase = Phase.PROPOSE
            self.was_late |= is_waiting
            self.required = (frozenset(committed), frozenset(self.held_updates))
            self.propose_ms = now_ms + (task.grace_ms if self.was_late else 0)
            self.agreement.start(self.propose_ms)
            outputs.append(self._notice("propose"))
        return outputs

    def _is_waiting(self) -> bool:
        return any(member not in self.context.undelivered for member, _ in self.awaited)

    def is_waiting_for_updates(self) -> bool:
        """Whether nothing follows from one update more."""
        if self.known_heads or self.phase is Phase.PROPOSE:
            return False
        return self.phase is Phase.COMMIT or self._is_waiting()

    def _change_view(self, now_ms: int) -> list[Output]:
        outputs: list[Output] = []
        while self.agreement.advance(now_ms):
            outputs.append(self._notice("propose"))
        return outputs

    def _propose(self, now_ms: int) -> list[Output]:
        view = self.agreement.view
        if (
            self.me is None
            or self.phase is not Phase.PROPOSE
            or now_ms < self.propose_ms
            or view in self.proposed
            or self.context.assignment.leader(view) != self.me
        ):
            return []
        justification = self.agreement.justification(view)
        if justification is None:
            return []
        notarization, skips = justification
        if notarization is not None:
            earlier = self.known_heads.get(notarization.head)
            if earlier is None:
                return []
            self.proposed.add(view)
            return [Vote(Kind.PROPOSE, view, earlier.replace(notarization=notarization, skips=skips))]
        contents, equivocations, verdicts = self._contents()
        state = self.states.get(contents.updates)
        if state is None:
            return self._aggregate(contents.updates)
        # where the chain is out of reach, others may not be able to read this member's newest block
        is_newest = view < params.NEWEST_BLOCK_VIEWS
        head = self._head(contents, state, self.latest_block() if is_newest else self.context.chain_block)
        if head is None:
            return []
        self.proposed.add(view)
        return [
            Vote(
                Kind.PROPOSE,
                view,
                Propose(
                    contents=contents,
                    head=head,
                    notarization=None,
                    skips=skips,
                    equivocations=equivocations,
                    verdicts=verdicts,
                ),
            )
        ]

    def _notarize(self) -> list[Output]:
        view = self.agreement.view
        if self.me is None or view in self.agreement.notarize_signed:
            return []
        outputs: list[Output] = []
        for digest, propose in self.proposals.get(view, {}).items():
            if (view, digest) in self.refused:
                continue
            if propose.notarization is None and view < self.context.epoch.count and self._omits(propose):
                if self.required is not None:
                    self.refused.add((view, digest))
                continue
            missing = self._missing_for(propose)
            if missing is not None:
                outputs += missing
                continue
            if not self._is_sound(propose):
                self.refused.add((view, digest))
                continue
            self.agreement.notarize_signed.add(view)
            return [*outputs, Vote(Kind.NOTARIZE, view, Notarize(head=digest))]
        return outputs

    def _close_view(self, now_ms: int) -> list[Output]:
        if self.me is None or self.agreement.certificate is not None:
            return []
        view = self.agreement.view
        head = self.agreement.close_vote(now_ms)
        if head is None:
            return []
        outputs: list[Output] = []
        if head != ZERO_DIGEST:
            propose = self.known_heads.get(head)
            if propose is None or not self._is_held(propose):
                return []  # until it is here, or the timer runs out
            outputs.append(
                KeepNotarized(certificate=self.agreement.notarizations[view], packets=self.packets_of(propose))
            )
        self.agreement.close_signed.add(view)
        return [*outputs, Vote(Kind.CLOSE, view, Close(head=head)), self._notice("close")]

    def decided(self) -> tuple[Propose, Certificate] | list[Output]:
        """The certified proposal once all that it names is here; else what to do about what is missing."""
        certificate = self.agreement.certificate
        if certificate is None:
            return []
        propose = self.known_heads.get(certificate.head)
        if propose is None:
            return self._once(Resync(round=self.context.round), ("head", certificate.head))
        missing = self._missing_for(propose)
        if missing is not None:
            return missing
        if not self._is_sound(propose):
            state = self.states.get(propose.contents.updates)
            raise Diverged(
                f"round {self.context.round}: a quorum certified state {propose.head.state.hex()[:16]}, this machine "
                + (f"computes {state.hex()[:16]}" if state else "finds a COMMIT or an update that it names invalid")
            )
        return propose, certificate

    def _resync(self, now_ms: int) -> list[Output]:
        if now_ms < self.resync_ms:
            return []
        self.resync_ms = now_ms + self.setup.task.resync_ms
        self.asked.clear()
        self.unwanted = list(self.awaited)
        wanted = [] if self.phase is Phase.COMMIT else self.unwanted
        return [
            Resync(round=self.context.round),
            *(output for key in wanted for output in self._want(key, fetch=True)),
        ]

    def next_deadline_ms(self, now_ms: int) -> int:
        """The next time at which a Tick may change something; now if that is overdue, as after a refused message."""
        return max(now_ms, self.due_ms)

    def _next_due_ms(self, now_ms: int) -> int:
        times = [self.resync_ms, self.begin_ms, self.train_deadline_ms, self.deadline_ms, self.propose_ms]
        times += self.agreement.deadlines_ms()
        return min([time for time in times if time > now_ms])

    # --- parts -----------------------------------------------------------------

    def _contents(self) -> tuple[Contents, tuple[EquivocationProof, ...], tuple[VerdictProof, ...]]:
        """Everything held, as this member would close the round, with the proofs that back it."""
        chosen: dict[MemberIndex, HeldCommit] = {}
        for held in self.commits.values():
            chosen.setdefault(held.member, held)
        equivocations, verdicts = self.evidence_pool.pending(self.context.round, self.context.banned)
        contents = Contents(
            commits=tuple(
                CommitEntry(member=member, body=chosen[member].packet.envelope.body) for member in sorted(chosen)
            ),
            updates=tuple(
                UpdateEntry(member=key[0], update=key[1])
                for key in self._promised(chosen[member] for member in sorted(chosen))
                if key in self.held_updates
            ),
            evidence=tuple(proof.entry for proof in equivocations),
            verdicts=tuple(proof.entry for proof in verdicts),
            banned=self.context.banned_hash,
        )
        return contents, equivocations, verdicts

    def _promised(self, commits: Iterable[HeldCommit]) -> Iterator[UpdateKey]:
        """The updates that count if their bytes come."""
        return (held.promised for held in commits if held.promised is not None)

    def _promised_by(self, named: Iterable[CommitKey]) -> set[UpdateKey]:
        """By those of these COMMITs that are here."""
        return set(self._promised(held for key in named if (held := self.commits.get(key)) is not None))

    def check_proposal(self, propose: Propose, view: View, sender: MemberIndex) -> None:
        """What can be checked without what the proposal names.  Raises Reject."""
        head, contents, context = propose.head, propose.contents, self.context
        if context.assignment.leader(view) != sender:
            raise Reject("propose: not this view's leader")
        if (head.task, head.epoch, head.round, head.parent) != (
            self.setup.task_id,
            context.epoch.epoch,
            context.round,
            context.parent,
        ):
            raise Reject("propose: head of another round")
        if head.contents != digest_of(contents):
            raise Reject("propose: contents are not the head's")
        if contents.banned != context.banned_hash:
            raise Reject("propose: others are banned")
        named = [entry.member for entry in contents.commits]
        if len(named) < context.epoch.quorum:
            raise Reject("propose: fewer than a quorum of commits")
        if not is_strictly_ascending(named) or named[-1] >= context.epoch.count:
            raise Reject("propose: commits out of order")
        updates = [entry.member for entry in contents.updates]
        if not is_strictly_ascending(updates) or not set(updates) <= set(named):
            raise Reject("propose: updates out of order")
        if not is_justified(view=view, head=head_digest(head), notarization=propose.notarization, skips=propose.skips):
            raise Reject("propose: not justified")
        self.evidence_pool.check(propose, context.round, context.banned)
        for certificate in _justification(propose):
            if certificate.round != context.round or not is_certificate(
                certificate, self.setup.domain, self.setup.task_id, context.epoch
            ):
                raise Reject("propose: justification does not verify")

    def _omits(self, propose: Propose) -> bool:
        """Whether a fresh proposal leaves out what this member held at its deadline (before it: holds now)."""
        committed, updates = self.required or (
            frozenset(self.committed),
            frozenset(self.held_updates),
        )
        named = commit_keys(propose.contents)
        if not committed <= {member for member, _ in named}:
            return True
        if not self._promised_by(named) & updates <= update_keys(propose.contents).keys():
            return True
        return not self.overdue <= self.evidence_pool.bans(propose.contents).keys()

    def _missing_for(self, propose: Propose) -> list[Output] | None:
        """None once this member can tell whether the proposal's head follows from what it names; else what to ask for
        (each once per resync)."""
        contents, context = propose.contents, self.context
        named = commit_keys(contents)
        if not self.invalid.isdisjoint(named):
            return None
        if not named <= self.commits.keys():
            return self._once(Resync(round=context.round), ("commits", digest_of(contents)))
        updates = update_keys(contents)
        if not updates.keys() <= self._promised_by(named) or not self.bad_updates.isdisjoint(updates):
            return None
        lacking = [key for key in updates if key not in self.held_updates]
        if lacking:
            return [output for key in lacking for output in self._want(key, fetch=True)]
        if contents.updates not in self.states:
            return self._aggregate(contents.updates)
        block = propose.head.chain_block
        if context.chooses_next_members and self.next_list_hash(contents, block) is None:
            return self._once(ReadChain(block=block), ("chain", block))
        return None

    def _is_held(self, propose: Propose) -> bool:
        """Whether all that it names is here, and valid."""
        named, updates = commit_keys(propose.contents), update_keys(propose.contents)
        return named <= self.commits.keys() and self.held_updates.issuperset(updates)

    def packets_of(self, propose: Propose) -> tuple[Packet, ...]:
        """The COMMITs that it names, all here, and the PROPOSEs of its head."""
        named = (self.commits[entry.member, entry.body].packet for entry in propose.contents.commits)
        return (*named, *self.proposal_packets[head_digest(propose.head)])

    def _is_sound(self, propose: Propose) -> bool:
        """Whether this member computes the proposed head.  Call once nothing is missing for it."""
        contents = propose.contents
        return (
            self._is_held(propose)
            and self._promised_by(commit_keys(contents)).issuperset(update_keys(contents))
            and self._head(contents, self.states[contents.updates], propose.head.chain_block) == propose.head
        )

    def _head(self, contents: Contents, state: Digest, chain_block: Digest) -> Head | None:
        context = self.context
        next_members: Digest | None = context.next_members
        if context.chooses_next_members:
            next_members = self.next_list_hash(contents, chain_block)
        else:
            chain_block = context.chain_block
        if next_members is None:
            return None
        return Head(
            task=self.setup.task_id,
            epoch=context.epoch.epoch,
            round=context.round,
            parent=context.parent,
            contents=digest_of(contents),
            state=state,
            next_members=next_members,
            chain_block=chain_block,
        )

    def _aggregate(self, updates: tuple[UpdateEntry, ...]) -> list[Output]:
        if updates in self.aggregating:
            return []
        self.aggregating.add(updates)
        return [Aggregate(round=self.context.round, parent_state=self.context.parent_state, updates=updates)]

    def _want(self, key: UpdateKey, *, fetch: bool = False) -> list[Output]:
        member, update = key
        want = WantUpdate(round=self.context.round, author=self._address(member), update=update, fetch=fetch)
        return self._once(want, ("update", key, fetch))

    def _once(self, output: Output, key: tuple[object, ...]) -> list[Output]:
        if key in self.asked:
            return []
        self.asked.add(key)
        return [output]

    def _is_trainer(self, member: MemberIndex) -> bool:
        return member in self.context.assignment.trainers

    def _address(self, member: MemberIndex) -> Address:
        return self.context.epoch.addresses[member]

    def _notice(self, phase: str) -> Notice:
        return Notice(name="phase", fields={"round": self.context.round, "view": self.agreement.view, "phase": phase})


def commit_keys(contents: Contents) -> frozenset[CommitKey]:
    return frozenset([(entry.member, entry.body) for entry in contents.commits])


def update_keys(contents: Contents) -> dict[UpdateKey, None]:
    """In the order of the contents."""
    return {(entry.member, entry.update): None for entry in contents.updates}


def _justification(propose: Propose) -> tuple[Certificate, ...]:
    return propose.skips if propose.notarization is None else (propose.notarization, *propose.skips)


def is_strictly_ascending(items: Sequence[int]) -> bool:
    return all(low < high for low, high in pairwise(items))
