"""Finished runs for tests: simulated members that really train, and the files that a scenario would leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sim.byzantine import on_sending, only, signed

from p2pdfl.base import codec
from p2pdfl.base import task as task_file
from p2pdfl.base.task import Deployment, Task, TaskFile
from p2pdfl.base.types import ZERO_DIGEST, Commit, Digest, Kind, Outcome, Packet, Wire
from p2pdfl.byzantine.machine import ByzantineMachine, Deviation
from p2pdfl.chain.client import Block
from p2pdfl.chain.contract import (
    EVIDENCE_EQUIVOCATION,
    Anchored,
    Event,
    ExitRequested,
    Registered,
    Slashed,
    Started,
)
from p2pdfl.crypto.envelope import head_digest, list_hash
from p2pdfl.learning import learner as learning
from p2pdfl.learning.learner import Learner, State
from p2pdfl.node.store import Store
from p2pdfl.protocol.events import SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.protocol.run import Run
from p2pdfl.scenario import ledger
from p2pdfl.sim.training import RealLearning
from p2pdfl.sim.world import Machine, World

FLIPPER, EQUIVOCATOR, LEAVER = 3, 1, 2
"""Member indices: flips signs from round 1, signs two COMMITs in round 2, exits in block 2."""
TASK: dict[str, Any] = {
    "name": "checked",
    "training_rounds": 4,
    "epoch_rounds": 4,
    "verdict_rounds": 2,
    "audit_fraction": 0.5,
    "members_min": 6,
    "local_steps": 1,
    "batch_size": 8,
    "commit_ms": 1_000,
    "reveal_ms": 500,
    "grace_ms": 200,
    "view_ms": 1_000,
    "resync_ms": 300,
}


class TrainingWorld(World):
    """Real updates and states in place of the stand-in, and one member that flips signs."""

    def __init__(self, learner: Learner, peer_count: int, **world: Any) -> None:
        self.training = RealLearning(learner)
        super().__init__(learner.task, peer_count, learning=self.training, **world)

    @property
    def learner(self) -> Learner:
        return self.training.learner

    @property
    def updates(self) -> dict[Digest, bytes]:
        return self.training.updates

    @property
    def states(self) -> dict[Digest, State]:
        return self.training.states


def measured_task(**fields: Any) -> Task:
    return learning.measure(Task.model_validate({**TASK, **fields}))


def run_to_the_end(**fields: Any) -> TrainingWorld:
    """Six members, two of whom cheat and one of whom leaves after the first epoch."""

    def second_commit(run: Run, packet: Packet) -> Sequence[Packet]:
        commit = codec.decode_payload(packet)
        assert isinstance(commit, Commit)
        if packet.envelope.round != 2:
            return [packet]
        other = sha256(commit.update).digest() if commit.update == ZERO_DIGEST else ZERO_DIGEST
        return [packet, signed(run, packet, commit.replace(update=other))]

    learner = Learner(measured_task(**fields))
    equivocator = only(EQUIVOCATOR, on_sending(Kind.COMMIT, second_commit))
    flips = Deviation(behaviour="sign_flip", from_round=1)

    def wrap(index: int, run: Run) -> Machine:
        return ByzantineMachine(run=run, deviation=flips) if index == FLIPPER else equivocator(index, run)

    world = TrainingWorld(learner, 6, seed=4, wrap=wrap)
    leaving = tuple(entry.replace(exiting=index == LEAVER) for index, entry in enumerate(world.registrations))
    world.at(20, lambda: world.mine(2, leaving))
    world.run(until_ms=300_000, until=world.is_finished)
    assert world.is_finished()
    return world


def leave_behind(world: TrainingWorld, directory: Path) -> None:
    """What `scenario.runner` writes, of the first member."""
    directory.mkdir()
    file = TaskFile(
        task=world.task,
        chain=Deployment(
            rpc="http://127.0.0.1:1", chain_id=world.config.domain.chain_id, contract=world.config.domain.contract
        ),
    )
    task_file.save(directory / "task.toml", file)
    peer = world.peers[0]
    with Store(directory.with_name("home") / "store.sqlite") as store:
        for round, closed in sorted(peer.closed.items()):
            for entry in closed.contents.updates:
                store.put_blob(entry.update, world.updates[entry.update])
            store.put_round(round, closed.head, closed.contents, closed.certificate, closed.packets)
        assert not store.export_transcript(directory / "transcript")
    blocks = [Block(number=seen.number, hash=seen.block) for seen in world.blocks]
    record = ledger.ChainRecord(events=chain_events(world), blocks=blocks, anchors=[], slashes=[])
    ledger.export(directory / "chain.json", file, record)
    last = peer.closed[world.task.total_rounds - 1].head.state
    learning.save_state(directory / "model.safetensors", world.states[last], world.learner)
    summary = {
        "model_digest": {"peer0": last.hex(), "peer4": last.hex()},
        "final_accuracy": world.learner.evaluate(world.states[last]),
        "scenario": "checked",
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def chain_events(world: TrainingWorld) -> list[Event]:
    """What the contract would have logged: nobody's transactions fail, and each is sent once."""
    task, addresses = world.task, [entry.address for entry in world.registrations]
    events: list[Event] = [
        Registered(
            tx=bytes(32),
            block=0,
            address=entry.address,
            peer_id=entry.peer_id,
            pvss_key=entry.pvss_key,
            deposit_wei=task.deposit_wei,
        )
        for entry in world.registrations
    ]
    events.append(Started(tx=bytes(32), block=1, list_hash=list_hash(addresses)))
    events.append(ExitRequested(tx=bytes(32), block=2, address=addresses[LEAVER]))
    for effect in world.peers[0].submitted:
        match effect:
            case SubmitAnchor(head=head, certificate=certificate):
                events.append(
                    Anchored(
                        tx=bytes(32),
                        block=3,
                        epoch=head.epoch,
                        round=head.round,
                        head=head_digest(head),
                        view=certificate.view,
                        bitmap=sum(1 << ballot.member for ballot in certificate.ballots),
                        sender=addresses[0],
                    )
                )
            case SubmitVerdict(proof=proof, members=members):
                entry = proof.entry
                loser = members[entry.accuser if entry.outcome == Outcome.FALSE else entry.accused]
                events.append(_slashed(loser, task.verdict_slash_wei, entry.outcome, entry.audited_round, addresses[0]))
            case SubmitEquivocation(proof=proof, accused=accused):
                amount = task.equivocation_slash_wei
                events.append(_slashed(accused, amount, EVIDENCE_EQUIVOCATION, proof.entry.round, addresses[0]))
    return events


