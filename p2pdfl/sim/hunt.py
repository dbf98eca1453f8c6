"""One run of the fast world per seed: the seed draws how many peers, who of them is Byzantine and how, and every fault;
the checkers watch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, log2
from typing import cast

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Digest
from p2pdfl.byzantine.machine import UPDATE_BEHAVIOURS
from p2pdfl.crypto import pvss
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.sim import caches
from p2pdfl.sim.adversary import Adversary, SimBehaviour, wrap
from p2pdfl.sim.check import watch
from p2pdfl.sim.disk import Disk
from p2pdfl.sim.faults import Plan, draw_plan
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.learning import Learning, StandIn
from p2pdfl.sim.mutants import ForgetfulDisk, HastyMachine, Plant, impunity, quorum_of_one_less
from p2pdfl.sim.outcome import CryptoKind, Draw, LearningKind, Outcome, Sink
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import Machine, World, stand_in_task

PEERS_MIN, PEERS_MAX = 4, 16
REAL_CRYPTO_PEERS_MAX = 5
"""Up to so many the beacon's sharing is the real one."""
CONFIRMATIONS = 3
STYLES: tuple[SimBehaviour, ...] = (
    "random",
    "random",
    "split",
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
)
"""Among what a seed draws.  The other attacks on updates differ from these in numbers only, and a seed keeps its
meaning."""
TINY_TASK: dict[str, object] = {"local_steps": 5, "batch_size": 16}
"""Of real learning: small enough to be no slower than the protocol."""
VIRTUAL_MS_MAX = 24 * 3_600_000
"""Far beyond every bound: where a run ends that never does."""


@dataclass(frozen=True, kw_only=True)
class Case:
    seed: int
    task: Task
    peer_count: int
    late_count: int
    byzantine: Mapping[int, SimBehaviour]
    from_round: int
    halves: tuple[frozenset[int], frozenset[int]]
    plan: Plan
    sharing: Sharing
    learning: LearningKind
    plant: Plant | None

    @property
    def bound_ms(self) -> int:
        """Within which a calm network closes a round.

        The phases; then one view after the other, each for its timer, at the highest level that one may have brought
        along, and for the close timeout: as many as had gone by when it became calm, at level 0, since any other makes
        them fewer, as the Byzantine can lead, and as many again to bring all into one view; half as much for slow
        clocks; and a resync for each round that a peer is behind."""
        task, byzantine = self.task, len(self.byzantine)
        views = ceil(log2(self.plan.calm_ms / task.view_ms + 1)) + 2 * byzantine + 4
        doublings = [
            min(view + level, params.VIEW_DOUBLINGS_MAX)
            for level in (0, params.VIEW_LEVEL_MAX)
            for view in range(views)
        ]
        views_ms = sum(task.view_ms << doubled for doubled in doublings)
        phases_ms = task.commit_ms + task.reveal_ms + task.grace_ms
        return 3 * (phases_ms + views_ms) // 2 + 4 * task.total_rounds * task.resync_ms


def draw_case(
    seed: int,
    *,
    peers: int | None = None,
    rounds: int | None = None,
    plant: Plant | None = None,
    crypto: CryptoKind = "auto",
    learning: LearningKind = "stand-in",
) -> Case:
    draw = random.Random(f"case/{seed}")
    # drawn whether it is used or not, so that a seed means the same with and without the option
    drawn_peers, drawn_rounds = draw.randint(PEERS_MIN, PEERS_MAX), draw.randint(6, 12)
    peer_count, round_count = peers or drawn_peers, rounds or drawn_rounds
    late_count = 1 if draw.random() < 0.2 and peer_count > PEERS_MIN else 0
    verdict_rounds = 1 if round_count < 5 else draw.randint(1, 2)
    make_task, fields = (stand_in_task, {}) if learning == "stand-in" else (_measured_task, TINY_TASK)
    task = make_task(
        **fields,
        training_rounds=max(1, round_count - 2 - verdict_rounds),
        verdict_rounds=verdict_rounds,
        epoch_rounds=draw.randint(3, 6),
        audit_fraction=draw.choice((0.0, 0.25, 0.5, 1.0)),
        members_min=min(4, peer_count),
        commit_ms=1_000,
        reveal_ms=500,
        grace_ms=200,
        view_ms=1_000,
        resync_ms=300,
    )
    # who joins late is not on the first list, which is to have under a third of Byzantine members already
    faulty_count = (peer_count - late_count - 1) // 3
    too_many = 1 if plant == "third" else 0
    order = draw.sample(range(peer_count), peer_count)
    faulty = order[: faulty_count + too_many]
    amnesiacs = [index for index in faulty[:faulty_count] if draw.random() < 0.12 and plant is None]
    liars = sorted(set(faulty) - set(amnesiacs))
    common = draw.choice(STYLES)
    is_one_style = draw.random() < 0.5 or plant == "third"
    if plant in ("third", "quorum"):
        common = "split"
    byzantine: dict[int, SimBehaviour] = {index: common if is_one_style else draw.choice(STYLES) for index in liars}
    honest = [index for index in range(peer_count) if index not in byzantine]
    shuffled = draw.sample(honest, len(honest))
    middle = len(honest) // 2
    halves = (frozenset(shuffled[:middle]), frozenset(shuffled[middle:]))
    is_real = crypto == "real" or (crypto == "auto" and peer_count <= REAL_CRYPTO_PEERS_MAX)
    return Case(
        seed=seed,
        task=task,
        peer_count=peer_count,
        late_count=late_count,
        byzantine=byzantine,
        from_round=draw.randint(0, 2),
        halves=halves,
        plan=draw_plan(
            seed,
            peer_count=peer_count,
            honest=honest,
            amnesiacs=amnesiacs,
            halves=halves,
            confirmations=CONFIRMATIONS,
        ),
        sharing=pvss if is_real else StandInSharing(),
        learning=learning,
        plant=plant,
    )


