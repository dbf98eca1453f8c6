"""Simulated members that really train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.task import Task
from p2pdfl.base.types import Accuse, Address, Digest, Judge, Kind, Outcome
from p2pdfl.byzantine.machine import UNDECODABLE_BEHAVIOURS, Behaviour, ByzantineMachine, Deviation, Poison
from p2pdfl.byzantine.updates import HonestUpdate, Poisoner
from p2pdfl.learning import compression
from p2pdfl.learning.learner import Learner, State, measure
from p2pdfl.learning.quantize import HEADER_BYTES, INT8
from p2pdfl.protocol.events import Train
from p2pdfl.protocol.run import Run
from p2pdfl.sim.hunt import draw_case, run_case
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.training import RealLearning
from p2pdfl.sim.world import Machine, World

from .runs import TASK, bans, run_checked

pytestmark = pytest.mark.slow

CHEAT = 1
DIGITS_DIMENSION = 17_226
FORMS = ["int8 none", "int8 zstd", "int4 none", "int4 zstd"]
"""Task.codes and Task.compression."""


def _learner(**fields: Any) -> Learner:
    task = {**TASK, "training_rounds": 6, "epoch_rounds": 4, "verdict_rounds": 2, **fields}
    return Learner(measure(Task.model_validate(task)))


@pytest.fixture(scope="module")
def learner() -> Learner:
    return _learner()


@pytest.fixture(scope="module")
def form(request: pytest.FixtureRequest) -> Learner:
    codes, compression = request.param.split()
    return _learner(codes=codes, compression=compression)


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


@pytest.mark.parametrize("behaviour", UNDECODABLE_BEHAVIOURS)
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_what_does_not_decode_is_an_objective_fault(form: Learner, behaviour: Behaviour) -> None:
    world, _ = a_training_world(form, Deviation(behaviour=behaviour, from_round=1))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"objective"}
    assert all(peer.run.banned.keys() == {world.address(CHEAT)} for peer in world.peers)


def _spoiled(update: bytes, at: int, value: int) -> bytes:
    return update[:at] + bytes([value & 255]) + update[at + 1 :]


FIRST_EXPONENT = HEADER_BYTES
INVALID: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no bytes": (lambda update: b"", "update has the wrong length"),
    "the header alone": (lambda update: update[:HEADER_BYTES], "update has the wrong length"),
    "a byte too few": (lambda update: update[:-1], "update has the wrong length"),
    "a byte too many": (lambda update: update + b"\0", "update has the wrong length"),
    "another round": (lambda update: _spoiled(update, 39, update[39] ^ 1), "update is under another header"),
    "another author": (lambda update: _spoiled(update, 40, update[40] ^ 1), "update is under another header"),
    "another dimension": (lambda update: _spoiled(update, 67, update[67] ^ 1), "update is under another header"),
    "a scale below any": (lambda update: _spoiled(update, FIRST_EXPONENT, -65), "update has an exponent out of range"),
    "a scale beyond any": (lambda update: _spoiled(update, FIRST_EXPONENT, 64), "update has an exponent out of range"),
    "a larger scale than needed": (
        lambda update: _zero_chunk(_spoiled(update, FIRST_EXPONENT, 20)),
        "update has an exponent that is not the smallest",
    ),
    "a code of -128": (lambda update: _spoiled(update, len(update) - 1, -128), "update has a code of -128"),
}


def _zero_chunk(update: bytes) -> bytes:
    start = HEADER_BYTES + INT8.chunk_count(DIGITS_DIMENSION)
    return update[:start] + bytes(INT8.chunk) + update[start + INT8.chunk :]


@pytest.mark.parametrize("what", INVALID)
def test_an_invalid_update_under_a_commit_gets_its_author_banned(
    learner: Learner, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it: the COMMIT and the bytes prove it to everybody."""
    spoil, refusal = INVALID[what]

    def train(poisoner: Poisoner, effect: Poison, parent: State, author: Address, honest: HonestUpdate) -> bytes:
        update = honest(author, effect.seed)
        if not effect.is_active:
            return update
        bad = spoil(update)
        found = learner.refusal(bad, task_id=learner.task.task_id(), round=effect.round, author=author)
        assert found == refusal
        return bad

    monkeypatch.setattr(Poisoner, "train", train)
    world, _ = a_training_world(learner, Deviation(behaviour="garbage", from_round=1))
    run_checked(world, byzantine=[CHEAT])
    assert all(peer.run.banned == {world.address(CHEAT): "objective"} for peer in world.peers)