def _slashed(address: bytes, amount_wei: int, evidence: int, round: int, sender: bytes) -> Slashed:
    return Slashed(
        tx=bytes(32), block=3, address=address, amount_wei=amount_wei, evidence=evidence, round=round, sender=sender
    )


@dataclass(frozen=True)
class RunFiles:
    """A run's directory, to be tampered with."""

    path: Path

    def round(self, number: int) -> Path:
        return self.path / "transcript" / "rounds" / f"{number:06}.json"

    def blob(self, digest: str) -> Path:
        return self.path / "transcript" / "blobs" / digest

    def edit(self, path: Path, change: Callable[[Any], object]) -> None:
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    def index(self, number: int) -> Any:
        return json.loads(self.round(number).read_bytes())

    def wire(self, kind: type[Wire], digest: str) -> Any:
        return codec.decode(kind, self.blob(digest).read_bytes(), bytes_max=1 << 21)

    def put(self, value: Wire | bytes) -> str:
        """A new blob."""
        data = value if isinstance(value, bytes) else codec.encode(value)
        digest = sha256(data).hexdigest()
        self.blob(digest).write_bytes(data)
        return digest

    def packets(self, number: int, kind: str) -> list[Any]:
        return [self.wire(Packet, entry["digest"]) for entry in self.index(number)["packets"] if entry["kind"] == kind]
