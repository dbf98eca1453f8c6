"""Byzantine members for tests: the honest machine, its effects and events rewritten, signing with its own key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from p2pdfl.base.codec import body_digest, decode_payload, encode
from p2pdfl.base.types import Commit, Kind, Packet, Payload, Propose
from p2pdfl.protocol.events import Effect, Event, Send
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.sim.world import Machine

Rewrite = Callable[[Run, Effect], Sequence[Effect]]


def keep(run: Run, effect: Effect) -> Sequence[Effect]:
    return [effect]


@dataclass(kw_only=True)
class Rewriting:
    run: Run
    effects: Rewrite = keep
    event: Callable[[Event], Event] = lambda event: event
    _unsent: list[Packet] = field(default_factory=list)

    def start(self, now_ms: int) -> list[Effect]:
        return self._rewrite(self.run.start(now_ms))

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        return self._rewrite(self.run.handle(self.event(event), now_ms))

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        reply = self.run.resync_reply(request, load)
        return reply.replace(packets=tuple(packet for packet in reply.packets if packet not in self._unsent))

    def _rewrite(self, effects: list[Effect]) -> list[Effect]:
        rewritten: list[Effect] = []
        for effect in effects:
            changed = self.effects(self.run, effect)
            if isinstance(effect, Send) and effect not in changed:
                self._unsent.append(effect.packet)
            rewritten += changed
        return rewritten


def only(
    byzantine: int, effects: Rewrite = keep, event: Callable[[Event], Event] = lambda event: event
) -> Callable[[int, Run], Machine]:
    """For World(wrap=...): this one peer cheats."""

    def wrap(index: int, run: Run) -> Machine:
        return Rewriting(run=run, effects=effects, event=event) if index == byzantine else run

    return wrap


def signed(run: Run, like: Packet, payload: Payload, **slot: int) -> Packet:
    """Another payload in the same slot, or in the one that `slot` changes."""
    envelope = like.envelope.replace(body=body_digest(payload), **slot)
    return Packet(envelope=envelope, signature=run.signer.sign(run.config.domain, envelope), payload=encode(payload))


def on_sending(kind: Kind, change: Callable[[Run, Packet], Sequence[Packet]], from_round: int = 0) -> Rewrite:
    """Sends what `change` makes of each own message of that kind."""

    def rewrite(run: Run, effect: Effect) -> Sequence[Effect]:
        if not isinstance(effect, Send) or effect.packet.envelope.kind != kind:
            return [effect]
        if effect.packet.envelope.round < from_round:
            return [effect]
        return [Send(packet=packet) for packet in change(run, effect.packet)]

    return rewrite


def commit_of(packet: Packet) -> Commit:
    payload = decode_payload(packet)
    assert isinstance(payload, Commit)
    return payload


def propose_of(packet: Packet) -> Propose:
    payload = decode_payload(packet)
    assert isinstance(payload, Propose)
    return payload
