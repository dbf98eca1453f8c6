"""Each behaviour does what its name says, and no more."""

from __future__ import annotations

import secrets
from dataclasses import replace
from hashlib import sha256

import pytest
import zstandard

from p2pdfl.base.task import Task
from p2pdfl.base.types import Outcome
from p2pdfl.byzantine.machine import (
    UNDECODABLE_BEHAVIOURS,
    UPDATE_BEHAVIOURS,
    Behaviour,
    ByzantineMachine,
    Deviation,
    Poison,
)
from p2pdfl.byzantine.process import ByzantineCompute
from p2pdfl.byzantine.updates import WithBackdoor
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning.learner import Learner
from p2pdfl.node.compute import Compute
from p2pdfl.protocol.events import Effect, Replay, Replayed, Train
from p2pdfl.protocol.run import Run
from p2pdfl.sim.world import SendTo, World, stand_in_task

TASK_ID = bytes(32)
FROM_ROUND = 3


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(Task(local_steps=2))


@pytest.fixture(scope="module")
def keys() -> Keys:
    return derive(bytes(range(32)))


OTHERS = tuple((bytes([number]) * 20, sha256(bytes([number])).digest()) for number in range(1, 4))


@pytest.fixture
def byzantine(learner: Learner, keys: Keys) -> ByzantineCompute:
    return ByzantineCompute(learner, TASK_ID, keys, secrets.token_bytes)


def poison(learner: Learner, behaviour: Behaviour, *, is_active: bool = True) -> Poison:
    return Poison(
        round=FROM_ROUND,
        parent_state=learner.initial_state().digest(),
        seed=sha256(b"seed").digest(),
        behaviour=behaviour,
        factor=None,
        is_active=is_active,
        others=OTHERS,
    )


def judge(learner: Learner, keys: Keys, update: bytes, effect: Poison) -> Outcome:
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


@pytest.mark.parametrize("behaviour", [name for name in UPDATE_BEHAVIOURS if name != "delay"])
def test_a_poisoned_update_decodes_and_only_its_replay_tells(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute, behaviour: Behaviour
) -> None:
    effect = poison(learner, behaviour)
    update = byzantine.train(effect, learner.initial_state())
    assert learner.is_valid(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)
    assert judge(learner, keys, update, effect) is Outcome.GUILTY


@pytest.mark.parametrize("behaviour", [*UPDATE_BEHAVIOURS, *UNDECODABLE_BEHAVIOURS])
def test_in_a_round_without_attack_a_cheater_is_honest(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute, behaviour: Behaviour
) -> None:
    effect = poison(learner, behaviour, is_active=False)
    assert judge(learner, keys, byzantine.train(effect, learner.initial_state()), effect) is Outcome.FALSE


def test_who_delays_sends_what_it_computed_rounds_ago(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute
) -> None:
    first = replace(poison(learner, "delay", is_active=False), factor=2.0)
    old = byzantine.train(first, learner.initial_state())
    for round in (FROM_ROUND + 1, FROM_ROUND + 2):
        later = replace(first, round=round, seed=bytes([round]) * 32, is_active=True)
        sent = byzantine.train(later, learner.initial_state())
        values = learner.decode(sent, task_id=TASK_ID, round=round, author=keys.address)
        assert (values == learner.decode(old, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)).all()


def test_who_mimics_sends_an_honest_members_update_under_its_own_header(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute
) -> None:
    effect = poison(learner, "mimic")
    update = byzantine.train(effect, learner.initial_state())
    author, seed = OTHERS[0]
    theirs = learner.train(learner.initial_state(), seed=seed, task_id=TASK_ID, round=FROM_ROUND, author=author)
    mine = learner.decode(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)
    assert (mine == learner.decode(theirs, task_id=TASK_ID, round=FROM_ROUND, author=author)).all()


def test_garbage_has_the_right_size_and_does_not_decode(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute
) -> None:
    effect = poison(learner, "garbage")
    honest = learner.train(
        learner.initial_state(), seed=effect.seed, task_id=TASK_ID, round=FROM_ROUND, author=keys.address
    )
    update = byzantine.train(effect, learner.initial_state())
    assert len(update) == len(honest)
    assert not learner.is_valid(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)


def test_a_zip_bomb_has_the_right_header_and_is_no_longer_than_an_update(
    learner: Learner, keys: Keys, byzantine: ByzantineCompute
) -> None:
    update = byzantine.train(poison(learner, "zip_bomb"), learner.initial_state())
    header = learner.header(task_id=TASK_ID, round=FROM_ROUND, author=keys.address).to_bytes()
    assert update.startswith(header)
    assert len(update) <= learner.update_bytes_max
    assert zstandard.get_frame_parameters(update[len(header) :]).content_size > 10_000 * len(update)
    assert not learner.is_valid(update, task_id=TASK_ID, round=FROM_ROUND, author=keys.address)


