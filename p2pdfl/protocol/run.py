"""A member's whole run: rounds one after the other, and what outlives a round.

`Run.handle(event, now_ms)` is the only way in and returns the effects to perform; `OpenRound` (round.py) has the
round itself.  Here are: opening a message, one slot one envelope, the next round and the next epoch, audits and
judgements, bans, anchors, resync.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, body_digest, decode_payload, encode, is_signed_payload
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Address,
    BlockNumber,
    Certificate,
    Close,
    Commit,
    Contents,
    Digest,
    Envelope,
    Epoch,
    Head,
    Judge,
    Kind,
    MemberIndex,
    Notarize,
    Outcome,
    Packet,
    Payload,
    Propose,
    Registration,
    Round,
    VerdictEntry,
    View,
)
from p2pdfl.crypto.envelope import BadSignature, head_digest, recover
from p2pdfl.protocol.assignment import Assignment, batch_seed, turn_ms
from p2pdfl.protocol.audit import accused_case, is_case, is_party, judge_view, judged_case
from p2pdfl.protocol.checkpoint import make_checkpoint
from p2pdfl.protocol.config import Setup
from p2pdfl.protocol.events import (
    Aggregated,
    CertificateReceived,
    ChainSeen,
    Closed,
    CommitsChecked,
    Dealt,
    Decrypted,
    Effect,
    Event,
    Finished,
    KeepCheckpoint,
    Notice,
    PacketReceived,
    Replay,
    Replayed,
    Resynced,
    Send,
    SubmitAnchor,
    SubmitEquivocation,
    SubmitVerdict,
    Tick,
    Trained,
    UpdateHeld,
)
from p2pdfl.protocol.evidence_pool import EVIDENCE_NAMES, EvidencePool
from p2pdfl.protocol.history import ClosedRound, committed_lately, compute_context, compute_next_epoch
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Ignore, Refusal, Reject
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, compute_reply, packet_id
from p2pdfl.protocol.round import HeldCommit, OpenRound, RoundContext, Vote
from p2pdfl.protocol.start import Start

OwnSlot = tuple[Round, View, Kind]

_JURY_KINDS = (Kind.ACCUSE, Kind.JUDGE)

LoadRound = Callable[[Round], tuple[tuple[Packet, ...], Certificate] | None]
"""A closed round from the store, for askers that are further behind than the history in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSnapshot:
    number: BlockNumber
    registrations: tuple[Registration, ...]


