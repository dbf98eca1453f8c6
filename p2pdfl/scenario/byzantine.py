"""Byzantine peers: the honest machine, wrapped, with its effects and events rewritten (DESIGN 8).

Honest code has no hooks for this.  A behaviour cheats in one way from its round on, and is otherwise an honest peer,
which is the hardest kind to find.

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
from typing import cast, get_args

import numpy as np

from p2pdfl.codec import body_digest, decode_payload, encode
from p2pdfl.compute import Compute
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning import quantize
from p2pdfl.learning.learner import Learner, State
from p2pdfl.protocol.events import Effect, Event, Replay, Replayed, Reveal, Send, Train
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.scenario.spec import Behaviour
from p2pdfl.store import Store
from p2pdfl.task import Task
from p2pdfl.types import ZERO_DIGEST, Commit, Digest, Entropy, Envelope, Kind, Outcome, Packet

DEFAULT_FACTORS = {"sign_flip": -1.0, "scale": -1000.0, "noise": 10.0}
"""sign_flip, scale: times the update.  noise: standard deviation as a multiple of the update's root mean square."""


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


class ByzantineCompute(Compute):
    """Trains otherwise than assigned.  The poisoned update carries the right header: it decodes, and only a replay
    tells."""

    def __init__(self, learner: Learner, task_id: Digest, keys: Keys, entropy: Entropy, deviation: Deviation) -> None:
        flips = deviation.behaviour == "label_flip"
        super().__init__(_FlippedLabels(learner.task) if flips else learner, task_id, keys, entropy)
        self._honest = Compute(learner, task_id, keys, entropy)
        self._deviation = deviation

    def train(self, effect: Train, parent: State) -> bytes:
        if effect.round < self._deviation.from_round:
            return self._honest.train(effect, parent)
        update = super().train(effect, parent)
        match self._deviation.behaviour:
            case "sign_flip" | "scale":
                return self._transform(update, effect.round, lambda vector: vector * self._factor())
            case "noise":
                generator = np.random.Generator(np.random.PCG64(effect.round))
                return self._transform(
                    update,
                    effect.round,
                    lambda vector: (
                        vector + generator.standard_normal(vector.size) * self._factor() * np.sqrt(np.mean(vector**2))
                    ),
                )
            case "garbage":
                return bytes(np.random.Generator(np.random.PCG64(effect.round)).bytes(len(update)))
            case _:
                return update

    def replay(self, effect: Replay, parent: State, claimed: bytes) -> Outcome:
        return self._honest.replay(effect, parent, claimed)

    def _factor(self) -> float:
        factor = self._deviation.factor
        return DEFAULT_FACTORS[self._deviation.behaviour] if factor is None else factor

    def _transform(self, update: bytes, round: int, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
        header = self._learner.header(task_id=self._task_id, round=round, author=self._keys.address)
        return quantize.encode(change(quantize.decode(update, header)), header)


class _FlippedLabels(Learner):
    """Class c is taken for the last class minus c."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._y_train = self._y_train.max() - self._y_train


class ForgetfulStore(Store):
    """Keeps no record of what was signed, so that nothing stops a second body in a slot."""

    def put_envelope(self, packet: Packet) -> Packet:
        return packet


@dataclass(kw_only=True)
class ByzantineMachine:
    """Everything but the update itself."""

    run: Run
    deviation: Deviation
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
            os.kill(os.getpid(), signal.SIGKILL)
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
