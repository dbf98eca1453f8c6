"""Each attack is the vector that its paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.byzantine import attacks
from p2pdfl.byzantine.machine import UPDATE_BEHAVIOURS


def vectors(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    return [1.0 + rng.standard_normal(200) for _ in range(count)]


@given(st.integers(1, 12), st.floats(0.01, 10), st.integers(0, 1000))
def test_inner_product_manipulation_points_against_the_honest_mean(count: int, factor: float, seed: int) -> None:
    honest = vectors(count, seed)
    mean = sum(honest) / count
    sent = attacks.inner_product_manipulation(honest, factor)
    assert np.allclose(sent, -factor * mean)
    assert np.dot(sent, mean) < 0


@pytest.mark.parametrize("factor", [0.76, 1.5])
def test_a_little_is_so_many_deviations_from_the_honest_mean_in_each_coordinate(factor: float) -> None:
    honest = np.stack(vectors(9))
    sent = attacks.a_little_is_enough(list(honest), factor)
    assert np.allclose((honest.mean(axis=0) - sent) / honest.std(axis=0), factor)


def test_what_hides_in_the_spread_of_equal_updates_is_the_update() -> None:
    (own,) = vectors(1)
    assert np.allclose(attacks.a_little_is_enough([own, own, own], 1.5), own)


def test_noise_has_the_factor_times_the_updates_root_mean_square() -> None:
    (own,) = vectors(1)
    added = attacks.noisy(own, 10.0, attacks.generator(b"test", b"1")) - own
    assert np.sqrt(np.mean(added**2)) / np.sqrt(np.mean(own**2)) == pytest.approx(10, rel=0.2)


def test_colluders_take_one_direction_each_as_long_as_its_own_update_says() -> None:
    one, other = vectors(2)
    sent = [attacks.random_direction(own, 1000.0, attacks.generator(b"direction", b"round 3")) for own in (one, other)]
    cosine = np.dot(*sent) / np.linalg.norm(sent[0]) / np.linalg.norm(sent[1])
    assert cosine == pytest.approx(1)
    assert np.linalg.norm(sent[1]) == pytest.approx(1000 * np.linalg.norm(other))


def test_the_pattern_is_on_the_last_values_and_changes_nothing_else() -> None:
    inputs = torch.rand(5, 2, 4)
    marked = attacks.triggered(inputs, torch.tensor(7.0))
    assert (marked[:, 1, -attacks.TRIGGER_SIZE :] == 7).all()
    assert (marked[:, 0] == inputs[:, 0]).all()
    assert (marked[:, 1, : -attacks.TRIGGER_SIZE] == inputs[:, 1, : -attacks.TRIGGER_SIZE]).all()
    assert (inputs < 1).all()


def test_half_of_what_plants_a_backdoor_is_as_it_was() -> None:
    inputs, classes = torch.rand(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    more, labels = attacks.with_backdoor(inputs, classes)
    assert (more[:6] == inputs).all()
    assert (labels[:6] == classes).all()
    assert (labels[6:] == attacks.TARGET_CLASS).all()


def test_flipping_labels_twice_changes_nothing() -> None:
    classes = torch.tensor([0, 3, 9, 4])
    assert attacks.flipped_labels(classes).tolist() == [9, 6, 0, 5]
    assert (attacks.flipped_labels(attacks.flipped_labels(classes)) == classes).all()


def test_a_factor_is_only_for_attacks_that_there_are() -> None:
    assert attacks.DEFAULT_FACTORS.keys() <= set(UPDATE_BEHAVIOURS)
