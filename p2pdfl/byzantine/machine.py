"""Byzantine members: the honest machine, wrapped, with its effects and events rewritten (ARCHITECTURE).

Honest code has no hooks for this.  A behaviour cheats in one way from its round on, in every round or every k-th, and
is otherwise an honest member, which is the hardest kind to find.

    `UpdateBehaviour`                     another update than the one that follows from the assignment: the machine says
                                          so by `Poison`, what is sent then says `updates`, or a simulator's stand-in
    garbage                               bytes of the right size that are no update, under a committed digest
    zip_bomb                              the same, but an update's header and a frame that becomes some 100 MB
    equivocate                            two COMMITs in one slot
    withhold_share                        a COMMIT without the share
    withhold_update                       a committed digest whose bytes never come
    false_accuser                         finds every audited update guilty
    crash                                 ends without a word

Colluders know of each other, leave each other's updates out of what they take for the honest members', and shield each
other: as auditors and jurors they find nothing against a colluder.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal, get_args

from p2pdfl.base.codec import body_digest, decode_payload, encode
from p2pdfl.base.types import ZERO_DIGEST, Address, Commit, Digest, Envelope, Kind, Outcome, Packet, Round
from p2pdfl.protocol.assignment import batch_seed
from p2pdfl.protocol.events import Effect, Event, Replayed, Reveal, Send, Train
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run

UpdateBehaviour = Literal[
    "sign_flip",
    "scale",
    "noise",
    "random_direction",
    "ipm",
    "alie",
    "mimic",
    "zero",
    "delay",
    "label_flip",
    "backdoor",
]
"""What `byzantine.attacks` does with the update."""
Behaviour = Literal[
    UpdateBehaviour,
    "garbage",
    "zip_bomb",
    "equivocate",
    "withhold_share",
    "withhold_update",
    "crash",
    "false_accuser",
]
UPDATE_BEHAVIOURS: tuple[UpdateBehaviour, ...] = get_args(UpdateBehaviour)
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
UNDECODABLE_BEHAVIOURS: tuple[Behaviour, ...] = ("garbage", "zip_bomb")
"""What is sent for an update is none, and whoever gets it sees that."""

SYNTAX = "BEHAVIOUR:FROM_ROUND[:FACTOR][:every=ROUNDS][:with=ADDRESS,...]"


@dataclass(frozen=True, kw_only=True)
class Deviation:
    behaviour: Behaviour
    from_round: int
    factor: float | None = None
    """None: the attack's own (`byzantine.attacks.DEFAULT_FACTORS`)."""
    every: int = 1
    colluders: frozenset[Address] = frozenset()
    """The others of them."""

    @classmethod
    def parse(cls, text: str) -> Deviation:
        """SYNTAX.  Raises ValueError."""
        behaviour, _, rest = text.partition(":")
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"no behaviour {behaviour!r}; there are: {', '.join(BEHAVIOURS)}")
        from_round, *options = rest.split(":")
        if not _is_count(from_round):
            raise ValueError(f"{text!r} names no round; expected {SYNTAX}")
        factor: float | None = None
        every, colluders = 1, frozenset[Address]()
        for option in options:
            name, separator, value = option.partition("=")
            if name == "every" and _is_count(value) and int(value) > 0:
                every = int(value)
            elif name == "with" and value:
                colluders = frozenset(_address(text, word) for word in value.split(","))
            elif separator:
                raise ValueError(f"{text!r}: {option!r} is no option; expected {SYNTAX}")
            else:
                factor = _finite(text, option)
        return cls(
            behaviour=behaviour,
            from_round=int(from_round),
            factor=factor,
            every=every,
            colluders=colluders,
        )

    def __str__(self) -> str:
        """As `parse` takes it."""
        words = [self.behaviour, str(self.from_round)]
        words += [] if self.factor is None else [repr(self.factor)]
        words += [] if self.every == 1 else [f"every={self.every}"]
        if self.colluders:
            words.append("with=" + ",".join("0x" + address.hex() for address in sorted(self.colluders)))
        return ":".join(words)

    def is_active(self, round: Round) -> bool:
        return round >= self.from_round and (round - self.from_round) % self.every == 0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _finite(text: str, factor: str) -> float:
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: the factor is not a number")
    return number


def _address(text: str, word: str) -> Address:
    try:
        address = bytes.fromhex(word.removeprefix("0x"))
    except ValueError:
        address = b""
    if len(address) != 20:
        raise ValueError(f"{text!r}: {word!r} is no address")
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison(Train):
    """Send another update than this one.  With it comes what an attacker knows of the round, all of it public."""

    behaviour: Behaviour
    factor: float | None
    is_active: bool
    """Whether in this round: else it sends the honest one, and keeps it in mind."""
    others: tuple[tuple[Address, Digest], ...]
    """The honest trainers of the round, as far as the attacker knows, and their seeds, by ascending address."""


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(kw_only=True)
class ByzantineMachine:
    """Everything but the update itself."""

    run: Run
    deviation: Deviation
    die: Callable[[], None] = kill_this_process
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
        if isinstance(event, Replayed):
            if event.author in self.deviation.colluders:
                event = replace(event, outcome=Outcome.VOID)
            elif self._is_active() and self.deviation.behaviour == "false_accuser":
                event = replace(event, outcome=Outcome.GUILTY)
        return self._rewrite(self.run.handle(event, now_ms))

    def _is_active(self) -> bool:
        return self.deviation.is_active(self.run.round)

    def _rewrite(self, effects: list[Effect]) -> list[Effect]:
        if self.deviation.behaviour in (*UPDATE_BEHAVIOURS, *UNDECODABLE_BEHAVIOURS):
            return [self._poison(effect) if isinstance(effect, Train) else effect for effect in effects]
        if not self._is_active():
            return effects
        if self.deviation.behaviour == "crash":
            self.die()
            return []
        rewritten: list[Effect] = []
        for effect in effects:
            rewritten += self._rewrite_one(effect)
        return rewritten

    def _poison(self, effect: Train) -> Poison:
        run, deviation = self.run, self.deviation
        now = run.open_round.context
        round = now if now.round == effect.round else run.closed[effect.round]
        authors = [round.epoch.addresses[member] for member in sorted(round.assignment.trainers)]
        return Poison(
            round=effect.round,
            parent_state=effect.parent_state,
            seed=effect.seed,
            behaviour=deviation.behaviour,
            factor=deviation.factor,
            is_active=deviation.is_active(effect.round),
            others=tuple(
                (author, batch_seed(round.beacon, run.config.task_id, effect.round, author))
                for author in authors
                if author != run.address and author not in deviation.colluders
            ),
        )

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
        run, signed = self.run, envelope.replace(body=body_digest(commit))
        return Packet(envelope=signed, signature=run.signer.sign(run.config.domain, signed), payload=encode(commit))


def _commit_of(packet: Packet) -> Commit:
    payload = decode_payload(packet)
    assert isinstance(payload, Commit)
    return payload
