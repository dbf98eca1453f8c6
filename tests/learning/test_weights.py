"""What is decided from inner products alone."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base.task import RULES
from p2pdfl.learning import weights
from p2pdfl.learning.aggregate import aggregate, byzantine_count_max

from .test_aggregate import quantized


def test_ties_between_neighbours_go_to_the_lower_index() -> None:
    assert weights.nearest_neighbours(np.eye(3), 2) == [[0, 1], [0, 1], [0, 2]]


def test_ties_between_rows_go_to_the_lower_index() -> None:
    assert weights.krum(np.eye(5), 2).tolist() == [1, 0, 0, 0, 0]
    assert weights.multi_krum(np.eye(5), 2).tolist() == [1, 1, 1, 0, 0]
    assert weights.mda(np.eye(5), 2).tolist() == [1, 1, 1, 0, 0]


def test_norms_are_clipped_to_the_lower_median() -> None:
    assert weights.clip_factors(np.diag([16.0, 1.0, 4.0, 0.0])).tolist() == [0.25, 1.0, 0.5, 1.0]


def test_distances_between_equal_rows_are_exactly_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 7))
    products = rows @ rows.T
    products = (products + products.T) / 2
    neighbourhoods = [[0, 2, 5], [1, 3, 6], [0, 2, 5]]
    mixed = weights.mix(weights.mix(products, neighbourhoods).T, neighbourhoods)
    distances = weights.squared_distances(mixed)
    assert distances[0, 2] == distances[2, 0] == 0
    assert (distances == distances.T).all()


BAD: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "flipped": lambda honest, size: -size * honest[0],
    "scaled": lambda honest, size: size * honest[0],
    "all alike": lambda honest, size: np.full(honest.shape[1], size),
    "the other way": lambda honest, size: np.full(honest.shape[1], -size),
    "the spread of the honest": lambda honest, size: honest.mean(0) - min(size, 3) * honest.std(0),
    "a copy": lambda honest, size: honest[-1],
    "zero": lambda honest, size: np.zeros(honest.shape[1]),
}


def honest_diameters(base: str, count: int, f: int) -> float:
    """How many diameters of the honest rows the aggregate may lie from their mean, by the argument for each rule."""
    ratio = f / (count - f)
    diameters: dict[str, float] = {
        # in each coordinate between two honest values, and in no more than `dimension` coordinates at once
        "median": DIMENSION**0.5,
        "trimmed_mean": DIMENSION**0.5,
        # m - 2f or more of its m - f - 1 nearest are honest, and its score is at most that of an honest row
        "krum": 1 + (count - f) ** 0.5,
        "multi_krum": 1 + (count - f) ** 0.5,
        # Chen, Su & Xu 2017 (POMACS)
        "geometric_median": 2 / (1 - ratio),
        # where f pulls of one radius balance m - f towards the honest, and the radius itself
        "centered_clip": 1 + 1 / (1 - ratio**2) ** 0.5,
        # a row of the subset is honest, and its diameter at most theirs
        "mda": 2,
    }
    return diameters[base]


DIMENSION = 6


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([rule for rule in RULES if not rule.endswith("nnm_mean") and rule not in ("mean", "clip_mean")]),
    st.integers(3, 11),
    st.data(),
)
def test_a_minority_cannot_move_the_aggregate_out_of_the_honest_range(
    rule: str, count: int, data: st.DataObject
) -> None:
    """f of any kind and size, in any place among the members."""
    f = byzantine_count_max(count)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    direction = data.draw(st.sampled_from([0.0, 1.0, 30.0])) * draw.standard_normal(DIMENSION)
    honest = np.stack([quantized(direction + draw.standard_normal(DIMENSION)).values() for _ in range(count - f)])
    kinds = data.draw(st.lists(st.sampled_from(sorted(BAD)), min_size=f, max_size=f))
    bad = [BAD[kind](honest, 10.0 ** data.draw(st.integers(-3, 25))) for kind in kinds]
    members = [quantized(vector) for vector in [*honest, *bad]]
    result = aggregate(rule, [members[place] for place in draw.permutation(count)])
    diameter = max(np.linalg.norm(x - y) for x, y in itertools.combinations(honest, 2))
    base = rule.removeprefix("clip_").removeprefix("nnm_")
    bound = honest_diameters(base, count, f)
    if "nnm_" in rule:
        bound = 1 + 3 * bound  # each honest row moves by at most a diameter
    if "clip_" in rule:
        bound = 1 + bound  # a projection: it lengthens no distance, and shortens no honest row by more than a diameter
    assert np.linalg.norm(result - honest.mean(0)) <= bound * diameter * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["median", "trimmed_mean"]), st.integers(3, 9), st.integers(0, 25), st.integers(0, 2**32 - 1))
def test_each_coordinate_lies_between_honest_ones(rule: str, count: int, exponent: int, seed: int) -> None:
    f = byzantine_count_max(count)
    draw = np.random.default_rng(seed)
    honest = [quantized(draw.standard_normal(50)) for _ in range(count - f)]
    bad = [quantized(10.0**exponent * draw.standard_normal(50)) for _ in range(f)]
    result = aggregate(rule, [*bad, *honest])
    values = np.stack([update.values() for update in honest])
    assert (values.min(0) <= result).all()
    assert (result <= values.max(0)).all()


@pytest.mark.parametrize("rule", ["clip_mean", "clip_nnm_mean"])
def test_clipping_bounds_what_a_minority_does_to_a_mean(rule: str) -> None:
    honest = [quantized(np.full(50, 1.0 + i / 100)) for i in range(4)]
    bad = [quantized(np.full(50, -1e20))] * 3
    result = aggregate(rule, [*bad, *honest])
    assert np.linalg.norm(result) <= max(np.linalg.norm(update.values()) for update in honest)
    assert result.mean() > 0
