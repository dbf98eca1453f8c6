"""One cell of a study's table: one simulated run, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from p2pdfl.base.task import Rule, Task
from p2pdfl.base.types import Address, Digest
from p2pdfl.byzantine.machine import ByzantineMachine, Poison
from p2pdfl.byzantine.updates import WithBackdoor
from p2pdfl.learning.learner import Learner, measure
from p2pdfl.protocol.events import Train
from p2pdfl.protocol.run import Run
from p2pdfl.sim import caches
from p2pdfl.sim.learning import StandIn, honest_update
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.training import RealLearning
from p2pdfl.sim.world import Machine, World, stand_in_task
from p2pdfl.study.spec import Attack, Study

LATENCY_MS = (1, 2)
"""Shorter than every timer by far: no message is ever late."""
_NEVER_MS = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Cell:
    attack: Attack
    rule: Rule
    audits: float
    seed: int

    @property
    def key(self) -> tuple[str, str, float, int]:
        return (self.attack.name, self.rule, self.audits, self.seed)


@dataclass(frozen=True, kw_only=True)
class Row:
    attack: str
    rule: str
    audits: float
    seed: int
    rounds: int
    """That were run."""
    accuracy: float | None
    """On the test set at the end.  None: nothing was learned (stand-in)."""
    backdoor_success: float | None
    """Of a backdoor, and of no attack beside it: the share of what carries the pattern that is taken for the target
    class."""
    banned: int
    """Of the Byzantine members, at the end."""
    honest_banned: int
    all_banned_after: int | None
    """Rounds until the last Byzantine member was banned."""
    bytes_per_update: float | None
    """Mean over what honest members send."""

    @property
    def key(self) -> tuple[str, str, float, int]:
        return (self.attack, self.rule, self.audits, self.seed)


def cells(study: Study) -> list[Cell]:
    """Seed by seed, so that a table that is stopped has something of everything."""
    return [
        Cell(attack=attack, rule=rule, audits=audits, seed=seed)
        for seed in study.seeds
        for audits in study.audits
        for rule in study.rules
        for attack in study.attacks
    ]


def identity(study: Study) -> dict[str, str]:
    """What the names of the model and of the data do not say: their code may have changed.  Raises TaskError."""
    if study.learning == "stand-in":
        return {}
    task = _measured(_named(study, cells(study)[0]).model_copy(update={"seed": 0}))
    assert task.data_digest is not None, "measured"
    assert task.reference_replay is not None, "measured"
    return {"data's digest": task.data_digest.hex(), "model's first update": task.reference_replay.hex()}


def run_cell(study: Study, cell: Cell) -> Row:
    """Raises TaskError: the study's model or data are unusable."""
    task = _task(study, cell)
    worlds: list[World] = []

    def byzantine() -> frozenset[Address]:
        # which indices does not matter: they follow from addresses, which are random
        return frozenset(entry.address for entry in worlds[0].registrations[: study.byzantine])

    def wrap(index: int, run: Run) -> Machine:
        colluders = byzantine()
        deviation = cell.attack.deviation(colluders - {run.address})
        if deviation is None or run.address not in colluders:
            return run
        return ByzantineMachine(run=run, deviation=deviation)

    real = None if study.learning == "stand-in" else RealLearning(_learner(task), kept_rounds=_kept_rounds(task))
    with caches.installed():
        world = World(
            task,
            study.peers,
            seed=cell.seed,
            latency_ms=LATENCY_MS,
            wrap=wrap,
            sharing=StandInSharing(),
            learning=real or _FlippedDigests(),
            on_made=worlds.append,
        )
        attackers = byzantine()
        witness = world.peers[-1]  # honest, since the Byzantine come first

        def is_over() -> bool:
            # without a model there is nothing to wait for once all are banned
            has_all = real is None and len(witness.run.banned) >= len(attackers) > 0
            return has_all or world.is_finished()

        world.run(until_ms=_NEVER_MS, until=is_over)
    banned = witness.run.banned.keys() & attackers
    ban_rounds = [int(str(notice.fields["round"])) for notice in witness.notices if notice.name == "ban"]
    state = None if real is None else real.states[witness.closed[task.total_rounds - 1].head.state]
    return Row(
        attack=cell.attack.name,
        rule=cell.rule,
        audits=cell.audits,
        seed=cell.seed,
        rounds=len(witness.closed),
        accuracy=None if state is None else round(_learner(task).evaluate(state), 6),
        backdoor_success=(
            None
            if state is None or cell.attack.behaviour not in ("none", "backdoor")
            else round(_with_backdoor(task).evaluate(state), 6)
        ),
        banned=len(banned),
        honest_banned=len(witness.run.banned) - len(banned),
        all_banned_after=1 + max(ban_rounds) if banned and banned == attackers else None,
        bytes_per_update=None if real is None else round(real.bytes_per_update, 1),
    )


class _FlippedDigests(StandIn):
    """An attack is another digest."""

    def train(self, effect: Train, index: int, author: Address) -> Digest:
        update = honest_update(effect.parent_state, effect.seed)
        if isinstance(effect, Poison) and effect.is_active:
            update = bytes([update[0] ^ 1]) + update[1:]
        self._authors.setdefault(update, author)
        return update


def _task(study: Study, cell: Cell) -> Task:
    task = _named(study, cell)
    return stand_in_task(**task.model_dump(exclude_unset=True)) if study.learning == "stand-in" else _measured(task)


def _named(study: Study, cell: Cell) -> Task:
    own = {"rule": cell.rule, "audit_fraction": cell.audits, "seed": cell.seed, "members_min": study.peers}
    return Task.model_validate(study.task.model_dump(exclude_unset=True) | {"name": study.name} | own)


@lru_cache(maxsize=1)
def _measured(task: Task) -> Task:
    return measure(task)


@lru_cache(maxsize=1)
def _learner(task: Task) -> Learner:
    return Learner(task)


@lru_cache(maxsize=1)
def _with_backdoor(task: Task) -> WithBackdoor:
    return WithBackdoor(task)


def _kept_rounds(task: Task) -> int:
    """Nobody is ever behind here, so only audits ask about the past."""
    return 4 + task.verdict_rounds
