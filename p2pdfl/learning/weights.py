"""Aggregation rules that need no coordinates: from the inner products of rows to the rows' weights (DESIGN 6).

Everything is elementwise arithmetic, maximum, square root and stable sorting of float64, which IEEE 754 fixes to the
bit, and sums in a fixed order or rounded once: no library reduction, whose order varies.  Ties go to the lower index.

Throughout, products [row, row] are the inner products of m rows, f = floor((m - 1) / 2) of them may be anything, and
the result is one weight per row, of which only the ratios count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base import params
from p2pdfl.learning.subset import minimum_diameter_subset

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


# --- before a rule ---------------------------------------------------------------------------------------------


def clip_factors(products: Matrix) -> Vector:
    """What brings each row's norm down to the lower median of all norms; at most 1.

    More than half of the rows are honest, so the bound is the norm of an honest one, or below one.  Clipping to an
    order statistic of the norms: Gupta & Vaidya 2019 (arXiv:1903.08752), Allouah et al. 2025 (ICLR).
    """
    norms = np.sqrt(np.diagonal(products))
    bound = np.sort(norms)[(len(norms) - 1) // 2]
    factors: Vector = np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)
    return factors


def nearest_neighbours(products: Matrix, neighbour_count: int) -> list[list[int]]:
    """For each row the ascending indices of those nearest to it: NNM, Allouah et al. 2023 (AISTATS)."""
    return [sorted(order[:neighbour_count]) for order in _by_distance(squared_distances(products))]


def mix(rows: Matrix, neighbourhoods: Sequence[Sequence[int]]) -> Matrix:
    """The sum of each neighbourhood's rows, [neighbourhood, column]."""
    mixed = np.zeros((len(neighbourhoods), rows.shape[1]))
    for target, neighbourhood in zip(mixed, neighbourhoods, strict=True):
        for row in neighbourhood:
            target += rows[row]
    return mixed


# --- rules -----------------------------------------------------------------------------------------------------


def mean(products: Matrix, f: int) -> Vector:
    """What there is without robustness: one row moves it anywhere."""
    return np.ones(len(products))


def krum(products: Matrix, f: int) -> Vector:
    """The row with the least sum of squared distances to its m - f - 1 nearest others.

    Blanchard, El Mhamdi, Guerraoui & Stainer 2017 (NIPS) for f - 1 bad rows, as its proof asks for 2f + 2 < m.
    """
    return _indicator(len(products), _krum_order(products, f)[:1])


def multi_krum(products: Matrix, f: int) -> Vector:
    """The mean of the m - f rows with the least sums (as `krum`)."""
    return _indicator(len(products), _krum_order(products, f)[: len(products) - f])


def geometric_median(products: Matrix, f: int) -> Vector:
    """The point with the least sum of distances to all rows, by Weiszfeld's steps with distances kept from zero.

    Pillutla, Kakade & Harchaoui 2022 (IEEE Trans. Signal Processing).
    """

    def step(weights: Vector, distances: Vector, radius: float) -> Vector:
        return _normalized(1.0 / np.maximum(distances, params.SMOOTHING * radius))

    return _iterate(products, f, step, params.GEOMETRIC_MEDIAN_STEPS)


def centered_clip(products: Matrix, f: int) -> Vector:
    """Steps from v to v + the mean of (row - v), each of these shortened to one radius.

    Karimireddy, He & Jaggi 2021 (ICML), iterated as in BTARD: Gorbunov et al. 2022 (ICML).  The first wants a radius in
    proportion to the distances between honest rows.  No task can know them beforehand, but the radius of `_iterate` is
    bounded by them.
    """

    def step(weights: Vector, distances: Vector, radius: float) -> Vector:
        pulls = radius / np.maximum(distances, radius) / len(weights)
        return weights * (1.0 - total(pulls)) + pulls

    return _iterate(products, f, step, params.CENTERED_CLIP_STEPS)


def mda(products: Matrix, f: int) -> Vector:
    """The mean of the m - f rows with the least diameter (`subset`): El Mhamdi et al. 2020 (PODC)."""
    distances = squared_distances(products)
    return _indicator(len(products), minimum_diameter_subset(distances, len(products) - f))


# --- their arithmetic ------------------------------------------------------------------------------------------


def _iterate(products: Matrix, f: int, step: Callable[[Vector, Vector, float], Vector], step_count: int) -> Vector:
    """Weights after steps (weights, distances of rows from their weighted mean, radius) -> weights; all sum to 1.

    The radius is that of the smallest ball around a row that holds m - f rows.  A ball around an honest row up to the
    furthest honest one holds that many, so the radius is at most the honest rows' diameter, and one of the m - f is
    honest: f others can move neither ball nor radius far.  Radius 0 means that more than half of the rows are one
    point, which is then where the steps end.

    Started at the mean, which one row moves anywhere, the steps do not end in time; at a row, Weiszfeld's stay there.
    This start is his step from a point that has each row as far away as the row has m - f others.
    """
    count = len(products)
    reach = np.sort(np.sqrt(squared_distances(products)), axis=1)[:, count - f - 1]
    centre = int(np.argmin(reach))  # the first of several
    radius = float(reach[centre])
    if radius == 0:
        return _indicator(count, [centre])
    # inner products of differences to the centre: what all rows have in common is not there to be rounded
    to_centre = products[:, centre]
    products = products - to_centre[:, None] - to_centre[None, :] + to_centre[centre]
    squares = np.diagonal(products)
    weights = _normalized(1.0 / reach)
    for _ in range(step_count):
        inner = combine(products, weights)
        distances = np.sqrt(np.maximum(squares - 2.0 * inner + total(weights * inner), 0.0))
        weights = step(weights, distances, radius)
    return weights


def squared_distances(products: Matrix) -> Matrix:
    """Exactly symmetric, and exactly 0 between equal rows."""
    own = np.diagonal(products)
    return np.maximum(own[:, None] + own[None, :] - (products + products.T), 0.0)


def combine(rows: Matrix, weights: Vector) -> Vector:
    """The sum of weight times row, in order."""
    result = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        result += row * weight
    return result


def total(values: Vector) -> float:
    """Rounded once, so in any order the same."""
    return math.fsum(values.tolist())


def _normalized(weights: Vector) -> Vector:
    return weights / total(weights)


def _indicator(count: int, members: Sequence[int]) -> Vector:
    weights = np.zeros(count)
    weights[list(members)] = 1.0
    return weights


def _by_distance(distances: Matrix) -> list[list[int]]:
    orders: list[list[int]] = np.argsort(distances, axis=1, kind="stable").tolist()
    return orders


def _krum_order(products: Matrix, f: int) -> list[int]:
    nearest = np.sort(squared_distances(products), axis=1)[:, : len(products) - f]  # the first is its own 0
    scores = combine(nearest.T, np.ones(nearest.shape[1]))
    order: list[int] = np.argsort(scores, kind="stable").tolist()
    return order
