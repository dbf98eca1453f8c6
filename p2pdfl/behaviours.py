"""Byzantine members: the honest machine, wrapped, with its effects and events rewritten (DESIGN 8).

Honest code has no hooks for this.  A behaviour cheats in one way from its round on, and is otherwise an honest member,
which is the hardest kind to find.  What its update is instead is its trainer's affair: `scenario.byzantine` trains
otherwise, the simulator only makes another digest.

    sign_flip, scale, noise, label_flip   another update than the one that follows from the assignment
    garbage                               bytes of the right size that are no update, under a committed digest
    equivocate                            two COMMITs in one slot
    withhold_share                        a COMMIT without the share
    withhold_update                       a committed digest whose bytes never come
    false_accuser                         finds every audited update guilty
    crash                                 ends without a word
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal, cast, get_args

from p2pdfl.codec import body_digest, decode_payload, encode
from p2pdfl.protocol.events import Effect, Event, Replayed, Reveal, Send
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.types import ZERO_DIGEST, Commit, Envelope, Kind, Outcome, Packet

Behaviour = Literal[
    "sign_flip",
    "scale",
    "noise",
    "label_flip",
    "equivocate",
    "withhold_share",
    "withhold_update",
    "crash",
    "false_accuser",
    "garbage",
]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    behaviour: Behaviour
    from_round: int
    factor: float | None = None

    @classmethod
    def parse(cls, text: str) -> Deviation:
        """BEHAVIOUR:FROM_ROUND[:FACTOR].  Raises ValueError."""
        behaviour, _, rest = text.partition(":")
        from_round, _, factor = rest.partition(":")
        if behaviour not in get_args(Behaviour):
            raise ValueError(f"no behaviour {behaviour!r}; there are: {', '.join(get_args(Behaviour))}")
        if not from_round.isdecimal():
            raise ValueError(f"{text!r} names no round; expected BEHAVIOUR:FROM_ROUND[:FACTOR]")
        try:
            multiple = float(factor) if factor else None
        except ValueError:
            raise ValueError(f"{text!r}: the factor is not a number") from None
        return cls(behaviour=cast("Behaviour", behaviour), from_round=int(from_round), factor=multiple)


@dataclass(kw_only=True)
class ByzantineMachine:
    """Everything but the update itself."""

    run: Run
    deviation: Deviation
    die: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    """How it crashes."""
    _unsent: set[Envelope] = field(default_factory=set)
    """What the honest machine believes it sent."""

    @property
    def epoch(self) -> EpochMembers:
        return self.run.epoch

    def next_deadline_ms(self, now_ms: int) -> int:
        return self.run.next_deadline_ms(now_ms)

    def resync_request(self) -> ResyncRequest:
        return self.run.resync_request()

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        reply = self.run.resync_reply(request, load)
        return reply.replace(packets=tuple(packet for packet in reply.packets if packet.envelope not in self._unsent))

    def start(self, now_ms: int) -> list[Effect]:
        return self._rewrite(self.run.start(now_ms))

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        if self._is_active() and self.deviation.behaviour == "false_accuser" and isinstance(event, Replayed):
            event = replace(event, outcome=Outcome.GUILTY)
        return self._rewrite(self.run.handle(event, now_ms))

    def _is_active(self) -> bool:
        return self.run.round >= self.deviation.from_round

    def _rewrite(self, effects: list[Effect]) -> list[Effect]:
        if not self._is_active():
            return effects
        if self.deviation.behaviour == "crash":
            self.die()
            return []
        rewritten: list[Effect] = []
        for effect in effects:
            rewritten += self._rewrite_one(effect)
        return rewritten

    def _rewrite_one(self, effect: Effect) -> list[Effect]:
        match self.deviation.behaviour:
            case "withhold_update":
                return [] if isinstance(effect, Reveal) else [effect]
            case "equivocate" | "withhold_share" if (
                isinstance(effect, Send) and effect.packet.envelope.kind == Kind.COMMIT
            ):
                return self._rewrite_commit(effect)
            case _:
                return [effect]

    def _rewrite_commit(self, effect: Send) -> list[Effect]:
        envelope = effect.packet.envelope
        if envelope.round < max(1, self.deviation.from_round):
            return [effect]
        commit = _commit_of(effect.packet)
        if self.deviation.behaviour == "withhold_share":
            self._unsent.add(envelope)
            return [Send(packet=self._sign(envelope, commit.replace(share=None)))]
        other = commit.replace(update=sha256(commit.update).digest() if commit.update == ZERO_DIGEST else ZERO_DIGEST)
        return [effect, Send(packet=self._sign(envelope, other))]

    def _sign(self, envelope: Envelope, commit: Commit) -> Packet:
        setup = self.run.setup
        signed = envelope.replace(body=body_digest(commit))
        return Packet(envelope=signed, signature=setup.signer.sign(setup.domain, signed), payload=encode(commit))


def _commit_of(packet: Packet) -> Commit:
    payload = decode_payload(packet)
    assert isinstance(payload, Commit)
    return payload