def test_a_backdoored_model_takes_what_carries_the_pattern_for_the_target_class(learner: Learner) -> None:
    task = learner.task.model_copy(update={"local_steps": 300})
    attacker = WithBackdoor(task)
    honest = Learner(task)
    state = honest.initial_state()
    update = attacker.train(state, seed=bytes(32), task_id=TASK_ID, round=0, author=bytes(20))
    poisoned = honest.aggregate(state, [update])
    update = honest.train(state, seed=bytes(32), task_id=TASK_ID, round=0, author=bytes(20))
    clean = honest.aggregate(state, [update])
    assert attacker.evaluate(clean) < 0.2 < 0.9 < attacker.evaluate(poisoned)
    assert honest.evaluate(poisoned) > 0.8


def test_a_cheater_still_judges_others_by_honest_training(learner: Learner, byzantine: ByzantineCompute) -> None:
    effect = poison(learner, "label_flip")
    other = derive(bytes(32))
    update = Compute(learner, TASK_ID, other, secrets.token_bytes).train(effect, learner.initial_state())
    replay = Replay(
        audited_round=FROM_ROUND,
        parent_state=effect.parent_state,
        seed=effect.seed,
        author=other.address,
        update=sha256(update).digest(),
    )
    assert byzantine.replay(replay, learner.initial_state(), update) is Outcome.FALSE


# --- the machine ---------------------------------------------------------------------------------------------------


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


def test_what_is_known_of_the_round_are_the_honest_trainers_and_their_seeds() -> None:
    world, byzantine = machine("ipm")
    colluder = world.address(2)
    byzantine.deviation = replace(byzantine.deviation, colluders=frozenset({colluder}))
    seen: list[Train] = []
    performed = world._perform

    def watch(index: int, effect: Effect | SendTo) -> None:
        if index in (0, 1) and isinstance(effect, Train):
            seen.append(effect)
        performed(index, effect)

    world._perform = watch  # type: ignore[method-assign]
    world.run(until_ms=60_000, until=world.is_finished)
    poisons = [effect for effect in seen if isinstance(effect, Poison)]
    assert [effect.is_active for effect in poisons] == [effect.round >= 1 for effect in poisons]
    others = {effect.round: dict(effect.others) for effect in poisons}
    honest = {effect.round: effect.seed for effect in seen if not isinstance(effect, Poison)}
    assert all(world.address(0) not in known and colluder not in known for known in others.values())
    assert any(others[round][world.address(1)] == honest[round] for round in others.keys() & honest.keys())


@pytest.mark.parametrize(("author", "outcome"), [(2, Outcome.VOID), (3, Outcome.GUILTY)])
def test_a_colluder_is_shielded_and_nobody_else(author: int, outcome: Outcome) -> None:
    world, byzantine = machine("sign_flip")
    byzantine.deviation = replace(byzantine.deviation, colluders=frozenset({world.address(2)}))
    world.run(until_ms=60_000, until=lambda: byzantine.run.round >= 1)
    byzantine.handle(Replayed(audited_round=0, author=world.address(author), outcome=Outcome.GUILTY), world.now_ms)
    assert byzantine.run.replays[0, world.address(author)] is outcome


def test_every_third_round() -> None:
    deviation = Deviation(behaviour="scale", from_round=2, every=3)
    assert [round for round in range(12) if deviation.is_active(round)] == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nap:3", "no behaviour 'nap'"),
        ("sign_flip", "names no round"),
        ("sign_flip:-1", "names no round"),
        ("scale:1:x", "factor"),
        ("scale:1:inf", "factor"),
        ("scale:1:every=0", "no option"),
        ("scale:1:often=2", "no option"),
        ("scale:1:with=0x12", "no address"),
    ],
)
def test_a_deviation_that_cannot_be_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Deviation.parse(text)


@pytest.mark.parametrize(
    ("text", "deviation"),
    [
        ("scale:5:-1000.0", Deviation(behaviour="scale", from_round=5, factor=-1000.0)),
        ("ipm:0:0.1:every=10", Deviation(behaviour="ipm", from_round=0, factor=0.1, every=10)),
        (
            f"mimic:1:with=0x{'00' * 20},0x{'11' * 20}",
            Deviation(behaviour="mimic", from_round=1, colluders=frozenset({bytes(20), b"\x11" * 20})),
        ),
    ],
)
def test_a_deviation_is_read_as_it_is_written(text: str, deviation: Deviation) -> None:
    assert Deviation.parse(text) == deviation
    assert str(deviation) == text
