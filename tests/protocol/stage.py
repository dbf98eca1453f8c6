"""One member's machine in the middle of a run, and packets that any member can sign for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pdfl.base.codec import body_digest, decode_payload, digest_of, encode
from p2pdfl.base.types import (
    Ballot,
    Certificate,
    Close,
    Commit,
    Contents,
    Envelope,
    Kind,
    Notarize,
    Packet,
    Payload,
    Propose,
)
from p2pdfl.crypto.envelope import Signer, head_digest
from p2pdfl.protocol.events import Aggregated, CheckCommits, CommitsChecked, Effect, Event, PacketReceived, Send
from p2pdfl.protocol.refusal import Refusal, Reject
from p2pdfl.protocol.round import Phase
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.sharing import check_commits
from p2pdfl.protocol.view import RoundView
from p2pdfl.sim.network import PlainNetwork
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


# --- what tests begin with -----------------------------------------------------------------


def proposing(round: int = 1, **task: Any) -> Stage:
    """Everything of the round held, nothing proposed, and member 0 does not lead view 0."""
    stages = (Stage(until=in_propose_phase(round), seed=seed, **task) for seed in range(4, 12))
    return next(stage for stage in stages if stage.leader() != 0)


def sent(effects: list[Effect], kind: Kind) -> list[Packet]:
    return [
        effect.packet for effect in effects if isinstance(effect, Send) and effect.packet.envelope.kind == int(kind)
    ]


def commits_of(stage: Stage, member: int) -> list[tuple[Packet, Commit]]:
    return [(held.packet, held.commit) for held in stage.open.commits.values() if held.member == member]


def with_state(stage: Stage) -> Propose:
    """A proposal whose state this member computes too."""
    propose = stage.proposal()
    state = b"\x44" * 32
    if propose.contents.updates not in stage.open.states:
        stage.take(Aggregated(round=stage.run.round, updates=propose.contents.updates, state=state))
    return stage.proposal()


def fresh_commit(stage: Stage, member: int, **changes: Any) -> Packet:
    """What the member sent in round 0, or that with changes."""
    peer = stage.world.peers[member]
    found = next(packet for packet in peer.sent if packet.envelope.kind == Kind.COMMIT and packet.envelope.round == 0)
    commit = decode_payload(found)
    assert isinstance(commit, Commit)
    return stage.packet(member, commit.replace(**changes))


def quiet() -> Stage:
    """Round 0, and everybody else's COMMIT known to the test but not to member 0."""
    stage = Stage(until=in_commit_phase(0), seed=5, audit_fraction=0.0)
    world = stage.world
    world.network = PlainNetwork(latency_ms=(5, 40), is_lost=lambda sender, receiver, now_ms: receiver == 0)
    world.run(until_ms=60, until=lambda: all(peer.sent for peer in world.peers[1:]))
    stage.now_ms = world.now_ms
    return stage
