"""MDA's subset is that of a search through all of them, and costs no more than it may."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.learning.subset import minimum_diameter_subset


def diameter(distances: np.ndarray, subset: tuple[int, ...] | list[int]) -> float:
    return float(distances[np.ix_(subset, subset)].max())


def random_graph(count: int, density: float, seed: int) -> np.ndarray:
    """Distances of about 1 or about 2: as far from what guides the search as distances can be."""
    draw = np.random.default_rng(seed)
    upper = np.triu(1 + (draw.random((count, count)) < density) + 1e-3 * draw.random((count, count)), 1)
    distances: np.ndarray = upper + upper.T
    return distances


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**32 - 1), st.data())
def test_the_subset_is_the_first_of_least_diameter(count: int, steps: int, seed: int, data: st.DataObject) -> None:
    """Also where many distances are equal."""
    size = data.draw(st.integers(1, count))
    upper = np.triu(np.random.default_rng(seed).integers(0, steps, (count, count)), 1).astype(float)
    distances = upper + upper.T
    first = min(itertools.combinations(range(count), size), key=lambda subset: diameter(distances, subset))
    assert minimum_diameter_subset(distances, size) == list(first)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_64_members_are_no_search_without_end(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = random_graph(64, density, seed=1)
    monkeypatch.setattr(params, "MDA_STEPS_MAX", 2_000)
    within = minimum_diameter_subset(distances, 33)
    monkeypatch.setattr(params, "MDA_STEPS_MAX", 1_000_000)
    assert within == minimum_diameter_subset(distances, 33)


def test_who_runs_out_of_steps_gets_at_most_twice_the_least_diameter(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(3).standard_normal((20, 5))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    least = diameter(distances, minimum_diameter_subset(distances**2, 11))
    monkeypatch.setattr(params, "MDA_STEPS_MAX", 3)
    subset = minimum_diameter_subset(distances**2, 11)
    assert len(set(subset)) == 11
    assert least < diameter(distances, subset) <= 2 * least