class Run:
    def __init__(self, setup: Setup, start: Start, signed: Iterable[Packet] | None = ()) -> None:
        """start: round 0, or what a checkpoint gives.  signed: every packet that this key signed before (the store's);
        their slots are never signed again.  None: the store is lost, so nothing is signed until an epoch whose list
        was chosen after this start (ADR 16)."""
        self.setup = setup
        self.epochs: dict[Epoch, EpochMembers] = dict(start.epochs)
        self.evidence_pool = EvidencePool(setup, self.epochs)
        self.banned: dict[Address, str] = dict(start.banned)
        """Address -> kind of evidence."""
        self.refused: Counter[str] = Counter()
        """Refusals of messages that waited for their round; `handle` raises the others."""
        self.is_finished = False
        self._signed: dict[OwnSlot, Packet] = {_own_slot(packet): packet for packet in signed or ()}
        self._signs_from: Round | None = None if signed is None else 0
        """None: muted (DESIGN 4), since what this key has signed is not known here."""
        self._unknown_until: BlockNumber | None = None
        """The newest block of the first look at the chain, or later, when an unknown envelope was shown.  A list chosen
        by a later one is of an epoch in which this key has signed nothing that is not known here."""
        self._chain: dict[Digest, ChainSnapshot] = {}
        self._on_chain(start.chain)
        self._chain_block = start.chain.block
        self._state = start.state
        self._head = start.head
        self._beacons: dict[Round, Digest] = dict(start.beacons)
        self._history: dict[Round, ClosedRound] = dict(start.history)
        self._undelivered: set[Address] = set()
        self._early: dict[Address, deque[Packet]] = {}
        self._jury_packets: dict[Round, list[Packet]] = {}
        self._jury_heard: list[Packet] = []
        """ACCUSEs and JUDGEs taken since the last round closed, whatever their round."""
        self._cases: dict[tuple[Round, Address], list[VerdictEntry]] = {}
        """(audited round, author) -> accusations that wait for this member's replay; the outcome is filled in."""
        self._replays: dict[tuple[Round, Address], Outcome] = {}
        self._now: OpenRound
        """Set by `start`, which comes first."""
        self._first_round = start.round
        self._followed = start.round > 0
        """Whether the open round was certified by a resync, not by votes that came here: this member is behind.  Who
        takes up a run in the middle has seen no vote of the round before."""
        self._is_settled = False
        """Whether nothing more can be done until a packet is taken that matters, another event, or a deadline."""
        self._history_rounds = setup.history_rounds
        self._level = 0
        """`Agreement.level` of the open round."""

    # --- the door -----------------------------------------------------------------

    def start(self, now_ms: int) -> list[Effect]:
        epoch = self.epochs[self.setup.task.epoch_of(self._first_round)]
        return [self._members_notice(epoch), *self._open_round(self._first_round, now_ms), *self._settle(now_ms)]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Check everything, then change state; a Refusal leaves state as it was."""
        if self.is_finished:
            return []
        effects = self._take_event(event, now_ms)
        if self._is_settled and self._is_one_of_many(event) and now_ms < self._now.due_ms:
            return effects
        return effects + self._settle(now_ms)

    def _is_one_of_many(self, event: Event) -> bool:
        """Whether it was taken and changes nothing that can be done, unless `_is_settled` has been unset: as most
        votes, of which only the one that completes a quorum does, and most updates."""
        match event:
            case PacketReceived():
                return True
            case UpdateHeld():
                return self._now.is_waiting_for_updates()
            case _:
                return False

    @property
    def round(self) -> Round:
        return self._now.context.round

    @property
    def epoch(self) -> EpochMembers:
        return self._now.context.epoch

    @property
    def me(self) -> MemberIndex | None:
        return self.epoch.indices.get(self.setup.address)

    @property
    def is_muted(self) -> bool:
        """Whether it signs nothing, since it does not know what its key has signed (DESIGN 4)."""
        return self._signs_from is None or self.round < self._signs_from

    def next_deadline_ms(self, now_ms: int) -> int:
        return self._now.next_deadline_ms(now_ms)

    def resync_request(self) -> ResyncRequest:
        packets = [*self._now.packets, *(packet for packets in self._jury_packets.values() for packet in packets)]
        return ResyncRequest(
            task=self.setup.task_id,
            round=self.round,
            have=tuple(packet_id(packet) for packet in packets[: params.RESYNC_HAVE_MAX]),
        )

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        jury = [packet for packets in self._jury_packets.values() for packet in packets]
        if request.task != self.setup.task_id:
            return ResyncReply(packets=(), certificates=())
        if not self.is_finished and request.round >= self.round:
            if request.round > self.round:
                return ResyncReply(packets=(), certificates=())
            agreement = self._now.agreement
            # what closes the round first: a reply holds only so many
            closing = [] if agreement.certificate is None else [agreement.certificate]
            certificates = [*closing, *agreement.notarizations.values(), *agreement.skips.values()]
            return compute_reply(request, [*self._now.packets, *jury], certificates)
        closed = self._history.get(request.round)
        found = (closed.packets, closed.certificate) if closed else load(request.round)
        if found is None:
            return ResyncReply(packets=(), certificates=())
        packets, certificate = found
        return compute_reply(request, [*packets, *jury], (certificate,))

    # --- events -----------------------------------------------------------------

    def _take_event(self, event: Event, now_ms: int) -> list[Effect]:
        now = self._now
        match event:
            case PacketReceived():
                return self._on_packet(event.packet, now_ms)
            case CertificateReceived():
                if event.certificate.round != self.round:
                    raise Ignore("certificate of another round")
                now.on_certificate(event.certificate, now_ms)
                self._followed |= event.certificate == now.agreement.certificate
            case Resynced():
                if event.round == self.round:
                    now.begin_ms = min(now.begin_ms, now_ms)
            case Trained():
                if event.round == self.round:
                    now.update = event.update
            case Dealt():
                if event.round == self.round:
                    now.dealing = event.dealing
            case Decrypted():
                if event.round == self.round:
                    now.share = event.share
            case CommitsChecked():
                if event.round == self.round:
                    culprits = now.on_checked(event.checked, event.invalid)
                    return [effect for culprit in culprits for effect in self._judge_objective(culprit, now_ms)]
            case UpdateHeld():
                author = self.epoch.indices.get(event.author)
                if event.round == self.round and author is not None:
                    counts = now.on_update(author, event.update, valid=event.valid)
                    if counts and not event.valid:
                        return self._judge_objective(author, now_ms)
            case Aggregated():
                if event.round == self.round:
                    now.on_aggregated(event.updates, event.state)
            case Replayed():
                return self._on_replayed(event, now_ms)
            case ChainSeen():
                if self._unknown_until is None:
                    self._unknown_until = event.number
                self._on_chain(event)
            case Tick():
                pass
            case _:
                assert_never(event)
        return []

    def _on_packet(self, packet: Packet, now_ms: int) -> list[Effect]:
        envelope, setup, open_round = packet.envelope, self.setup, self.round
        if envelope.task != setup.task_id:
            raise Reject("other task")
        if not is_signed_payload(packet):
            # ATTACK: else the signature would be remembered, and what it is for refused as seen before
            raise Reject("payload is malformed")
        members = self.epochs.get(envelope.epoch)
        if members is None:
            is_of_epoch = envelope.round < setup.task.total_rounds and (
                envelope.epoch == setup.task.epoch_of(envelope.round)
            )
        else:
            is_of_epoch = members.first_round <= envelope.round <= members.last_round
        if not is_of_epoch:
            raise Reject("epoch is not the round's")
        if envelope.round < open_round - self._history_rounds:
            raise Ignore("round long closed")
        if members is None:
            self._hurry(now_ms)
            raise Ignore("epoch not known yet")
        try:
            address = recover(setup.domain, envelope, packet.signature)
        except BadSignature:
            raise Reject("signature does not verify") from None
        sender = members.indices.get(address)
        if sender is None:
            raise Reject("signer is not a member")
        if envelope.round > open_round:
            if envelope.round > open_round + 1:
                self._hurry(now_ms)
            if not self._keep_early(packet, address):
                raise Ignore("round not open yet")
            return []
        return self._take(packet, sender, now_ms)

    def _keep_early(self, packet: Packet, address: Address) -> bool:
        """Messages of the next round wait for it, bounded per member."""
        if packet.envelope.round != self.round + 1:
            return False
        waiting = self._early.setdefault(address, deque())
        if any(other.envelope == packet.envelope for other in waiting):
            raise Ignore("seen before")
        if len(waiting) >= params.EARLY_MESSAGES_PER_MEMBER_MAX:
            return False
        if sum(len(other.payload) for other in waiting) + len(packet.payload) > params.PAYLOAD_BYTES_MAX:
            return False
        waiting.append(packet)
        return True

    def _take(self, packet: Packet, sender: MemberIndex, now_ms: int) -> list[Effect]:
        """A packet of this or a recent round, its signature verified."""
        envelope = packet.envelope
        self._check_slot(envelope)
        if self.epochs[envelope.epoch].addresses[sender] == self.setup.address:
            self._mute_if_unknown(packet)
        bodies = self.evidence_pool.ledger.bodies(envelope, sender)
        if envelope.body in bodies:
            raise Ignore("seen before")
        try:
            payload = _decode(packet)
            if len(bodies) > 1 and not (
                envelope.round == self.round and self._now.needs(sender, envelope.body, payload)
            ):
                raise Ignore("equivocation proven before")
            self._check(envelope, payload, sender)
        except Reject:
            if len(bodies) == 1:
                # whatever it says, and though nothing else comes of it: two bodies are proof
                return self._record(packet, sender)
            raise
        effects = self._record(packet, sender)
        if envelope.kind in _JURY_KINDS:
            effects += self._take_for_jury(packet, payload, sender, now_ms)
        elif envelope.round == self.round:
            self._take_in_round(packet, payload, sender, now_ms)
        return effects

    def _take_for_jury(self, packet: Packet, payload: Payload, sender: MemberIndex, now_ms: int) -> list[Effect]:
        self._is_settled = False
        if isinstance(payload, Accuse):
            effects = self._on_accuse(packet, payload, sender, now_ms)
        else:
            assert isinstance(payload, Judge)
            effects = self._on_judge(packet, payload, sender)
        self._jury_packets.setdefault(packet.envelope.round, []).append(packet)
        self._jury_heard.append(packet)
        return effects

    def _check_slot(self, envelope: Envelope) -> None:
        """Bounds the slots that a member has in a round.  What is only too far ahead must be welcome later."""
        match envelope.kind:
            case Kind.COMMIT | Kind.ACCUSE:
                if envelope.view != 0:
                    raise Reject("view is not zero")
            case Kind.JUDGE:
                if envelope.view % params.MEMBER_COUNT_MAX >= self.epochs[envelope.epoch].count or (
                    envelope.view >= 2 * params.MEMBER_COUNT_MAX
                ):
                    raise Reject("judge: no such case")
            case _:
                closed = self._history.get(envelope.round)
                if envelope.round == self.round:
                    self._now.check_view(envelope.view)
                elif closed is None or envelope.view > closed.certificate.view + params.VIEWS_AHEAD_MAX:
                    raise Ignore("view far ahead")

    def _check(self, envelope: Envelope, payload: Payload, sender: MemberIndex) -> None:
        """Raises Refusal for what is not worth taking."""
        if envelope.kind in _JURY_KINDS:
            if self.round > envelope.round + self.setup.task.verdict_rounds:
                raise Ignore("case has lapsed")
            if isinstance(payload, Accuse):
                self._check_accuse(envelope, payload, sender)
            else:
                assert isinstance(payload, Judge)
                self._check_judge(envelope, payload, sender)
        elif envelope.round == self.round:
            match payload:
                # votes first, of which there are most
                case Notarize() | Close():
                    self._now.check_vote(payload)
                case Commit():
                    self._now.check_commit(payload)
                case Propose():
                    self._now.check_proposal(payload, envelope.view, sender)
                case Accuse() | Judge():
                    raise AssertionError("for the jury")
                case _:
                    assert_never(payload)

    def _record(self, packet: Packet, sender: MemberIndex) -> list[Effect]:
        """Takes the slot."""
        proof = self.evidence_pool.ledger.record(packet, sender)
        if proof is None:
            return []
        self._is_settled = False
        self.evidence_pool.file_equivocation(proof)
        envelope = packet.envelope
        address = self.epochs[envelope.epoch].addresses[sender]
        return [_notice("equivocation", round=envelope.round, member=_hex(address), kind=envelope.kind)]

    def _take_in_round(self, packet: Packet, payload: Payload, sender: MemberIndex, now_ms: int) -> None:
        now = self._now
        match payload:
            case Notarize() | Close():
                matters = now.on_vote(packet, payload, sender, now_ms)
            case Commit():
                is_own = sender == self.me and self._signed.get(_own_slot(packet)) == packet
                matters = now.on_commit(packet, payload, sender, is_own=is_own)
            case Propose():
                now.on_propose(packet, payload, now_ms)
                matters = True
            case Accuse() | Judge():
                raise AssertionError("for the jury")
            case _:
                assert_never(payload)
        if matters:
            self._is_settled = False
        now.packets.append(packet)

    def _on_chain(self, event: ChainSeen) -> None:
        self._chain[event.block] = ChainSnapshot(number=event.number, registrations=event.registrations)
        if len(self._chain) > params.CHAIN_SNAPSHOTS_MAX:
            oldest = min(
                # not the block just read either: a head may name it, however old
                (block for block in self._chain if block not in (self._chain_block, event.block)),
                key=lambda block: self._chain[block].number,
            )
            del self._chain[oldest]

    # --- what follows -----------------------------------------------------------------

    def _settle(self, now_ms: int) -> list[Effect]:
        """Does all that can be done now: signs votes, takes them, closes the round, opens the next."""
        effects: list[Effect] = []
        while not self.is_finished:
            if self._now.is_due(now_ms):
                effects += self._begin()
            outputs = self._now.progress(now_ms)
            for output in outputs:
                if isinstance(output, Vote):
                    effects += self._sign(output, self.round, now_ms)
                else:
                    effects.append(output)
            if outputs:
                continue
            decided = self._now.decided()
            if isinstance(decided, list):
                self._is_settled = True
                return effects + [output for output in decided if not isinstance(output, Vote)]
            effects += self._close_round(*decided, now_ms)
        return effects

    def _sign(self, vote: Vote, round: Round, now_ms: int) -> list[Effect]:
        """One slot, one envelope, also across a crash: a slot signed before is sent again as it was signed then."""
        epoch = self.setup.task.epoch_of(round)
        sender = self.epochs[epoch].indices.get(self.setup.address)
        if sender is None or self._signs_from is None or round < self._signs_from:
            return []
        slot = (round, vote.view, vote.kind)
        packet = self._signed.get(slot)
        if packet is None:
            envelope = Envelope(
                task=self.setup.task_id,
                epoch=epoch,
                round=round,
                view=vote.view,
                kind=vote.kind,
                body=body_digest(vote.payload),
            )
            signature = self.setup.signer.sign(self.setup.domain, envelope)
            packet = Packet(envelope=envelope, signature=signature, payload=encode(vote.payload))
            self._signed[slot] = packet
        effects: list[Effect] = [Send(packet=packet)]
        try:
            effects += self._take(packet, sender, now_ms)
        except Refusal as refusal:
            # a restart sends what it once signed, which may not fit what it knows now
            self.refused["own: " + refusal.reason] += 1
        return effects

    def _mute_if_unknown(self, packet: Packet) -> None:
        """Others show an envelope of this member's that its store lacks: another process has the key, or the store
        was lost.  Signing on could be a second signature in a slot."""
        if self._signs_from is None or packet.envelope.round < self._signs_from:
            return
        signed = self._signed.get(_own_slot(packet))
        if signed is None or signed.envelope.body != packet.envelope.body:
            self._signs_from = None
            if self._unknown_until is not None:
                # else the block that it started from, which may be long past
                self._unknown_until = self._chain[self._latest_block()].number

    # --- rounds -----------------------------------------------------------------

    def _open_round(self, round: Round, now_ms: int) -> list[Effect]:
        setup = self.setup
        context = compute_context(
            task=setup.task,
            task_id=setup.task_id,
            round=round,
            epochs=self.epochs,
            closed=self._history,
            beacon=self._beacons[round],
            parent=self._head,
            parent_state=self._state,
            chain_block=self._chain_block,
            banned=frozenset(self.banned),
            undelivered=self._undelivered,
            sharing=setup.sharing,
        )
        epoch = context.epoch
        me = epoch.indices.get(setup.address)
        self._now = OpenRound(
            context=context,
            setup=setup,
            me=me,
            evidence_pool=self.evidence_pool,
            next_list_hash=self._next_list_hash,
            latest_block=self._latest_block,
            level=self._level,
        )
        effects: list[Effect] = [_notice("beacon", round=round, value=context.beacon.hex())]
        self._now.open(now_ms, is_followed=self._followed)
        self._followed = False
        early, self._early = self._early, {}
        for address, packets in early.items():
            for packet in packets:
                try:
                    if packet.envelope.round == round and address in epoch.indices:
                        effects += self._take(packet, epoch.indices[address], now_ms)
                except Refusal as refusal:
                    self.refused[refusal.reason] += 1
        return effects

    def _begin(self) -> list[Effect]:
        """The work of the open round that is this member's own: to train, to deal, to audit."""
        now = self._now
        effects = [output for output in now.begin() if not isinstance(output, Vote)]
        return effects + self._audit(now.context, now.me)

    def _close_round(self, propose: Propose, certificate: Certificate, now_ms: int) -> list[Effect]:
        now, context, contents = self._now, self._now.context, propose.contents
        named = [now.commits[entry.member, entry.body] for entry in contents.commits]
        packets = now.packets_of(propose)
        closed = ClosedRound(
            round=context.round,
            epoch=context.epoch,
            beacon=context.beacon,
            assignment=context.assignment,
            parent_state=context.parent_state,
            contents=contents,
            state=propose.head.state,
            certificate=certificate,
            dealings=tuple(held.commit.dealing for held in named),
            packets=packets,
        )
        self._history[context.round] = closed
        self._head = head_digest(propose.head)
        self._state = propose.head.state
        self._chain_block = propose.head.chain_block
        effects: list[Effect] = [
            Closed(
                round=context.round,
                view=certificate.view,
                head=propose.head,
                contents=contents,
                certificate=certificate,
                packets=(*packets, *self._jury_heard),
                members=context.epoch,
                beacon=context.beacon,
                banned=context.banned,
            )
        ]
        self._jury_heard.clear()
        self._note_undelivered(named, contents, context.epoch)
        if context.fixed is not None:
            self._beacons[context.round + 1] = context.fixed.recover(
                {held.member: held.commit.share for held in named if held.commit.share is not None}
            )
        if context.chooses_next_members:
            effects.append(self._install_next_epoch(contents))
        effects += self._punish(propose, context)
        if context.round == context.epoch.last_round:
            effects += self._anchor(propose, certificate, context)
            effects += self._checkpoint(propose.head)
        self._forget(context.round)
        if context.round == self.setup.task.total_rounds - 1:
            self.is_finished = True
            return [*effects, Finished()]
        effects += self._adapt_timers()
        return effects + self._open_round(context.round + 1, now_ms)

    def _adapt_timers(self) -> list[Effect]:
        """A round that was followed teaches nothing: when the others closed it cannot be told from here."""
        if self._followed or (level := self._now.agreement.next_level()) == self._level:
            return []
        self._level = level
        return [_notice("timers", round=self.round + 1, level=level, view_ms=self.setup.task.view_ms << level)]

    def _note_undelivered(self, named: Iterable[HeldCommit], contents: Contents, epoch: EpochMembers) -> None:
        revealed = {entry.member for entry in contents.updates}
        for held in named:
            address = epoch.addresses[held.member]
            if held.member in revealed:
                self._undelivered.discard(address)
            elif held.commit.update != ZERO_DIGEST:
                self._undelivered.add(address)

    def _forget(self, round: Round) -> None:
        """Keeps what an audit, its verdict and a resync of the last rounds can still ask about."""
        oldest = round - self._history_rounds
        rounds: list[dict[Round, object]] = [self._history, self._beacons, self._jury_packets]  # type: ignore[list-item]
        for kept in rounds:
            for old in [old for old in kept if old < oldest]:
                del kept[old]
        for case in [case for case in (*self._cases, *self._replays) if case[0] < oldest]:
            self._cases.pop(case, None)
            self._replays.pop(case, None)
        for slot in [slot for slot in self._signed if slot[0] < oldest]:
            del self._signed[slot]
        self.evidence_pool.forget_before(oldest)

    def _checkpoint(self, head: Head) -> list[Effect]:
        if head.epoch + 1 == self.setup.task.epoch_count:
            return []
        checkpoint = make_checkpoint(
            self.setup.task,
            head.epoch,
            epochs=self.epochs,
            closed=self._history,
            evidence_pool=self.evidence_pool,
            banned=frozenset(self.banned),
        )
        return [KeepCheckpoint(checkpoint=checkpoint, state=head.state)]

    def _hurry(self, now_ms: int) -> None:
        """Others are ahead: ask soon instead of at the next resync."""
        self._now.hurry(now_ms + params.HURRY_MS)

    # --- epochs -----------------------------------------------------------------

    def _latest_block(self) -> Digest:
        return max(self._chain, key=lambda block: self._chain[block].number)

    def _next_epoch(self, contents: Contents, block: Digest) -> EpochMembers | None:
        """None if that block is not known here or older than the parent head's."""
        snapshot = self._chain.get(block)
        if snapshot is None or snapshot.number < self._chain[self._chain_block].number:
            return None
        return compute_next_epoch(
            self.setup.task,
            self.epoch,
            snapshot.registrations,
            committed=committed_lately(self.round, self.epoch, contents, self._history),
            banned=self.banned.keys() | self.evidence_pool.bans(contents).keys(),
        )

    def _next_list_hash(self, contents: Contents, block: Digest) -> Digest | None:
        following = self._next_epoch(contents, block)
        return None if following is None else following.list_hash

    def _install_next_epoch(self, contents: Contents) -> Effect:
        epoch = self._next_epoch(contents, self._chain_block)
        assert epoch is not None, "the head was computed from this list"
        self.epochs[epoch.epoch] = epoch
        number = self._chain[self._chain_block].number
        if self._signs_from is None and self._unknown_until is not None and number > self._unknown_until:
            self._signs_from = epoch.first_round
        return self._members_notice(epoch)

    def _members_notice(self, epoch: EpochMembers) -> Notice:
        return Notice(
            name="members", fields={"epoch": epoch.epoch, "addresses": [_hex(address) for address in epoch.addresses]}
        )

    # --- audits -----------------------------------------------------------------

    def _audit(self, context: RoundContext, me: MemberIndex | None) -> list[Effect]:
        """This round's replay, if this member is an auditor."""
        target = None if me is None else context.assignment.audits.get(me)
        if target is None:
            return []
        return self._replay(context.round - params.AUDIT_LAG, context.epoch.addresses[target])

    def _replay(self, audited_round: Round, author: Address) -> list[Effect]:
        closed = self._history.get(audited_round)
        update = None if closed is None else closed.updates_by_address().get(author)
        if closed is None or update is None:
            return []
        return [
            Replay(
                audited_round=audited_round,
                parent_state=closed.parent_state,
                seed=batch_seed(closed.beacon, self.setup.task_id, audited_round, author),
                author=author,
                update=update,
            )
        ]

    def _on_replayed(self, event: Replayed, now_ms: int) -> list[Effect]:
        case = (event.audited_round, event.author)
        self._replays[case] = event.outcome
        effects: list[Effect] = []
        round = event.audited_round + params.AUDIT_LAG
        assignment = self._assignment(round)
        epoch = self.epochs.get(self.setup.task.epoch_of(round))
        me = None if epoch is None else epoch.indices.get(self.setup.address)
        if epoch is not None and me is not None and assignment is not None and assignment.audits.get(me) is not None:
            target = assignment.audits[me]
            if epoch.addresses[target] == event.author:
                effects.append(
                    _notice(
                        "audit",
                        round=round,
                        target=_hex(event.author),
                        audited_round=event.audited_round,
                        outcome=EVIDENCE_NAMES[event.outcome],
                    )
                )
                if event.outcome is Outcome.GUILTY:
                    accuse = Accuse(accused=target, audited_round=event.audited_round)
                    effects += self._sign(Vote(Kind.ACCUSE, 0, accuse), round, now_ms)
        for entry in self._cases.pop(case, []):
            effects += self._judge(entry.replace(outcome=int(event.outcome)), now_ms)
        return effects

    def _check_accuse(self, envelope: Envelope, accuse: Accuse, accuser: MemberIndex) -> None:
        if not is_case(accused_case(envelope, accuse, accuser), self._assignment(envelope.round)):
            raise Reject("accuse: not the assigned auditor")

    def _on_accuse(self, packet: Packet, accuse: Accuse, accuser: MemberIndex, now_ms: int) -> list[Effect]:
        envelope = packet.envelope
        epoch = self.epochs[envelope.epoch]
        effects: list[Effect] = [
            _notice(
                "accusation",
                round=envelope.round,
                accuser=_hex(epoch.addresses[accuser]),
                accused=_hex(epoch.addresses[accuse.accused]),
                audited_round=accuse.audited_round,
            )
        ]
        entry = accused_case(envelope, accuse, accuser)
        me = epoch.indices.get(self.setup.address)
        if me is None or is_party(entry, me):
            return effects
        case = (accuse.audited_round, epoch.addresses[accuse.accused])
        if case in self._replays:
            return effects + self._judge(entry.replace(outcome=int(self._replays[case])), now_ms)
        self._cases.setdefault(case, []).append(entry)
        return effects + self._replay(*case)

    def _judge(self, entry: VerdictEntry, now_ms: int) -> list[Effect]:
        me = self.epochs[entry.epoch].indices.get(self.setup.address)
        if me is None or is_party(entry, me):
            return []
        judge = Judge(
            accused=entry.accused, accuser=entry.accuser, audited_round=entry.audited_round, outcome=entry.outcome
        )
        return self._sign(Vote(Kind.JUDGE, judge_view(entry), judge), entry.round, now_ms)

    def _judge_objective(self, culprit: MemberIndex, now_ms: int) -> list[Effect]:
        """A fault that every member sees for itself."""
        return self._judge(
            VerdictEntry(
                epoch=self.epoch.epoch,
                round=self.round,
                accused=culprit,
                accuser=culprit,
                audited_round=self.round,
                outcome=Outcome.OBJECTIVE,
            ),
            now_ms,
        )

    def _check_judge(self, envelope: Envelope, judge: Judge, juror: MemberIndex) -> None:
        case = judged_case(envelope, judge)
        is_assigned = is_case(case, self._assignment(envelope.round))
        if not is_assigned or envelope.view != judge_view(case) or is_party(case, juror):
            raise Reject("judge: no such case")

    def _on_judge(self, packet: Packet, judge: Judge, juror: MemberIndex) -> list[Effect]:
        envelope = packet.envelope
        epoch = self.epochs[envelope.epoch]
        entry = judged_case(envelope, judge)
        proof = self.evidence_pool.jury.add(entry, juror, packet.signature, epoch.jury)
        if proof is None:
            return []
        self.evidence_pool.file_verdict(proof)
        return [
            _notice(
                "verdict",
                round=entry.round,
                accuser=_hex(epoch.addresses[entry.accuser]),
                accused=_hex(epoch.addresses[entry.accused]),
                audited_round=entry.audited_round,
                outcome=EVIDENCE_NAMES[entry.outcome],
            )
        ]

    def _assignment(self, round: Round) -> Assignment | None:
        if not self.is_finished and round == self.round:
            return self._now.context.assignment
        closed = self._history.get(round)
        return None if closed is None else closed.assignment

    # --- chain -----------------------------------------------------------------

    def _punish(self, propose: Propose, context: RoundContext) -> list[Effect]:
        """The bans that this head makes effective, and their proofs for the contract."""
        effects: list[Effect] = []
        cases = {self.evidence_pool.loser_address(entry): entry for entry in propose.contents.verdicts}
        for address, evidence in self.evidence_pool.bans(propose.contents).items():
            self.banned[address] = evidence
            case = cases.get(address)
            found: dict[str, str | int] = {}
            if case is not None:
                accuser = self.epochs[case.epoch].addresses[case.accuser]
                found = {"accuser": _hex(accuser), "audited_round": case.audited_round, "verdict_round": case.round}
            effects.append(_notice("ban", round=context.round, member=_hex(address), evidence=evidence, **found))
        delay_ms = turn_ms(context.assignment, context.epoch.indices.get(self.setup.address))
        if delay_ms is None:
            return effects
        for verdict in propose.verdicts:
            members = self.epochs[verdict.entry.epoch].addresses
            effects.append(SubmitVerdict(proof=verdict, members=members, delay_ms=delay_ms))
        for equivocation in propose.equivocations:
            accused = self.epochs[equivocation.entry.epoch].addresses[equivocation.entry.member]
            effects.append(SubmitEquivocation(proof=equivocation, accused=accused, delay_ms=delay_ms))
        return effects

    def _anchor(self, propose: Propose, certificate: Certificate, context: RoundContext) -> list[Effect]:
        delay_ms = turn_ms(context.assignment, context.epoch.indices.get(self.setup.address))
        if delay_ms is None:
            return []
        following = self.epochs.get(context.epoch.epoch + 1)
        return [
            SubmitAnchor(
                head=propose.head,
                certificate=certificate,
                members=context.epoch.addresses,
                next_members=following.addresses if following else (),
                delay_ms=delay_ms,
            )
        ]


def _decode(packet: Packet) -> Payload:
    try:
        return decode_payload(packet)
    except Malformed as error:
        raise Reject("payload is malformed") from error


def _own_slot(packet: Packet) -> OwnSlot:
    return (packet.envelope.round, packet.envelope.view, Kind(packet.envelope.kind))


def _notice(name: str, **fields: str | int) -> Notice:
    values: Mapping[str, str | int] = fields
    return Notice(name=name, fields=values)


def _hex(address: Address) -> str:
    return "0x" + address.hex()
