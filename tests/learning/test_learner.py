from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest

from p2pdfl.base.task import Task, TaskError
from p2pdfl.learning.learner import DigestMismatch, Learner, ReplayMismatch, State, measure
from p2pdfl.learning.quantize import decode, encode, header_of

TRAINERS = 8
ATTACK_ROUND, BAN_ROUND = 3, 8


def test_a_measured_task_is_accepted_where_it_was_measured() -> None:
    task = measure(Task())
    assert task.is_measured
    assert task.task_id()
    Learner(task).check_reference()


def test_measuring_again_gives_the_same_task() -> None:
    task = measure(Task())
    assert measure(task) == task


@pytest.mark.parametrize("field", ["data_digest", "initial_state"])
def test_learner__reject__digest_is_not_the_tasks(field: str) -> None:
    with pytest.raises(DigestMismatch, match=f"^{field}: the task says 00"):
        Learner(measure(Task()).model_copy(update={field: bytes(32)}))


def test_check_reference__reject__another_replay() -> None:
    with pytest.raises(ReplayMismatch, match=r"^reference_replay: the task says 00"):
        Learner(measure(Task()).model_copy(update={"reference_replay": bytes(32)})).check_reference()


def test_check_reference__reject__unmeasured_task() -> None:
    with pytest.raises(TaskError, match="not published yet"):
        Learner(Task()).check_reference()


def test_only_the_exact_header_makes_an_update_valid(learner: Learner, train: Callable[..., bytes]) -> None:
    header = {"task_id": bytes(range(32)), "round": 3, "author": bytes(20)}
    assert learner.is_valid(train(), **header)  # type: ignore[arg-type]
    assert not learner.is_valid(train(), **(header | {"round": 4}))  # type: ignore[arg-type]
    assert not learner.is_valid(train()[:-1], **header)  # type: ignore[arg-type]


def test_without_updates_the_state_stays(learner: Learner) -> None:
    assert learner.aggregate(learner.initial_state(), []).digest() == learner.initial_state().digest()


def test_one_update_is_applied_as_it_is(learner: Learner, train: Callable[..., bytes]) -> None:
    after = learner.aggregate(learner.initial_state(), [train()])
    taken = learner.initial_state().parameters - after.parameters
    assert np.allclose(taken, decode(train(), header_of(train())), atol=1e-15)


def test_two_updates_are_accepted(learner: Learner, train: Callable[..., bytes]) -> None:
    updates = [train(), train(seed=b"\1" * 32)]
    assert learner.evaluate(learner.aggregate(learner.initial_state(), updates)) > learner.evaluate(
        learner.initial_state()
    )


def test_a_diverged_state_still_has_a_replay(learner: Learner) -> None:
    """Under the mean, an attacker can bring the model to where training gives NaN; rounds go on all the same."""
    state = State(parameters=np.full(learner.dimension, 1e200), momentum=np.zeros(learner.dimension))
    update = learner.train(state, seed=bytes(32), task_id=bytes(32), round=0, author=bytes(20))
    assert learner.is_valid(update, task_id=bytes(32), round=0, author=bytes(20))
    assert np.isfinite(learner.aggregate(state, [update]).parameters).all()


def simulate(learner: Learner, factor: float | None = None) -> float:
    """Final accuracy: half of the trainers audit in each round; trainer 0 may scale its updates until it is banned."""
    state, task_id = learner.initial_state(), bytes(32)
    order = np.random.default_rng(0)
    for round in range(learner.task.training_rounds):
        updates = []
        for trainer in sorted(order.permutation(TRAINERS)[: TRAINERS // 2]):
            attacks = factor is not None and trainer == 0 and round >= ATTACK_ROUND
            if attacks and round >= BAN_ROUND:
                continue
            seed = sha256(bytes([round, trainer])).digest()
            update = learner.train(state, seed=seed, task_id=task_id, round=round, author=bytes([trainer]) * 20)
            if attacks and factor is not None:
                update = encode(decode(update, header_of(update)) * factor, header_of(update))
            updates.append(update)
        state = learner.aggregate(state, updates)
    return learner.evaluate(state)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [None, -1.0, -1000.0])
def test_default_task_reaches_93_percent(learner: Learner, factor: float | None) -> None:
    assert simulate(learner, factor) >= 0.93


@pytest.mark.slow
def test_control__the_mean_breaks_under_one_thousandfold_sign_flip() -> None:
    assert simulate(Learner(Task(rule="mean")), -1000.0) <= 0.30


@pytest.mark.slow
def test_nesterov_outer_steps_train_too() -> None:
    assert simulate(Learner(Task(outer_momentum=0.5, outer_learning_rate=0.7))) >= 0.93
