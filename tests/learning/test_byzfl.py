"""Every rule beside ByzFL's, fed with the same decoded updates in float64."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.base.task import RULES
from p2pdfl.learning.aggregate import aggregate, byzantine_count_max
from p2pdfl.learning.quantize import INT4, INT8, Coding, Quantized

from .oracle import aggregators, preaggregators
from .test_aggregate import CHUNK, both_codings, quantized, relative_difference, updates_around

Rows = np.ndarray  # float64 [row, coordinate]


TIE = 1e-9
"""Choices between what differs by less are made by rounding, and ours differs from ByzFL's."""


class Ambiguous(Exception):
    pass


def reference(rule: str, rows: Rows) -> np.ndarray:
    f = byzantine_count_max(len(rows))
    if rule.startswith("clip_"):
        bound = np.sort(np.linalg.norm(rows, axis=1))[(len(rows) - 1) // 2]
        rows = preaggregators.Clipping(float(bound))(rows.copy())
    if "nnm_" in rule:
        refuse_ties(rows)
        rows = preaggregators.NNM(f)(rows)
        for i, j in itertools.combinations(range(len(rows)), 2):  # means of one neighbourhood, summed in another order
            if np.linalg.norm(rows[i] - rows[j]) <= 1e-12 * np.linalg.norm(rows[i]):
                rows[j] = rows[i]
    base = rule.removeprefix("clip_").removeprefix("nnm_")
    if base in ("krum", "multi_krum", "mda"):
        refuse_ties(rows)
    result: np.ndarray = BASES[base](rows, f)
    return result


def refuse_ties(rows: Rows) -> None:
    # by their bytes, zeros of one sign: np.unique makes a field of every coordinate
    different = {row.tobytes(): row for row in rows + 0.0}.values()
    distances = np.sort([np.linalg.norm(x - y) for x, y in itertools.combinations(different, 2)])
    if (distances[1:] - distances[:-1] <= TIE * distances[1:]).any():
        raise Ambiguous


def multi_krum(rows: Rows, f: int) -> np.ndarray:
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    scores = (np.sort(distances, axis=1)[:, : len(rows) - f] ** 2).sum(axis=1)
    order = np.argsort(scores)
    last, next = order[len(rows) - f - 1], order[min(len(rows) - f, len(rows) - 1)]
    if scores[next] - scores[last] <= TIE * scores[next] and (rows[next] != rows[last]).any():
        raise Ambiguous
    result: np.ndarray = aggregators.MultiKrum(f)(rows)
    return result


def start(rows: Rows, f: int) -> tuple[np.ndarray, float]:
    """Where iterations start, and the radius of the smallest ball around a row that holds m - f rows."""
    reach = np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)[:, len(rows) - f - 1]
    centre = np.argmin(reach)
    if reach[centre] == 0:
        return rows[centre], 0.0
    weights = 1 / reach
    return weights @ rows / weights.sum(), float(reach[centre])


def geometric_median(rows: Rows, f: int) -> np.ndarray:
    origin, radius = start(rows, f)
    if radius == 0:
        return origin
    # it starts at zero
    steps = aggregators.GeometricMedian(nu=params.SMOOTHING * radius, T=params.GEOMETRIC_MEDIAN_STEPS)
    result: np.ndarray = steps(rows - origin) + origin
    return result


def centered_clip(rows: Rows, f: int) -> np.ndarray:
    origin, radius = start(rows, f)
    if radius == 0:
        return origin
    result: np.ndarray = aggregators.CenteredClipping(L=params.CENTERED_CLIP_STEPS, tau=radius)(rows - origin) + origin
    return result


BASES: dict[str, Callable[[Rows, int], np.ndarray]] = {
    "mean": lambda rows, f: aggregators.Average()(rows),
    "median": lambda rows, f: aggregators.Median()(rows),
    "trimmed_mean": lambda rows, f: aggregators.TrMean(f)(rows),
    "krum": lambda rows, f: aggregators.Krum(f)(rows),
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "centered_clip": centered_clip,
    "mda": lambda rows, f: aggregators.MDA(f)(rows),
}