def make_world(case: Case) -> tuple[World, Checkers]:
    worlds: list[World] = []
    learning = _learning(case)
    adversary = Adversary(signers={}, halves=case.halves, peer_count=case.peer_count, learning=learning)

    def wrap_one(index: int, run: Run) -> Machine:
        behaviour = case.byzantine.get(index)
        if behaviour is not None:
            adversary.signers[index] = run.signer
            return wrap(
                run,
                behaviour=behaviour,
                from_round=case.from_round,
                me=index,
                adversary=adversary,
                seed=case.seed,
                die=lambda: worlds[0].kill(index),
            )
        return HastyMachine(run=run, world=worlds[0], me=index) if case.plant == "share" else run

    world = World(
        case.task,
        case.peer_count,
        seed=case.seed,
        wrap=wrap_one,
        sharing=case.sharing,
        learning=learning,
        late_count=case.late_count,
        disk=ForgetfulDisk if case.plant == "slot" else Disk,
        on_made=worlds.append,
    )
    world.chain.confirmations = CONFIRMATIONS
    world.idle = frozenset(case.byzantine)
    case.plan.apply(world)
    checkers = watch(
        world,
        byzantine=case.byzantine,
        amnesiacs=case.plan.amnesiacs,
        bound_ms=case.bound_ms,
        calm_ms=case.plan.calm_ms,
        is_beyond_a_third=case.plant == "third",
    )
    return world, checkers


def _learning(case: Case) -> Learning:
    if case.learning == "real":
        # torch takes seconds to import
        from p2pdfl.learning.learner import Learner
        from p2pdfl.sim.training import RealLearning

        return RealLearning(Learner(case.task))
    stand_in = StandIn()

    def forge(index: int, update: Digest) -> Digest:
        behaviour = case.byzantine.get(index)
        if behaviour != "garbage" and behaviour not in UPDATE_BEHAVIOURS:
            return update
        forged = bytes([update[0] ^ 1]) + update[1:]
        if behaviour == "garbage":
            stand_in.undecodable.add(forged)
        return forged

    stand_in.forge = forge
    return stand_in


def _measured_task(**fields: object) -> Task:
    from p2pdfl.learning.learner import measure

    return measure(Task.model_validate(fields))


def run_case(case: Case, sink: Sink | None = None) -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(caches.installed())
        if case.plant == "quorum":
            stack.enter_context(quorum_of_one_less())
        if case.plant == "impunity":
            stack.enter_context(impunity())
        world, checkers = make_world(case)
        world.log.sink = sink
        honest = [peer for index, peer in enumerate(world.peers) if index not in case.byzantine]

        def is_over() -> bool:
            if checkers.is_over:
                return True
            if world.now_ms < case.plan.calm_ms:
                return False
            # asked after every event: a loop stops at the first, without a generator
            for peer in honest:
                if peer.is_up and not peer.run.is_finished:
                    return False
            return checkers.is_chain_done

        world.run(until_ms=VIRTUAL_MS_MAX, until=is_over)
        if not checkers.is_over:
            checkers.at_end()
    return Outcome(
        seed=case.seed,
        digests={"log": world.log.digest},
        rounds=sum(checkers.history.views.values()),
        views=dict(sorted(checkers.history.views.items())),
        virtual_ms=world.now_ms,
        calm_ms=case.plan.calm_ms,
        events=world.log.line_count,
        violations=tuple(checkers.violations),
        out_of_bounds=checkers.out_of_bounds,
        about=_describe(case),
    )


def run_seed(draw: Draw, sink: Sink | None = None) -> Outcome:
    return run_case(
        draw_case(
            draw.seed,
            peers=draw.peers,
            rounds=draw.rounds,
            plant=cast("Plant | None", draw.plant),
            crypto=draw.crypto,
            learning=draw.learning,
        ),
        sink,
    )


def _describe(case: Case) -> str:
    liars = ", ".join(f"peer{index} {behaviour}" for index, behaviour in sorted(case.byzantine.items()))
    return f"{case.peer_count} peers, {case.task.total_rounds} rounds; Byzantine: {liars or 'nobody'}"
