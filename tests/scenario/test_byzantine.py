"""Each behaviour does what its name says, and no more."""

from __future__ import annotations

import secrets
from hashlib import sha256

import pytest

from p2pdfl.behaviours import Behaviour, ByzantineMachine, Deviation
from p2pdfl.compute import Compute
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning.learner import Learner
from p2pdfl.protocol.events import Replay, Train
from p2pdfl.protocol.run import Run
from p2pdfl.scenario.byzantine import ByzantineCompute
from p2pdfl.sim.world import World, stand_in_task
from p2pdfl.task import Task
from p2pdfl.types import Outcome

TASK_ID = bytes(32)
FROM_ROUND = 3


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(Task(local_steps=2))


@pytest.fixture(scope="module")
def keys() -> Keys:
    return derive(bytes(range(32)))


def byzantine(learner: Learner, keys: Keys, behaviour: Behaviour) -> ByzantineCompute:
    deviation = Deviation(behaviour=behaviour, from_round=FROM_ROUND)
    return ByzantineCompute(learner, TASK_ID, keys, secrets.token_bytes, deviation)


def train(learner: Learner, round: int) -> Train:
    return Train(round=round, parent_state=learner.initial_state().digest(), seed=sha256(b"seed").digest())


def judge(learner: Learner, keys: Keys, update: bytes, effect: Train) -> Outcome:
    """What an honest juror finds."""
    replay = Replay(
        audited_round=effect.round,
        parent_state=effect.parent_state,
        seed=effect.seed,
        author=keys.address,
        update=sha256(update).digest(),
    )
    honest = Compute(learner, TASK_ID, derive(bytes(32)), secrets.token_bytes)
    return honest.replay(replay, learner.initial_state(), update)


@pytest.mark.parametrize("behaviour", ["sign_flip", "scale", "noise", "label_flip"])
def test_a_poisoned_update_decodes_and_only_its_replay_tells(
    learner: Learner, keys: Keys, behaviour: Behaviour
) -> None:
    effect = train(learner, FROM_ROUND)
    update = byzantine(learner, keys, behaviour).train(effect, learner.initial_state())
    assert learner.is_valid(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)
    assert judge(learner, keys, update, effect) is Outcome.GUILTY


@pytest.mark.parametrize("behaviour", ["sign_flip", "scale", "noise", "label_flip", "garbage"])
def test_before_its_round_a_cheater_is_honest(learner: Learner, keys: Keys, behaviour: Behaviour) -> None:
    effect = train(learner, FROM_ROUND - 1)
    update = byzantine(learner, keys, behaviour).train(effect, learner.initial_state())
    assert judge(learner, keys, update, effect) is Outcome.FALSE


def test_garbage_has_the_right_size_and_does_not_decode(learner: Learner, keys: Keys) -> None:
    effect = train(learner, FROM_ROUND)
    honest = learner.train(
        learner.initial_state(), seed=effect.seed, task_id=TASK_ID, round=FROM_ROUND, author=keys.address
    )
    update = byzantine(learner, keys, "garbage").train(effect, learner.initial_state())
    assert len(update) == len(honest)
    assert not learner.is_valid(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)


def test_a_cheater_still_judges_others_with_honest_labels(learner: Learner, keys: Keys) -> None:
    effect = train(learner, FROM_ROUND)
    other = derive(bytes(32))
    update = Compute(learner, TASK_ID, other, secrets.token_bytes).train(effect, learner.initial_state())
    replay = Replay(
        audited_round=FROM_ROUND,
        parent_state=effect.parent_state,
        seed=effect.seed,
        author=other.address,
        update=sha256(update).digest(),
    )
    juror = byzantine(learner, keys, "label_flip")
    assert juror.replay(replay, learner.initial_state(), update) is Outcome.FALSE


def machine(behaviour: Behaviour) -> tuple[World, ByzantineMachine]:
    """Four members of whom the first cheats from round 1 on."""
    wrapped: list[ByzantineMachine] = []

    def wrap(index: int, run: Run) -> Run | ByzantineMachine:
        if index != 0:
            return run
        wrapped.append(ByzantineMachine(run=run, deviation=Deviation(behaviour=behaviour, from_round=1)))
        return wrapped[0]

    world = World(stand_in_task(training_rounds=2, epoch_rounds=5, members_min=4), 4, seed=5, wrap=wrap)
    return world, wrapped[0]


@pytest.mark.slow
def test_an_equivocator_is_banned_on_its_two_commits() -> None:
    world, _ = machine("equivocate")
    world.run(until_ms=60_000, until=world.is_finished)
    assert world.peers[1].run.banned == {world.address(0): "equivocation"}


@pytest.mark.slow
def test_who_withholds_its_share_is_absent_but_not_banned() -> None:
    world, _ = machine("withhold_share")
    world.run(until_ms=120_000, until=lambda: all(peer.run.is_finished for peer in world.peers[1:]))
    honest = world.peers[1]
    assert honest.run.is_finished
    assert honest.run.banned == {}
    named = {entry.member for entry in honest.closed[2].contents.commits}
    assert named == {1, 2, 3}


@pytest.mark.slow
def test_a_withheld_update_is_not_in_the_head_and_its_author_not_banned() -> None:
    world, _ = machine("withhold_update")
    world.run(until_ms=120_000, until=world.is_finished)
    honest = world.peers[1]
    assert honest.run.banned == {}
    committed = {entry.member for entry in honest.closed[1].contents.commits}
    revealed = {entry.member for entry in honest.closed[1].contents.updates}
    assert 0 in committed - revealed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nap:3", "no behaviour 'nap'"),
        ("sign_flip", "names no round"),
        ("sign_flip:-1", "names no round"),
        ("scale:1:x", "factor"),
    ],
)
def test_a_deviation_that_cannot_be_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Deviation.parse(text)


def test_a_deviation_is_read_with_its_factor() -> None:
    assert Deviation.parse("scale:5:-1000") == Deviation(behaviour="scale", from_round=5, factor=-1000.0)
