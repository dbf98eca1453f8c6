"""Simulated members that really train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pdfl.behaviours import ByzantineMachine, Deviation
from p2pdfl.codec import decode_payload
from p2pdfl.learning.learner import Learner, measure
from p2pdfl.protocol.run import Run
from p2pdfl.sim.hunt import draw_case, run_case
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.training import RealLearning
from p2pdfl.sim.world import Machine, World
from p2pdfl.task import Task
from p2pdfl.types import Accuse, Judge, Outcome

from .runs import TASK, bans, run_checked

pytestmark = pytest.mark.slow

CHEAT = 1


@pytest.fixture(scope="module")
def learner() -> Learner:
    task = {**TASK, "training_rounds": 6, "epoch_rounds": 4, "verdict_rounds": 2}
    return Learner(measure(Task.model_validate(task)))


def a_training_world(learner: Learner, deviation: Deviation | None, **learning: int) -> tuple[World, RealLearning]:
    def wrap(index: int, run: Run) -> Machine:
        return run if deviation is None or index != CHEAT else ByzantineMachine(run=run, deviation=deviation)

    real = RealLearning(learner, **learning)
    return World(learner.task, 5, seed=1, wrap=wrap, sharing=StandInSharing(), learning=real), real


def _last_state(world: World, index: int) -> bytes:
    return world.peers[index].closed[world.task.total_rounds - 1].head.state


def test_all_close_the_same_model_and_it_learns(learner: Learner) -> None:
    world, real = a_training_world(learner, None)
    run_checked(world)
    states = {_last_state(world, index) for index in range(5)}
    assert len(states) == 1
    before, after = learner.evaluate(learner.initial_state()), learner.evaluate(real.states[states.pop()])
    assert before < 0.3 < 0.6 < after


def test_who_flips_signs_is_found_by_a_replay_and_banned(learner: Learner) -> None:
    world, _ = a_training_world(learner, Deviation(behaviour="sign_flip", from_round=1))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"guilty"}
    assert all(peer.run.banned.keys() == {world.address(CHEAT)} for peer in world.peers)


def test_garbage_is_an_objective_fault(learner: Learner) -> None:
    world, _ = a_training_world(learner, Deviation(behaviour="garbage", from_round=1))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"objective"}


def test_colluders_find_nothing_against_each_other_and_are_caught_by_the_others(learner: Learner) -> None:
    cheats, worlds = (1, 2), []

    def wrap(index: int, run: Run) -> Machine:
        colluders = {worlds[0].address(cheat) for cheat in cheats} - {run.setup.address}
        deviation = Deviation(behaviour="alie", from_round=0, colluders=frozenset(colluders))
        return ByzantineMachine(run=run, deviation=deviation) if index in cheats else run

    real = RealLearning(learner)
    world = World(learner.task, 7, seed=2, wrap=wrap, sharing=StandInSharing(), learning=real, on_made=worlds.append)
    run_checked(world, byzantine=cheats)
    assert all(bans(world, cheat) == {"guilty"} for cheat in cheats)
    findings = []
    for cheat in cheats:
        for packet in world.peers[cheat].sent:
            payload = decode_payload(packet)
            if isinstance(payload, Accuse | Judge):
                accused = world.peers[0].run.epochs[packet.envelope.epoch].addresses[payload.accused]
                assert accused == world.address(3 - cheat)
                assert isinstance(payload, Judge)
                findings.append(payload.outcome)
    assert set(findings) == {Outcome.VOID}


def test_what_nobody_asks_about_any_more_is_forgotten_and_changes_nothing(learner: Learner) -> None:
    forgetful, few = a_training_world(learner, None, kept_rounds=3)
    keeping, all_of_them = a_training_world(learner, None)
    assert _last_state(run_checked(forgetful), 0) == _last_state(run_checked(keeping), 0)
    assert len(few.updates) < len(all_of_them.updates)
    assert len(few.states) < len(all_of_them.states)


@pytest.mark.parametrize("seed", [2, 5])
def test_a_drawn_run_with_real_learning_holds(seed: int) -> None:
    """Of eleven and of fifteen peers; faults and liars as with the stand-in."""
    result = run_case(draw_case(seed, learning="real"))
    assert result.violations == ()
    assert result.rounds > 0


def test_real_learning_changes_nothing_else_of_what_a_seed_draws() -> None:
    stand_in, real = draw_case(7), draw_case(7, learning="real")
    assert replace(stand_in, task=real.task, learning="real", sharing=real.sharing) == real
