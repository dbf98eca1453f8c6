"""One run of whole peers per seed: the seed draws how many, who of them is Byzantine and how, and every fault."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log2
from pathlib import Path
from typing import cast

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.byzantine.machine import Behaviour, Deviation
from p2pdfl.byzantine.process import byzantine_parts
from p2pdfl.crypto import pvss
from p2pdfl.learning.learner import Learner
from p2pdfl.node.participant import CONNECT_S
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.sim import caches
from p2pdfl.sim.hunt import TINY_TASK
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.mutants import NodePlant
from p2pdfl.sim.outcome import CryptoKind, Draw, LearningKind, Outcome, Sink
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.true.chain import HANG_S
from p2pdfl.sim.true.faults import Plan, draw_plan
from p2pdfl.sim.true.learner import Memory, TinyLearner, measured_task, tiny_task
from p2pdfl.sim.true.mutants import planted
from p2pdfl.sim.true.peer import MakeLearner
from p2pdfl.sim.true.world import TrueWorld, homes

PEERS_MIN, PEERS_MAX = 4, 7
STYLES: tuple[Behaviour, ...] = (
    "sign_flip",
    "scale",
    "noise",
    "zero",
    "equivocate",
    "withhold_share",
    "withhold_update",
    "crash",
    "false_accuser",
    "garbage",
)
VIRTUAL_S_MAX = 24 * 3_600.0
"""Far beyond every bound: where a run ends that never does."""


@dataclass(frozen=True, kw_only=True)
class Case:
    seed: int
    task: Task
    peer_count: int
    byzantine: Mapping[int, Deviation]
    plan: Plan
    sharing: Sharing
    learning: LearningKind
    plant: NodePlant | None

    @property
    def bound_ms(self) -> int:
        """As in the fast world (`sim.hunt`), and what a process that starts waits for others and for the chain."""
        task = self.task
        views = ceil(log2(1000 * self.plan.calm_s / task.view_ms + 1)) + 2 * len(self.byzantine) + 4
        doublings = [
            min(view + level, params.VIEW_DOUBLINGS_MAX)
            for level in (0, params.VIEW_LEVEL_MAX)
            for view in range(views)
        ]
        views_ms = sum(task.view_ms << doubled for doubled in doublings)
        phases_ms = task.commit_ms + task.reveal_ms + task.grace_ms
        rounds_ms = 3 * (phases_ms + views_ms) // 2 + 4 * task.total_rounds * task.resync_ms
        starting_s = CONNECT_S + 2 * HANG_S + 4 * params.CHAIN_RETRY_S_MAX
        return rounds_ms + round(1000 * starting_s)


def draw_case(
    seed: int,
    *,
    peers: int | None = None,
    rounds: int | None = None,
    plant: NodePlant | None = None,
    crypto: CryptoKind = "auto",
    learning: LearningKind = "stand-in",
) -> Case:
    draw = random.Random(f"true/case/{seed}")
    drawn_peers = draw.randint(PEERS_MIN, PEERS_MAX)
    drawn_rounds = draw.randint(6, 9) if draw.random() < 0.75 else draw.randint(12, 18)
    peer_count, round_count = peers or drawn_peers, rounds or drawn_rounds
    late_count = 1 if draw.random() < 0.25 and peer_count > PEERS_MIN else 0
    verdict_rounds = 1 if round_count < 5 else draw.randint(1, 2)
    confirmations = draw.choice((0, 1, 3, 6))
    make_task, fields = (tiny_task, {}) if learning == "stand-in" else (measured_task, TINY_TASK)
    task = make_task(
        **fields,
        training_rounds=max(1, round_count - 2 - verdict_rounds),
        verdict_rounds=verdict_rounds,
        epoch_rounds=draw.randint(3, 6),
        audit_fraction=draw.choice((0.0, 0.25, 0.5, 1.0)),
        members_min=peer_count - late_count,
        confirmations=confirmations,
        commit_ms=1_000,
        reveal_ms=500,
        grace_ms=200,
        view_ms=1_000,
        resync_ms=300,
    )
    order = draw.sample(range(peer_count), peer_count)
    faulty, rest = order[: (peer_count - late_count - 1) // 3], order[(peer_count - late_count - 1) // 3 :]
    kinds = {index: draw.choice(("byzantine", "byzantine", "amnesiac", "honest")) for index in faulty}
    byzantine = {
        index: Deviation(behaviour=draw.choice(STYLES), from_round=draw.randint(0, 3))
        for index in faulty
        if kinds[index] == "byzantine"
    }
    amnesiacs = [index for index in faulty if kinds[index] == "amnesiac"]
    return Case(
        seed=seed,
        task=task,
        peer_count=peer_count,
        byzantine=byzantine,
        plan=draw_plan(
            seed,
            peer_count=peer_count,
            honest=[index for index in range(peer_count) if index not in byzantine],
            amnesiacs=amnesiacs,
            late=rest[:late_count],
            confirmations=confirmations,
            total_rounds=task.total_rounds,
        ),
        sharing=pvss if crypto == "real" else StandInSharing(),
        learning=learning,
        plant=plant,
    )


def make_world(case: Case, directory: Path) -> tuple[TrueWorld, Checkers]:
    plans = dict(enumerate(case.plan.peers))
    for index, deviation in case.byzantine.items():
        plans[index] = replace(plans[index], parts=partial(byzantine_parts, deviation))
    world = TrueWorld(
        case.task,
        case.peer_count,
        seed=case.seed,
        directory=directory,
        network=case.plan.network,
        sharing=case.sharing,
        learner=_learner(case),
        plans=plans,
        calm_s=case.plan.calm_s,
        block_s=case.plan.block_s,
    )
    case.plan.apply(world)
    return world, world.watch(bound_ms=case.bound_ms, amnesiacs=case.plan.amnesiacs)


def _learner(case: Case) -> MakeLearner:
    if case.learning == "stand-in":
        memory = Memory()
        return lambda process, train_s: TinyLearner(case.task, process, memory, train_s=train_s)
    learner = Learner(case.task)
    return lambda process, train_s: learner


def run_case(case: Case, sink: Sink | None = None) -> Outcome:
    """sink: given every line of the network's log."""
    with ExitStack() as stack:
        stack.enter_context(caches.installed())
        if case.plant is not None:
            stack.enter_context(planted(case.plant))
        world, checkers = make_world(case, Path(stack.enter_context(homes())))
        world.log.sink = sink
        world.run(until_s=VIRTUAL_S_MAX)
        return Outcome(
            seed=case.seed,
            digests={"network": world.log.digest, "events": world.events_digest()},
            rounds=sum(checkers.history.views.values()),
            views=dict(sorted(checkers.history.views.items())),
            virtual_ms=round(1000 * world.ended_s),
            calm_ms=round(1000 * case.plan.calm_s),
            events=world.log.line_count,
            violations=tuple(checkers.violations),
            out_of_bounds=checkers.out_of_bounds,
            about=_describe(case),
        )


def run_seed(draw: Draw, sink: Sink | None = None) -> Outcome:
    case = draw_case(
        draw.seed,
        peers=draw.peers,
        rounds=draw.rounds,
        plant=cast("NodePlant | None", draw.plant),
        crypto=draw.crypto,
        learning=draw.learning,
    )
    return run_case(case, sink)


def _describe(case: Case) -> str:
    liars = ", ".join(f"peer{index} {deviation}" for index, deviation in sorted(case.byzantine.items()))
    return f"{case.peer_count} whole peers, {case.task.total_rounds} rounds; Byzantine: {liars or 'nobody'}"
