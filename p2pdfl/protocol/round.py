"""One round, from the beacon to the certificate (DESIGN 3).  START HERE.

    assign    beacon[r] says who trains on what, who audits whom, who leads (`context`)
    train     effects: Train or Replay, Deal for beacon[r+2], Decrypt the share for beacon[r+1] (`contribution`)
    commit    one COMMIT per member: digest of the update, dealing, share; valid if both proofs verify (`commits`)
    reveal    the bytes under the committed digests
    propose   the view's leader names COMMITs, updates, evidence, and the head that follows (`proposal`)
    notarize  whoever holds all of it and computes the same head signs it (`proposal_pool`, `voting`)
    close     finalize or skip; a quorum of finalize is the certificate, and the round is over (`agreement`)

`OpenRound` has what one member knows of the open round.  `run.Run` owns it and opens the next one.  Nothing here
signs: what to send is returned as `Vote`s.
"""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from p2pdfl.base.types import (
    ZERO_DIGEST,
    Certificate,
    Close,
    Commit,
    CommitEntry,
    Digest,
    Envelope,
    MemberIndex,
    Notarize,
    Packet,
    Payload,
    Propose,
    View,
)
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.agreement import Agreement, is_certificate
from p2pdfl.protocol.commits import CommitPool, UpdatePool, check_commit
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.contribution import Contribution
from p2pdfl.protocol.epochs import Epochs
from p2pdfl.protocol.events import (
    Aggregated,
    CommitsChecked,
    Dealt,
    Decrypted,
    Effect,
    Notice,
    Resync,
    Resynced,
    Reveal,
    Trained,
    UpdateHeld,
    phase_notice,
)
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.proposal import justification
from p2pdfl.protocol.proposal_pool import ProposalPool
from p2pdfl.protocol.refusal import Ignore, Reject
from p2pdfl.protocol.resync import Requests
from p2pdfl.protocol.signing import Output
from p2pdfl.protocol.voting import Voting


class Diverged(Exception):
    """A quorum certified a state that this machine computes differently.  Going on would serve a wrong model."""


class Phase(Enum):
    COMMIT = "commit"
    REVEAL = "reveal"
    PROPOSE = "propose"


