from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2pdfl.base.types import Outcome
from p2pdfl.learning.learner import Learner
from p2pdfl.learning.quantize import INT8, decode, encode, header_of
from p2pdfl.learning.replay import relative_distance

Train = Callable[..., bytes]


def moved(update: bytes, distance: float) -> bytes:
    """An update about this far from the given one, relative to its norm."""
    vector = decode(update, header_of(update))
    noise = np.random.default_rng(0).standard_normal(vector.size)
    noise *= distance * np.linalg.norm(vector) / np.linalg.norm(noise)
    return encode(vector + noise, header_of(update))


def scaled(update: bytes, factor: float) -> bytes:
    return encode(decode(update, header_of(update)) * factor, header_of(update))


def test_an_equal_replay_finds_the_accusation_false(learner: Learner, train: Train) -> None:
    assert learner.compare(train(), train()) == Outcome.FALSE


@pytest.mark.parametrize("factor", [-1000.0, -1.0, 0.0, 0.9, 1.1, 1000.0, 1e300])
def test_a_scaled_update_is_guilty(learner: Learner, train: Train, factor: float) -> None:
    assert learner.compare(scaled(train(), factor), train()) == Outcome.GUILTY


@pytest.mark.parametrize("field", ["seed", "task_id", "round", "author"])
def test_an_update_of_another_assignment_is_guilty(learner: Learner, train: Train, field: str) -> None:
    other = {"seed": b"\1" * 32, "task_id": b"\1" * 32, "round": 4, "author": b"\1" * 20}[field]
    assert learner.compare(train(**{field: other}), train()) == Outcome.GUILTY


@pytest.mark.parametrize("claimed", [b"", b"junk", bytes(17311)])
def test_an_update_that_does_not_decode_is_guilty(learner: Learner, train: Train, claimed: bytes) -> None:
    assert learner.compare(claimed, train()) == Outcome.GUILTY


def test_a_nearly_equal_update_is_void(learner: Learner, train: Train) -> None:
    assert learner.compare(moved(train(), 0.01), train()) == Outcome.VOID


def test_one_code_off_is_void(learner: Learner, train: Train) -> None:
    update = bytearray(train())
    update[-1] ^= 1
    assert learner.compare(bytes(update), train()) == Outcome.VOID


def test_an_update_beyond_the_tolerance_is_guilty(learner: Learner, train: Train) -> None:
    assert learner.compare(moved(train(), 0.03), train()) == Outcome.GUILTY


def test_something_against_a_zero_replay_is_guilty(learner: Learner, train: Train) -> None:
    assert learner.compare(train(), scaled(train(), 0.0)) == Outcome.GUILTY


@pytest.mark.parametrize("distance", [0.005, 0.03, 0.3])
def test_the_distance_is_that_of_the_decoded_vectors(train: Train, distance: float) -> None:
    claimed, replayed = moved(train(), distance), train()
    a, b = decode(claimed, header_of(claimed)), decode(replayed, header_of(replayed))
    assert relative_distance(claimed, replayed, INT8) == pytest.approx(
        np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-9
    )


def test_nothing_carries_over_between_calls(train: Train) -> None:
    first = train()
    train(seed=b"\7" * 32)
    assert train() == first


def test_calls_from_several_threads_at_once_give_the_same_bytes(train: Train) -> None:
    seeds = [bytes([i]) * 32 for i in range(4)] * 2
    alone = [train(seed=seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: train(seed=seed), seeds)) == alone
