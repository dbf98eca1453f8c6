"""One member's machine in the middle of a run, and packets that any member can sign for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pdfl.base.codec import body_digest, digest_of, encode
from p2pdfl.base.types import Ballot, Certificate, Close, Contents, Envelope, Kind, Notarize, Packet, Payload, Propose
from p2pdfl.crypto.envelope import Signer, head_digest
from p2pdfl.protocol.events import CheckCommits, CommitsChecked, Effect, Event, PacketReceived
from p2pdfl.protocol.refusal import Refusal, Reject
from p2pdfl.protocol.round import Phase
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.sharing import check_commits
from p2pdfl.protocol.view import RoundView
from p2pdfl.sim.world import World, stand_in_task

N = 4


class Stage:
    """Member 0 under test; the others are silent from now on."""

    def __init__(self, *, until: Callable[[RoundView], bool], seed: int = 1, peer_count: int = N, **task: Any) -> None:
        fields = {"training_rounds": 6, "epoch_rounds": 6, "audit_fraction": 0.5, "members_min": 4}
        self.world = World(stand_in_task(**{**fields, **task}), peer_count, seed=seed)
        self.world.run(until_ms=600_000, until=lambda: until(self.world.peers[0].run.open_round))
        self.run: Run = self.world.peers[0].run
        assert until(self.open)
        self.now_ms = self.world.now_ms

    @property
    def open(self) -> RoundView:
        return self.run.open_round

    def packet(self, member: int, payload: Payload, **slot: Any) -> Packet:
        """slot: other words of the envelope than those of the open round."""
        kind = Kind[type(payload).__name__.upper()]
        words: dict[str, Any] = {
            "task": self.run.config.task_id,
            "epoch": self.run.epoch.epoch,
            "round": self.run.round,
            "view": 0,
            "kind": int(kind),
            "body": body_digest(payload),
        }
        envelope = Envelope(**{**words, **slot})
        signature = self.signer(member).sign(self.run.config.domain, envelope)
        return Packet(envelope=envelope, signature=signature, payload=encode(payload))

    def signer(self, member: int) -> Signer:
        return Signer(self.world.peers[member].keys.chain_secret)

    def certificate(self, vote: Notarize | Close, voters: list[int], *, view: int = 0) -> Certificate:
        packets = {voter: self.packet(voter, vote, view=view) for voter in voters}
        envelope = next(iter(packets.values())).envelope
        return Certificate(
            epoch=envelope.epoch,
            round=envelope.round,
            view=view,
            kind=envelope.kind,
            head=vote.head,
            ballots=tuple(Ballot(member=voter, signature=packet.signature) for voter, packet in packets.items()),
        )

    def take(self, *events: Packet | Event) -> list[Effect]:
        """Delivers them; cryptography is done at once, all other work never ends.  Raises Refusal."""
        effects: list[Effect] = []
        for event in events:
            effects += self.run.handle(
                PacketReceived(packet=event) if isinstance(event, Packet) else event, self.now_ms
            )
        done = 0
        while done < len(effects):
            effect = effects[done]
            done += 1
            if isinstance(effect, CheckCommits):
                invalid = check_commits(effect, lambda count: b"\x5a" * count)
                checked = tuple(check.body for check in effect.checks)
                event = CommitsChecked(round=effect.round, checked=checked, invalid=invalid)
                effects += self.run.handle(event, self.now_ms)
        return effects

    def reason(self, event: Packet | Event) -> str | None:
        """Why it is refused; None if it is not."""
        try:
            self.take(event)
        except Refusal as refusal:
            return f"{'Reject' if isinstance(refusal, Reject) else 'Ignore'}: {refusal.reason}"
        return None

    # --- what an honest leader would say -----------------------------------------------------------------

    def proposal(self) -> Propose:
        """Of all that member 0 holds, with a state of its own invention if it has not computed one."""
        contents, equivocations, verdicts = self.open.contents()
        state = self.open.states.get(contents.updates, b"\x33" * 32)
        head = self.open.head(contents, state, self.open.context.chain_block)
        assert head is not None
        return Propose(
            contents=contents, head=head, notarization=None, skips=(), equivocations=equivocations, verdicts=verdicts
        )

    def leader(self, view: int = 0) -> int:
        return self.open.context.assignment.leader(view)


def with_contents(propose: Propose, **changes: Any) -> Propose:
    contents: Contents = propose.contents.replace(**changes)
    return propose.replace(contents=contents, head=propose.head.replace(contents=digest_of(contents)))


def head_of(propose: Propose) -> bytes:
    return head_digest(propose.head)


def in_commit_phase(round: int) -> Callable[[RoundView], bool]:
    return lambda now: now.context.round == round


def in_propose_phase(round: int) -> Callable[[RoundView], bool]:
    return lambda now: now.context.round == round and now.phase is Phase.PROPOSE