class OfManyLibraries(RealLearning):
    """Each member compresses at a level of its own."""

    def train(self, effect: Train, index: int, author: Address) -> Digest:
        honest = self.updates[super().train(effect, index, author)]
        header = self.learner.header(task_id=self.learner.task.task_id(), round=effect.round, author=author)
        level = (-5, 1, 3, 9, 19)[index]
        return self._keep_update(effect.round, compression.shorten(self.learner._expanded(honest, header), level))


@pytest.mark.parametrize("form", ["int8 zstd", "int4 zstd"], indirect=True)
def test_libraries_that_compress_differently_accuse_nobody(form: Learner) -> None:
    real = OfManyLibraries(form)
    world = World(form.task, 5, seed=1, sharing=StandInSharing(), learning=real)
    run_checked(world)
    audits = [notice.fields["outcome"] for peer in world.peers for notice in peer.notices if notice.name == "audit"]
    assert len(audits) > 5
    assert set(audits) == {"false"}
    kinds = {packet.envelope.kind for peer in world.peers for packet in peer.sent}
    assert not kinds & {Kind.ACCUSE, Kind.JUDGE}
    assert len({len(update) for update in real.updates.values()}) > 5
    assert len({_last_state(world, index) for index in range(5)}) == 1


def test_colluders_find_nothing_against_each_other_and_are_caught_by_the_others(learner: Learner) -> None:
    cheats = (1, 2)
    worlds: list[World] = []

    def wrap(index: int, run: Run) -> Machine:
        colluders = {worlds[0].address(cheat) for cheat in cheats} - {run.address}
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


class Elsewhere(RealLearning):
    """Each member's machine rounds in its own way: no update is that of a replay."""

    def train(self, effect: Train, index: int, author: Address) -> Digest:
        honest = super().train(effect, index, author)
        if isinstance(effect, Poison):
            return honest
        header = self.learner.header(task_id=self._task_id, round=effect.round, author=author)
        vector = self.learner.decode(self.updates[honest], task_id=self._task_id, round=effect.round, author=author)
        noise = np.random.default_rng(index).standard_normal(vector.size)
        noise *= 0.003 * np.linalg.norm(vector) / np.linalg.norm(noise)
        return self._keep_update(effect.round, self.learner.encode(vector + noise, header))


@pytest.mark.parametrize("cheats", [(), (CHEAT,)])
def test_under_tolerant_machines_may_differ_and_only_the_cheat_is_banned(cheats: tuple[int, ...]) -> None:
    """With momentum in the state, which all have the same nevertheless."""
    learner = _learner(profile="tolerant", outer_momentum=0.5, outer_learning_rate=0.7)
    flips = Deviation(behaviour="sign_flip", from_round=1)

    def wrap(index: int, run: Run) -> Machine:
        return ByzantineMachine(run=run, deviation=flips) if index in cheats else run

    real = Elsewhere(learner)
    world = World(learner.task, 5, seed=1, wrap=wrap, sharing=StandInSharing(), learning=real)
    run_checked(world, byzantine=cheats)
    for peer in world.peers:
        assert peer.run.banned == {world.address(cheat): "guilty" for cheat in cheats}
    outcomes = {notice.fields["outcome"] for peer in world.peers for notice in peer.notices if notice.name == "audit"}
    assert outcomes == ({"false", "guilty"} if cheats else {"false"})
    (state,) = {_last_state(world, index) for index in range(5)}
    assert real.states[state].momentum.any()
    assert learner.evaluate(real.states[state]) > 0.6


def test_who_accuses_an_honest_member_under_tolerant_is_found_false() -> None:
    accuses = Deviation(behaviour="false_accuser", from_round=1)

    def wrap(index: int, run: Run) -> Machine:
        return ByzantineMachine(run=run, deviation=accuses) if index == CHEAT else run

    learner = _learner(profile="tolerant")
    world = World(learner.task, 5, seed=1, wrap=wrap, sharing=StandInSharing(), learning=Elsewhere(learner))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"false"}
    assert all(peer.run.banned.keys() == {world.address(CHEAT)} for peer in world.peers)


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