class OpenRound:
    def __init__(
        self,
        config: RunConfig,
        context: RoundContext,
        me: MemberIndex | None,
        *,
        evidence_pool: EvidencePool,
        epochs: Epochs,
        level: int,
        now_ms: int,
        is_behind: bool,
    ) -> None:
        """me: None for an observer, which follows and signs nothing.  epochs: read only.  level: `Agreement.level`.
        is_behind: as for `Contribution`."""
        self.context = context
        self.me = me
        self.phase = Phase.COMMIT
        self.packets: list[Packet] = []
        """Everything signed that was taken in this round, for resync."""
        self.was_followed = False
        """Whether it was certified by a resync, not by votes that came here: this member is behind."""

        self.agreement = Agreement(epoch=context.epoch, round=context.round, view_ms=config.task.view_ms, level=level)
        self.contribution = Contribution(config, context, me, now_ms, is_behind=is_behind)
        self.commits = CommitPool(context, config.task_id)
        self.updates = UpdatePool()
        self._requests = Requests(context.round)
        self.proposals = ProposalPool(
            config,
            context,
            commits=self.commits,
            updates=self.updates,
            evidence_pool=evidence_pool,
            requests=self._requests,
            epochs=epochs,
        )
        self._config = config
        self._evidence_pool = evidence_pool
        self._voting = Voting(
            context,
            me,
            agreement=self.agreement,
            commits=self.commits,
            updates=self.updates,
            proposals=self.proposals,
            overdue=frozenset(evidence_pool.pending_losers(context.round, context.banned)),
            latest_block=epochs.latest_block,
        )
        self.latest_block = epochs.latest_block

        self._was_late = False
        """Whether a phase ended by its deadline, with something missing."""
        self._deadline_ms = now_ms + config.task.commit_ms
        """Of the phase."""
        self._resync_ms = now_ms if is_behind else now_ms + config.task.resync_ms
        self._due_ms = 0
        """The first deadline after `progress` last ran: every one up to then has been acted on."""

    # --- train ---------------------------------------------------------------------------------------

    def is_to_begin(self, now_ms: int) -> bool:
        """Whether this member's own work should begin; never once the round is closed without it."""
        return self.contribution.is_due(now_ms) and self.agreement.certificate is None

    def begin(self) -> list[Effect]:
        return [self._notice("train"), *self.contribution.begin()]

    # --- what others say -----------------------------------------------------------------

    def check(self, payload: Commit | Propose | Notarize | Close, view: View, sender: MemberIndex) -> None:
        """Raises Reject."""
        match payload:
            # votes first, of which there are most
            case Notarize() | Close():
                if isinstance(payload, Notarize) and payload.head == ZERO_DIGEST:
                    raise Reject("notarize: no head")
            case Commit():
                check_commit(self.context, payload)
            case Propose():
                self.proposals.check(payload, view, sender)

    def check_view(self, view: View) -> None:
        # most are for the view that this member is in, and looking further is slow
        if view > self.agreement.view and view > self.agreement.view_max():
            raise Ignore("view far ahead")

    def needs(self, envelope: Envelope, payload: Payload, sender: MemberIndex) -> bool:
        """Whether the round cannot close here without this very message, however many its sender has signed."""
        if envelope.round != self.context.round:
            return False
        match payload:
            case Commit():
                return any(
                    CommitEntry(member=sender, body=envelope.body) in propose.contents.commits
                    for propose in self.proposals.by_head.values()
                )
            case Propose():
                certificates = [*self.agreement.notarizations.values()]
                if self.agreement.certificate is not None:
                    certificates.append(self.agreement.certificate)
                digest = head_digest(payload.head)
                return digest not in self.proposals.by_head and any(digest == found.head for found in certificates)
            case _:
                # votes reach others as certificates
                return False

    def take(
        self,
        packet: Packet,
        payload: Commit | Propose | Notarize | Close,
        sender: MemberIndex,
        now_ms: int,
        *,
        is_own: bool,
    ) -> bool:
        """Checked before.  is_own: this member signed it itself, which is more than that its key did.
        Returns whether anything follows now."""
        self.packets.append(packet)
        match payload:
            case Notarize() | Close():
                return self._on_vote(packet, payload, sender, now_ms)
            case Commit():
                return self._on_commit(packet, payload, sender, is_own=is_own)
            case Propose():
                self._on_propose(packet, payload, now_ms)
                return True

    def _on_commit(self, packet: Packet, commit: Commit, sender: MemberIndex, *, is_own: bool) -> bool:
        if is_own:
            self.updates.promise(self.commits.add_own(packet, commit, sender))
            return True
        self.commits.add(packet, commit, sender)
        # else only once the batch that is being verified is done
        return not self.commits.checking

    def _on_propose(self, packet: Packet, propose: Propose, now_ms: int) -> None:
        """What it proves is known from now on, whatever becomes of it."""
        for certificate in justification(propose):
            self.agreement.add_certificate(certificate, now_ms)
        for equivocation in propose.equivocations:
            self._evidence_pool.file_equivocation(equivocation)
        for verdict in propose.verdicts:
            self._evidence_pool.file_verdict(verdict)
        self.proposals.add(packet, propose)

    def _on_vote(self, packet: Packet, vote: Notarize | Close, sender: MemberIndex, now_ms: int) -> bool:
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
        if not is_certificate(certificate, self._config.domain, self._config.task_id, self.context.epoch):
            raise Reject("certificate: no quorum of signatures")
        self.agreement.add_certificate(certificate, now_ms)
        self.was_followed |= certificate == self.agreement.certificate

    # --- what effects come back with -----------------------------------------------------------------

    def on_done(
        self, event: Resynced | Trained | Dealt | Decrypted | CommitsChecked | UpdateHeld | Aggregated, now_ms: int
    ) -> list[MemberIndex]:
        """Returns the members at fault, as every member sees for itself: their COMMIT or their update is invalid."""
        match event:
            case Resynced():
                self.contribution.hasten(now_ms)
            case Trained():
                self.contribution.on_trained(event.update)
            case Dealt():
                self.contribution.on_dealt(event.dealing)
            case Decrypted():
                self.contribution.on_decrypted(event.share)
            case Aggregated():
                self.proposals.on_aggregated(event.updates, event.state)
            case CommitsChecked():
                return self._on_checked(event.checked, event.invalid)
            case UpdateHeld():
                return self._on_update(event)
            case _:
                assert_never(event)
        return []

    def _on_checked(self, checked: tuple[Digest, ...], invalid: frozenset[Digest]) -> list[MemberIndex]:
        valid, culprits = self.commits.on_checked(checked, invalid)
        for held in valid:
            self.updates.promise(held)
        return culprits

    def _on_update(self, event: UpdateHeld) -> list[MemberIndex]:
        author = self.context.epoch.indices.get(event.author)
        if author is None:
            return []
        counts = self.updates.on_update((author, event.update), is_valid=event.valid)
        return [author] if counts and not event.valid else []

    # --- what follows from what is known -----------------------------------------------------------------

    def progress(self, now_ms: int) -> list[Output]:
        """Everything this member can do now.  Call until it returns nothing: own votes are taken in between."""
        outputs: list[Output] = []
        outputs += self._commit(now_ms)
        outputs += self.commits.next_batch()
        outputs += self._want_updates()
        outputs += self._end_commit_phase(now_ms)
        outputs += self._end_reveal_phase(now_ms)
        outputs += self._change_view(now_ms)
        outputs += self._voting.propose(now_ms)
        outputs += self._voting.notarize()
        outputs += self._voting.close(now_ms)
        outputs += self._resync(now_ms)
        self._due_ms = self._next_due_ms(now_ms)
        return outputs

    def _commit(self, now_ms: int) -> list[Output]:
        vote = self.contribution.commit(now_ms)
        return [] if vote is None else [vote, self._notice("commit")]

    def _want_updates(self, *, fetch: bool = False) -> list[Effect]:
        addresses = self.context.epoch.addresses
        wanted = self.updates.awaited if fetch else self.updates.take_unwanted()
        return [
            want for member, update in wanted for want in self._requests.update(addresses[member], update, fetch=fetch)
        ]

    def _end_commit_phase(self, now_ms: int) -> list[Effect]:
        if self.phase is not Phase.COMMIT:
            return []
        committed = self.commits.members
        if len(committed) < self.context.epoch.quorum:
            return []
        is_missing = bool(self.context.present - committed - {member for member, _ in self.commits.invalid})
        if is_missing and now_ms < self._deadline_ms:
            return []
        self.phase = Phase.REVEAL
        self._was_late |= is_missing
        self._deadline_ms = now_ms + self._config.task.reveal_ms
        effects: list[Effect] = [self._notice("reveal")]
        own = self.commits.update_of(self.me)
        if own != ZERO_DIGEST:
            effects.append(Reveal(round=self.context.round, update=own))
        return effects

    def _end_reveal_phase(self, now_ms: int) -> list[Effect]:
        if self.phase is not Phase.REVEAL:
            return []
        is_missing = self.updates.is_waiting(self.context.undelivered)
        if is_missing and now_ms < self._deadline_ms:
            return []
        self.phase = Phase.PROPOSE
        self._was_late |= is_missing
        self._voting.start(now_ms + (self._config.task.grace_ms if self._was_late else 0))
        return [self._notice("propose")]

    def is_waiting_for_updates(self) -> bool:
        """Whether nothing follows from one update more."""
        if self.proposals.by_head or self.phase is Phase.PROPOSE:
            return False
        return self.phase is Phase.COMMIT or self.updates.is_waiting(self.context.undelivered)

    def _change_view(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        while self.agreement.advance(now_ms):
            effects.append(self._notice("propose"))
        return effects

    def decided(self) -> tuple[Propose, Certificate] | list[Effect]:
        """The certified proposal once all that it names is here; else what to do about what is missing."""
        certificate = self.agreement.certificate
        if certificate is None:
            return []
        propose = self.proposals.by_head.get(certificate.head)
        if propose is None:
            return [*self._requests.packets("head", certificate.head)]
        missing = self.proposals.missing_for(propose)
        if missing is not None:
            return missing
        if not self.proposals.is_sound(propose):
            state = self.proposals.states.get(propose.contents.updates)
            raise Diverged(
                f"round {self.context.round}: a quorum certified state {propose.head.state.hex()[:16]}, this machine "
                + (f"computes {state.hex()[:16]}" if state else "finds a COMMIT or an update that it names invalid")
            )
        return propose, certificate

    # --- time -----------------------------------------------------------------

    def _resync(self, now_ms: int) -> list[Effect]:
        if now_ms < self._resync_ms:
            return []
        self._resync_ms = now_ms + self._config.task.resync_ms
        self._requests.forget()
        self.updates.want_all()
        wanted = [] if self.phase is Phase.COMMIT else self._want_updates(fetch=True)
        return [Resync(round=self.context.round), *wanted]

    def hurry(self, resync_ms: int) -> None:
        """To ask soon instead of at the next resync."""
        if resync_ms < self._resync_ms:
            self._resync_ms = resync_ms
            self._due_ms = min(self._due_ms, resync_ms)

    def is_due(self, now_ms: int) -> bool:
        """Whether a deadline has passed since `progress` last ran."""
        return now_ms >= self._due_ms

    def next_deadline_ms(self, now_ms: int) -> int:
        """The next time at which a Tick may change something; now if that is overdue, as after a refused message."""
        return max(now_ms, self._due_ms)

    def _next_due_ms(self, now_ms: int) -> int:
        times = [self._resync_ms, self._deadline_ms, self._voting.start_ms, *self.contribution.deadlines_ms()]
        times += self.agreement.deadlines_ms()
        return min([time for time in times if time > now_ms])

    def _notice(self, phase: str) -> Notice:
        return phase_notice(self.context.round, self.agreement.view, phase)