def plain(count: int, dimension: int, seed: int) -> list[Quantized]:
    return updates_around(np.full(dimension, 0.01), count, seed, noise=0.02)


def with_outliers(count: int, dimension: int, seed: int) -> list[Quantized]:
    updates = plain(count, dimension, seed)
    bad = np.random.default_rng(seed).permutation(count)[: byzantine_count_max(count)]
    for i, place in enumerate(bad):
        updates[place] = quantized((-1000 if i % 2 else 1000) * updates[place].values())
    return updates


def with_colluders(count: int, dimension: int, seed: int) -> list[Quantized]:
    """As many as may be, all with the same flipped update: ties between them."""
    updates = plain(count, dimension, seed)
    for place in range(byzantine_count_max(count)):
        updates[place] = quantized(-1000 * updates[-1].values())
    return updates


def with_copies(count: int, dimension: int, seed: int) -> list[Quantized]:
    updates = plain(count, dimension, seed)
    updates[0] = updates[-1]
    if count > 7:
        updates[1] = updates[3]
    return updates


def with_zeros(count: int, dimension: int, seed: int) -> list[Quantized]:
    updates = plain(count, dimension, seed)
    updates[1] = quantized(np.zeros(dimension))
    if count > 4:
        updates[-1] = updates[1]
    return updates


KINDS = [plain, with_outliers, with_colluders, with_copies, with_zeros]
CASES = [
    # whoever is clipped to the same norm is as far from zero as the others
    (rule, kind)
    for rule in RULES
    for kind in KINDS
    if not (kind is with_zeros and rule.startswith("clip_"))
]


def differs(rule: str, updates: list[Quantized]) -> bool:
    """Raises Ambiguous."""
    expected = reference(rule, np.stack([update.values() for update in updates]))
    return bool(np.linalg.norm(aggregate(rule, updates) - expected) > 1e-6 * np.linalg.norm(expected))


def recoded(updates: list[Quantized], coding: Coding) -> list[Quantized]:
    return [quantized(update.values(), coding) for update in updates]


@cache
def drawn(
    kind: Callable[[int, int, int], list[Quantized]], count: int, dimension: int, seed: int, coding: Coding
) -> list[Quantized]:
    """The same for every rule."""
    return recoded(kind(count, dimension, seed), coding)


@both_codings
@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_agrees_with_byzfl(rule: str, kind: Callable[[int, int, int], list[Quantized]], coding: Coding) -> None:
    compared = 0
    for count in (2, 3, 4, 5, 8, 11):
        for dimension, seed in ((5, 0), (300, 1), (CHUNK + 300, 2)):
            try:
                assert not differs(rule, drawn(kind, count, dimension, seed, coding)), (count, dimension, seed)
            except Ambiguous:
                continue
            compared += 1
    assert compared >= 9


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(CASES),
    st.integers(2, 10),
    st.integers(2, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from([INT8, INT4]),
)
def test_agrees_with_byzfl_on_whatever_comes(
    case: tuple[str, Callable[[int, int, int], list[Quantized]]], count: int, dimension: int, seed: int, coding: Coding
) -> None:
    rule, kind = case
    try:
        assert not differs(rule, recoded(kind(count, dimension, seed), coding))
    except Ambiguous:
        assume(False)


@pytest.mark.parametrize("kind", [plain, with_outliers])
@pytest.mark.parametrize("count", [5, 16])
def test_the_geometric_median_is_where_byzfls_steps_end_from_another_start(
    count: int, kind: Callable[[int, int, int], list[Quantized]]
) -> None:
    updates = kind(count, 300, 0)
    rows = np.stack([update.values() for update in updates])
    expected = aggregators.GeometricMedian(nu=1e-9, T=3000)(rows)
    assert relative_difference(aggregate("geometric_median", updates), expected) <= 1e-6
