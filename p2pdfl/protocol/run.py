"""A member's whole run: rounds one after the other, and what outlives a round.

`Run.handle(event, now_ms)` is the only way in and returns the effects to perform.  What a packet or an event means is
for the part whose state it changes; here they are told apart, what the parts want signed is signed and taken like
anybody's, and rounds are closed and opened.

    intake   packets, each taken once             history        closed rounds, beacons
    round    the open round                       epochs         member lists, chain blocks
    court    accusations, judgements, bans        evidence_pool  who signed what, proven cases
    signing  own slots

Others see it by the read-only properties, and the open round by `view`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from p2pdfl.base.types import (
    Address,
    Certificate,
    Digest,
    Epoch,
    MemberIndex,
    Outcome,
    Packet,
    Propose,
    Round,
)
from p2pdfl.crypto.envelope import Signer, head_digest
from p2pdfl.protocol import closing
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.court import Court
from p2pdfl.protocol.epochs import Epochs
from p2pdfl.protocol.events import (
    CertificateReceived,
    ChainSeen,
    Effect,
    Event,
    Finished,
    Notice,
    PacketReceived,
    Replayed,
    Send,
    Tick,
    UpdateHeld,
    hex_of,
    notice,
)
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.history import ClosedRound, History
from p2pdfl.protocol.intake import Intake
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Ignore, Refusal
from p2pdfl.protocol.resync import NOTHING, ResyncReply, ResyncRequest, compute_reply, compute_request
from p2pdfl.protocol.round import OpenRound
from p2pdfl.protocol.signing import Output, Signing, Vote
from p2pdfl.protocol.start import Start
from p2pdfl.protocol.view import RoundView

LoadRound = Callable[[Round], tuple[tuple[Packet, ...], Certificate] | None]
"""A closed round from the store, for askers that are further behind than the history in memory."""


class Run:
    def __init__(self, config: RunConfig, signer: Signer, start: Start, signed: Iterable[Packet] | None = ()) -> None:
        """start: round 0, or what a checkpoint gives.  signed: every packet that this key signed before (the store's);
        their slots are never signed again.  None: the store is lost, so nothing is signed until an epoch whose list
        was chosen after this start (ADR 16)."""
        self.config = config
        self.signer = signer
        self.first_round = start.round
        self.is_finished = False
        self.refused: Counter[str] = Counter()
        """Refusals of messages that waited for their round; `handle` raises the others."""
        self.signing = Signing(config, signer, signed)
        self._history = History(
            closed=dict(start.history), beacons=dict(start.beacons), head=start.head, state=start.state
        )
        self._epochs = Epochs(config, self._history, start.epochs, start.chain)
        self.evidence_pool = EvidencePool(config, self._epochs.lists)
        self._court = Court(
            config,
            signer.address,
            epochs=self._epochs.lists,
            history=self._history,
            evidence_pool=self.evidence_pool,
            banned=start.banned,
        )
        self._intake = Intake(
            config,
            signer.address,
            epochs=self._epochs,
            history=self._history,
            signing=self.signing,
            evidence_pool=self.evidence_pool,
            court=self._court,
        )
        self._open: OpenRound
        """Set by `start`, which comes first."""

    # --- what others see -----------------------------------------------------------------

    @property
    def address(self) -> Address:
        return self.signer.address

    @property
    def round(self) -> Round:
        return self._open.context.round

    @property
    def epoch(self) -> EpochMembers:
        return self._open.context.epoch

    @property
    def me(self) -> MemberIndex | None:
        return self.epoch.indices.get(self.address)

    @property
    def is_muted(self) -> bool:
        """Whether it signs nothing, since it does not know what its key has signed (DESIGN 4)."""
        return self.signing.is_muted(self.round)

    @property
    def open_round(self) -> RoundView:
        return RoundView(self._open)

    @property
    def epochs(self) -> Mapping[Epoch, EpochMembers]:
        return MappingProxyType(self._epochs.lists)

    @property
    def closed(self) -> Mapping[Round, ClosedRound]:
        """The last ones."""
        return MappingProxyType(self._history.closed)

    @property
    def head(self) -> Digest:
        return self._history.head

    @property
    def banned(self) -> Mapping[Address, str]:
        """Address -> kind of evidence."""
        return MappingProxyType(self._court.banned)

    @property
    def replays(self) -> Mapping[tuple[Round, Address], Outcome]:
        """What this member has found of updates, by round and author."""
        return MappingProxyType(self._court.replays)

    # --- the door -----------------------------------------------------------------

    def start(self, now_ms: int) -> list[Effect]:
        # who takes up a run in the middle has seen no vote of the round before
        opened = self._open_round(self.first_round, now_ms, level=0, is_behind=self.first_round > 0)
        return [_members_notice(self.epoch), *opened, *self._settle(now_ms)]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Check everything, then change state; a Refusal leaves state as it was."""
        if self.is_finished:
            return []
        effects = self._take_event(event, now_ms)
        if self._intake.is_settled and self._is_one_of_many(event) and not self._open.is_due(now_ms):
            return effects
        return effects + self._settle(now_ms)

    def _is_one_of_many(self, event: Event) -> bool:
        """Whether it was taken and changes nothing that can be done, unless the intake says so: as most
        votes, of which only the one that completes a quorum does, and most updates."""
        match event:
            case PacketReceived():
                return True
            case UpdateHeld():
                return self._open.is_waiting_for_updates()
            case _:
                return False

    def next_deadline_ms(self, now_ms: int) -> int:
        return self._open.next_deadline_ms(now_ms)

    def resync_request(self) -> ResyncRequest:
        return compute_request(self.config.task_id, self.round, [*self._open.packets, *self._court.packets])

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        if request.task != self.config.task_id:
            return NOTHING
        if not self.is_finished and request.round >= self.round:
            if request.round > self.round:
                return NOTHING
            certificates = self._open.agreement.certificates()
            return compute_reply(request, [*self._open.packets, *self._court.packets], certificates)
        closed = self._history.closed.get(request.round)
        found = (closed.packets, closed.certificate) if closed else load(request.round)
        if found is None:
            return NOTHING
        packets, certificate = found
        return compute_reply(request, [*packets, *self._court.packets], (certificate,))

    # --- events -----------------------------------------------------------------

    def _take_event(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case PacketReceived():
                return self._sign_all(self._intake.receive(event.packet, now_ms), now_ms)
            case CertificateReceived():
                if event.certificate.round != self.round:
                    raise Ignore("certificate of another round")
                self._open.on_certificate(event.certificate, now_ms)
            case ChainSeen():
                self.signing.on_chain(event.number)
                self._epochs.on_chain(event)
            case Replayed():
                return self._sign_all(self._court.on_replayed(event), now_ms)
            case Tick():
                pass
            case _:
                if event.round == self.round:
                    return self._judge_all(self._open.on_done(event, now_ms), now_ms)
        return []

    def _judge_all(self, culprits: Iterable[MemberIndex], now_ms: int) -> list[Effect]:
        """Each before the next one is looked at."""
        return [
            effect for culprit in culprits for effect in self._sign_all(self._court.judge_objective(culprit), now_ms)
        ]

    # --- what follows -----------------------------------------------------------------

    def _settle(self, now_ms: int) -> list[Effect]:
        """Does all that can be done now: signs votes, takes them, closes the round, opens the next."""
        effects: list[Effect] = []
        while not self.is_finished:
            if self._open.is_to_begin(now_ms):
                effects += [*self._open.begin(), *self._court.audit()]
            outputs = self._open.progress(now_ms)
            if outputs:
                effects += self._sign_all(outputs, now_ms)
                continue
            decided = self._open.decided()
            if isinstance(decided, list):
                self._intake.settle()
                return effects + decided
            effects += self._close_round(*decided, now_ms)
        return effects

    def _sign_all(self, outputs: Iterable[Output], now_ms: int) -> list[Effect]:
        """The same, with what became of each vote in its place."""
        effects: list[Effect] = []
        for output in outputs:
            if isinstance(output, Vote):
                effects += self._sign(output, now_ms)
            else:
                effects.append(output)
        return effects

    def _sign(self, vote: Vote, now_ms: int) -> list[Effect]:
        sender = self._epochs.of_round(vote.round).indices.get(self.address)
        packet = None if sender is None else self.signing.sign(vote)
        if sender is None or packet is None:
            return []
        effects: list[Effect] = [Send(packet=packet)]
        try:
            effects += self._sign_all(self._intake.take(packet, sender, now_ms), now_ms)
        except Refusal as refusal:
            # a restart sends what it once signed, which may not fit what it knows now
            self.refused["own: " + refusal.reason] += 1
        return effects

    # --- open -----------------------------------------------------------------

    def _open_round(self, round: Round, now_ms: int, *, level: int, is_behind: bool) -> list[Effect]:
        context = self._epochs.context_of(round, self._court.banned)
        self._open = OpenRound(
            self.config,
            context,
            context.epoch.indices.get(self.address),
            evidence_pool=self.evidence_pool,
            epochs=self._epochs,
            level=level,
            now_ms=now_ms,
            is_behind=is_behind,
        )
        self._court.open_round(context)
        effects: list[Effect] = [notice("beacon", round=round, value=context.beacon.hex())]
        for packet, sender in self._intake.open_round(self._open):
            try:
                effects += self._sign_all(self._intake.take(packet, sender, now_ms), now_ms)
            except Refusal as refusal:
                self.refused[refusal.reason] += 1
        return effects

    # --- close -----------------------------------------------------------------

    def _close_round(self, propose: Propose, certificate: Certificate, now_ms: int) -> list[Effect]:
        now, context = self._open, self._open.context
        commits, packets = now.commits.named(propose.contents), now.proposals.packets_of(propose)
        closed = closing.record(context, propose, certificate, commits=commits, packets=packets)
        effects: list[Effect] = [closing.transcript(context, propose, closed, heard=self._court.take_heard())]
        self._history.append(closed, head_digest(propose.head), commits, context.fixed)
        effects += self._take_head(propose)
        effects += self._court.sentence(propose)
        if context.round == context.epoch.last_round:
            effects += self._close_epoch(propose, certificate)
        self._forget()
        if context.round == self.config.task.total_rounds - 1:
            self.is_finished = True
            return [*effects, Finished()]
        return effects + self._open_next(now_ms)

    def _open_next(self, now_ms: int) -> list[Effect]:
        """A round that was followed teaches nothing: when the others closed it cannot be told from here."""
        last, following = self._open, self.round + 1
        level = last.agreement.level if last.was_followed else last.agreement.next_level()
        effects = self._open_round(following, now_ms, level=level, is_behind=last.was_followed)
        if level == last.agreement.level:
            return effects
        view_ms = self.config.task.view_ms << level
        return [notice("timers", round=following, level=level, view_ms=view_ms), *effects]

    def _take_head(self, propose: Propose) -> list[Effect]:
        """What it says of the chain and of the next members."""
        block = propose.head.chain_block
        following = None
        if self._open.context.chooses_next_members:
            following = self._open.proposals.next_list(propose.contents, block)
            assert following is not None, "the head was computed from this list"
        self._epochs.close(block, following)
        if following is None:
            return []
        self.signing.on_list(following, self._epochs.snapshots[block].number)
        return [_members_notice(following)]

    def _close_epoch(self, propose: Propose, certificate: Certificate) -> list[Effect]:
        context, lists = self._open.context, self._epochs.lists
        following = lists.get(context.epoch.epoch + 1)
        return [
            *closing.anchor(context, propose, certificate, me=self.me, following=following),
            *closing.checkpoint(
                self.config,
                propose,
                epochs=lists,
                closed=self._history.closed,
                evidence_pool=self.evidence_pool,
                banned=self._court.banned,
            ),
        ]

    def _forget(self) -> None:
        """Keeps what an audit, its verdict and a resync of the last rounds can still ask about."""
        oldest = self.round - self.config.history_rounds
        self._history.forget_before(oldest)
        self._court.forget_before(oldest)
        self.signing.forget_before(oldest)
        self.evidence_pool.forget_before(oldest)


def _members_notice(epoch: EpochMembers) -> Notice:
    addresses = [hex_of(address) for address in epoch.addresses]
    return Notice(name="members", fields={"epoch": epoch.epoch, "addresses": addresses})
