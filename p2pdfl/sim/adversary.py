"""The Byzantine of a simulated run: one adversary with all their keys.

the scenario runner's behaviours   the same machines (`p2pdfl.byzantine.machine`)
random    sends anything at any time: well-signed envelopes of any kind, slot and body, made of pieces that were
          heard, junk, replays, different things to different peers; holds back and delays its own
split     tells one half of the honest one story and the other half another: two COMMITs, two proposals that each
          half finds sound, votes for both; or finalizes with the one and skips with the other
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, body_digest, decode_payload, digest_of, encode
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Ballot,
    Certificate,
    Close,
    Commit,
    Contents,
    Digest,
    Envelope,
    Judge,
    Kind,
    Notarize,
    Packet,
    Payload,
    Propose,
)
from p2pdfl.byzantine.machine import Behaviour, ByzantineMachine, Deviation
from p2pdfl.crypto.envelope import Signer, head_digest
from p2pdfl.protocol.events import Effect, Event, PacketReceived, Reveal, Send
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.sim.learning import Learning, StandIn
from p2pdfl.sim.world import Machine, SendTo

SimBehaviour = Behaviour | Literal["random", "split"]

HEARD_MAX = 300
JUNK_MAX = 400
"""Messages that one random peer invents in a run."""


@dataclass(kw_only=True)
class Adversary:
    """What all Byzantine peers know and have."""

    signers: dict[int, Signer]
    halves: tuple[frozenset[int], frozenset[int]]
    peer_count: int
    learning: Learning = field(default_factory=StandIn)
    heard: deque[Packet] = field(default_factory=lambda: deque(maxlen=HEARD_MAX))
    forks: dict[tuple[int, int], tuple[Digest, Digest]] = field(default_factory=dict)
    """(round, view) -> the heads for the one half and for the other."""
    commits: dict[tuple[int, int], tuple[Packet, Packet]] = field(default_factory=dict)
    """(round, peer) -> its COMMIT for the one half and for the other."""

    def state_after(self, parent_state: Digest, contents: Contents) -> Digest:
        try:
            return self.learning.aggregate(parent_state, contents.updates)
        except KeyError:
            # an update that nobody made: no state follows, so any does
            return digest_of(contents)

    def everybody(self) -> tuple[int, ...]:
        return tuple(range(self.peer_count))

    def half(self, which: int) -> tuple[int, ...]:
        return tuple(sorted(self.halves[which] | self.signers.keys()))


def sign(run: Run, signer: Signer, payload: Payload, *, kind: Kind, round: int, view: int) -> Packet:
    envelope = Envelope(
        task=run.config.task_id,
        epoch=run.config.task.epoch_of(round),
        round=round,
        view=view,
        kind=int(kind),
        body=body_digest(payload),
    )
    return Packet(envelope=envelope, signature=signer.sign(run.config.domain, envelope), payload=encode(payload))


@dataclass(kw_only=True)
class _Wrapped:
    run: Run
    adversary: Adversary
    me: int

    def __post_init__(self) -> None:
        # who lies must not fall silent because others show it its own lies
        self.run.signing.mute = lambda latest: None  # type: ignore[method-assign]

    def start(self, now_ms: int) -> list[Effect]:
        return self.rewrite(self.run.start(now_ms))  # type: ignore[return-value]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        if isinstance(event, PacketReceived):
            self.adversary.heard.append(event.packet)
        return self.rewrite(self.run.handle(event, now_ms))  # type: ignore[return-value]

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        return self.run.resync_reply(request, load)

    def rewrite(self, effects: Sequence[Effect]) -> list[Effect | SendTo]:
        raise NotImplementedError

    @property
    def signer(self) -> Signer:
        return self.adversary.signers[self.me]


@dataclass(kw_only=True)
class SplitMachine(_Wrapped):
    rng: random.Random
    _voted: set[tuple[int, int]] = field(default_factory=set)

    def rewrite(self, effects: Sequence[Effect]) -> list[Effect | SendTo]:
        rewritten: list[Effect | SendTo] = []
        for effect in effects:
            if isinstance(effect, Send):
                rewritten += self._send(effect)
            else:
                rewritten.append(effect)
        if not self.run.is_finished:
            for place, heads in self.adversary.forks.items():
                if place[0] == self.run.round and place not in self._voted:
                    self._voted.add(place)
                    rewritten += self._vote(place, heads)
        return rewritten

    def _send(self, effect: Send) -> list[Effect | SendTo]:
        envelope = effect.packet.envelope
        place = (envelope.round, envelope.view)
        match envelope.kind:
            case Kind.COMMIT:
                return list(self._commit(effect.packet))
            case Kind.PROPOSE if envelope.round == self.run.round and not self.run.is_finished:
                return list(self._propose(effect.packet))
            case Kind.NOTARIZE | Kind.CLOSE if place in self._voted:
                return []
            case _:
                return [effect]

    def _commit(self, packet: Packet) -> list[SendTo]:
        payload = decode_payload(packet)
        assert isinstance(payload, Commit)
        # without an update in the one story, and with one that nobody ever sees in the other if it had none
        other = payload.replace(update=b"\x07" * 32 if payload.update == ZERO_DIGEST else ZERO_DIGEST)
        second = sign(self.run, self.signer, other, kind=Kind.COMMIT, round=packet.envelope.round, view=0)
        self.adversary.commits[packet.envelope.round, self.me] = (packet, second)
        return self._to_halves(packet, second)

    def _propose(self, packet: Packet) -> list[SendTo]:
        first = decode_payload(packet)
        assert isinstance(first, Propose)
        second = self._other_story(first)
        if first.notarization is not None or second is None:
            return [SendTo(packet=packet, receivers=self.adversary.everybody())]
        envelope = packet.envelope
        self.adversary.forks[envelope.round, envelope.view] = (head_digest(first.head), head_digest(second.head))
        forked = sign(self.run, self.signer, second, kind=Kind.PROPOSE, round=envelope.round, view=envelope.view)
        return self._to_halves(packet, forked)

    def _other_story(self, propose: Propose) -> Propose | None:
        """The same, with the other COMMITs of the Byzantine, as the other half has heard them."""
        context = self.run.open_round.context
        changed = {
            first.envelope.body: second.envelope.body
            for (round, _), (first, second) in self.adversary.commits.items()
            if round == context.round
        }
        contents = propose.contents
        liars = {entry.member for entry in contents.commits if entry.body in changed}
        if not liars:
            return None
        contents = contents.replace(
            commits=tuple(entry.replace(body=changed.get(entry.body, entry.body)) for entry in contents.commits),
            updates=tuple(entry for entry in contents.updates if entry.member not in liars),
        )
        state = self.adversary.state_after(context.parent_state, contents)
        head = propose.head.replace(contents=digest_of(contents), state=state)
        return propose.replace(contents=contents, head=head)

    def _vote(self, place: tuple[int, int], heads: tuple[Digest, Digest]) -> list[SendTo]:
        round, view = place
        first, second = heads
        # sometimes one half is to believe that the view was skipped
        closes = (first, ZERO_DIGEST if self.rng.random() < 0.3 else second)
        votes: list[SendTo] = []
        votes += self._to_halves(
            *(
                sign(self.run, self.signer, Notarize(head=head), kind=Kind.NOTARIZE, round=round, view=view)
                for head in heads
            )
        )
        votes += self._to_halves(
            *(sign(self.run, self.signer, Close(head=head), kind=Kind.CLOSE, round=round, view=view) for head in closes)
        )
        return votes

    def _to_halves(self, first: Packet, second: Packet) -> list[SendTo]:
        return [
            SendTo(packet=first, receivers=self.adversary.half(0)),
            SendTo(packet=second, receivers=self.adversary.half(1)),
        ]


@dataclass(kw_only=True)
class RandomMachine(_Wrapped):
    rng: random.Random
    _held_back: list[Packet] = field(default_factory=list)
    _junk_count: int = 0

    def rewrite(self, effects: Sequence[Effect]) -> list[Effect | SendTo]:
        rewritten: list[Effect | SendTo] = []
        for effect in effects:
            if isinstance(effect, Send):
                rewritten += self._send(effect)
            elif isinstance(effect, Reveal) and self.rng.random() < 0.3:
                continue
            else:
                rewritten.append(effect)
        if not self.run.is_finished and self._junk_count < JUNK_MAX and self.rng.random() < 0.15:
            self._junk_count += 1
            rewritten += self._invent()
        return rewritten

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        reply = self.run.resync_reply(request, load)
        match self.rng.randrange(5):
            case 0:
                return ResyncReply(packets=(), certificates=())
            case 1:
                heard = list(self.adversary.heard)
                packets = tuple(self.rng.sample(heard, min(len(heard), 10)))
                certificates = () if self.run.is_finished else tuple(filter(None, [self._certificate()]))
                return ResyncReply(packets=packets, certificates=certificates)
            case 2:
                return reply.replace(packets=reply.packets[::2])
            case _:
                return reply

    def _send(self, effect: Send) -> list[Effect | SendTo]:
        match self.rng.randrange(8):
            case 0:
                self._held_back.append(effect.packet)
                return []
            case 1:
                return [SendTo(packet=effect.packet, receivers=self._some())]
            case _:
                return [effect]

    def _invent(self) -> list[Effect | SendTo]:
        if self._held_back and self.rng.random() < 0.3:
            return [SendTo(packet=self._held_back.pop(), receivers=self._some())]
        if self.adversary.heard and self.rng.random() < 0.2:
            return [SendTo(packet=self._heard(), receivers=self._some())]
        try:
            packets = [self._packet() for _ in range(self.rng.randint(1, 2))]
        except ValidationError:
            return []
        return [SendTo(packet=packet, receivers=self._some()) for packet in packets if packet is not None]

    def _some(self) -> tuple[int, ...]:
        everybody = self.adversary.everybody()
        match self.rng.randrange(4):
            case 0:
                return everybody
            case 1:
                return self.adversary.half(self.rng.randrange(2))
            case _:
                return tuple(sorted(self.rng.sample(everybody, self.rng.randint(1, len(everybody)))))

    def _packet(self) -> Packet | None:
        kind = self.rng.choice(list(Kind))
        payload = self._payload(kind)
        if payload is None:
            return None
        signer = self.adversary.signers[self.rng.choice(sorted(self.adversary.signers))]
        packet = sign(self.run, signer, payload, kind=kind, round=self._round(), view=self._view(kind))
        match self.rng.randrange(30):
            case 0:
                return packet.replace(signature=self._heard().signature if self.adversary.heard else bytes(64))
            case 1:
                return packet.replace(payload=self.rng.randbytes(self.rng.randint(1, 80)))
            case 2:
                return packet.replace(envelope=packet.envelope.replace(epoch=packet.envelope.epoch + 1))
            case _:
                return packet

    def _round(self) -> int:
        last = self.run.config.task.total_rounds - 1
        round = self.run.round + self.rng.choice((0, 0, 0, 0, 0, 1, 1, -1, -2, 2, 9))
        return min(max(0, round), last)

    def _view(self, kind: Kind) -> int:
        if kind is Kind.JUDGE:
            return self.rng.choice((0, params.MEMBER_COUNT_MAX)) + self.rng.randrange(self.adversary.peer_count)
        if kind in (Kind.COMMIT, Kind.ACCUSE) and self.rng.random() < 0.9:
            return 0
        view = self.run.open_round.view
        return max(0, view + self.rng.choice((0, 0, 0, 1, 1, -1, 2, 5)))

    def _payload(self, kind: Kind) -> Payload | None:
        rng = self.rng
        match kind:
            case Kind.COMMIT:
                return self._commit()
            case Kind.PROPOSE:
                return self._propose()
            case Kind.NOTARIZE:
                return Notarize(head=self._head())
            case Kind.CLOSE:
                return Close(head=self._head())
            case Kind.ACCUSE:
                audited = max(0, self.run.round - rng.choice((2, 2, 2, 1, 3)))
                return Accuse(accused=rng.randrange(self.adversary.peer_count), audited_round=audited)
            case Kind.JUDGE:
                accused = rng.randrange(self.adversary.peer_count)
                is_objective = rng.random() < 0.4
                return Judge(
                    accused=accused,
                    accuser=accused if is_objective else rng.randrange(self.adversary.peer_count),
                    audited_round=max(0, self.run.round - (0 if is_objective else 2)),
                    outcome=4 if is_objective else rng.randint(1, 4),
                )

    def _commit(self) -> Commit | None:
        commits = [found for found in self._payloads(Kind.COMMIT) if isinstance(found, Commit)]
        if not commits:
            return None
        one, other = self.rng.choice(commits), self.rng.choice(commits)
        match self.rng.randrange(5):
            case 0:
                return one.replace(update=self.rng.choice((ZERO_DIGEST, other.update, self.rng.randbytes(32))))
            case 1:
                return one.replace(share=self.rng.choice((None, other.share)))
            case 2:
                return one.replace(dealing=other.dealing)
            case 3:
                return one.replace(parent=self.run.open_round.context.parent)
            case _:
                return one

    def _propose(self) -> Propose | None:
        now = self.run.open_round
        proposals = [found for found in self._payloads(Kind.PROPOSE) if isinstance(found, Propose)]
        contents, equivocations, verdicts = now.contents()
        state = self.adversary.state_after(now.context.parent_state, contents)
        head = now.head(contents, state, now.latest_block)
        justification = now.justification(now.view)
        if head is not None and justification is not None and len(contents.commits) > 0:
            own = Propose(
                contents=contents,
                head=head,
                notarization=None,
                skips=justification[1],
                equivocations=equivocations,
                verdicts=verdicts,
            )
            proposals += [own] * (1 + len(proposals))
        if not proposals:
            return None
        propose = self.rng.choice(proposals)
        contents = propose.contents
        match self.rng.randrange(7):
            case 0:
                contents = contents.replace(commits=contents.commits[self.rng.randrange(2) :])
            case 1:
                contents = contents.replace(updates=contents.updates[self.rng.randrange(2) :])
            case 2:
                return propose.replace(head=propose.head.replace(state=self.rng.randbytes(32)))
            case 3:
                return propose.replace(skips=propose.skips[1:], notarization=self._certificate())
            case 4:
                contents = contents.replace(evidence=())
            case _:
                return propose
        state = self.adversary.state_after(now.context.parent_state, contents)
        return propose.replace(contents=contents, head=propose.head.replace(contents=digest_of(contents), state=state))

    def _certificate(self) -> Certificate | None:
        """Of votes that were heard, be they enough or not, and of all that the adversary can sign itself."""
        votes = [packet for packet in self.adversary.heard if packet.envelope.kind in (Kind.NOTARIZE, Kind.CLOSE)]
        if not votes:
            return None
        like = self.rng.choice(votes)
        payload = self._decoded(like)
        if not isinstance(payload, Notarize | Close):
            return None
        envelope = like.envelope
        epoch = self.run.epochs.get(envelope.epoch)
        if epoch is None:
            return None
        ballots: dict[int, bytes] = {}
        for packet in votes:
            if packet.envelope == envelope:
                # whose it is does not matter for junk; a right guess makes a real one
                ballots[self.rng.randrange(epoch.count)] = packet.signature
        for signer in self.adversary.signers.values():
            member = epoch.indices.get(signer.address)
            if member is not None:
                ballots[member] = signer.sign(self.run.config.domain, envelope)
        return Certificate(
            epoch=envelope.epoch,
            round=envelope.round,
            view=envelope.view,
            kind=envelope.kind,
            head=payload.head,
            ballots=tuple(Ballot(member=member, signature=ballots[member]) for member in sorted(ballots)),
        )

    def _head(self) -> Digest:
        now = self.run.open_round
        heads = [ZERO_DIGEST, now.context.parent, *now.proposals]
        return self.rng.choice([*heads, self.rng.randbytes(32)])

    def _heard(self) -> Packet:
        return self.rng.choice(self.adversary.heard)

    def _payloads(self, kind: Kind) -> list[Payload]:
        packets = [packet for packet in self.adversary.heard if packet.envelope.kind == kind][-20:]
        return [payload for packet in packets if (payload := self._decoded(packet)) is not None]

    def _decoded(self, packet: Packet) -> Payload | None:
        try:
            return decode_payload(packet)
        except Malformed:
            return None


def wrap(
    run: Run,
    *,
    behaviour: SimBehaviour,
    from_round: int,
    me: int,
    adversary: Adversary,
    seed: int,
    die: Callable[[], None],
) -> Machine:
    rng = random.Random(f"byzantine/{seed}/{me}")
    match behaviour:
        case "random":
            return RandomMachine(run=run, adversary=adversary, me=me, rng=rng)
        case "split":
            return SplitMachine(run=run, adversary=adversary, me=me, rng=rng)
        case _:
            return ByzantineMachine(run=run, deviation=Deviation(behaviour=behaviour, from_round=from_round), die=die)
