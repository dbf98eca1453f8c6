"""The subset of least diameter, as MDA needs it, without trying all subsets.

A subset of `size` rows has diameter <= t if the other m - size rows touch every pair further apart than t: if the
graph of these pairs has a vertex cover of m - size vertices.  The least t is found by bisection over the distances, and
each cover by branching on a vertex with most conflicts: either it is in the cover, or all its neighbours are.  Where no
vertex has more than two, no branching is needed, so that a cover of k takes at most 1.47^k steps (Niedermeier 2006,
Invitation to Fixed-Parameter Algorithms).

Finding such subsets is NP-hard in general, and whose updates they are is no friend: the steps are counted, so that all
machines give up at the same one.  The result is then the smallest ball around a row, with at most twice the diameter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base import params


class _OutOfSteps(Exception):
    pass


def minimum_diameter_subset(squared_distances: NDArray[np.float64], size: int) -> list[int]:
    """Ascending indices; of several with the least diameter, the first in dictionary order.

    squared_distances: symmetric with a diagonal of 0.
    """
    count = len(squared_distances)
    ball, squared_radius = _smallest_ball(squared_distances, size)
    squared_diameter = squared_distances[np.ix_(ball, ball)].max()
    # each member of a subset has size - 1 others within its diameter, so no diameter is less than this radius
    possible = (squared_distances >= squared_radius) & (squared_distances <= squared_diameter)
    tried = np.unique(squared_distances[possible])
    search = _Search(params.MDA_STEPS_MAX)
    low, high = 0, len(tried) - 1  # the ball shows that there is a subset for the last
    try:
        while low < high:
            middle = (low + high) // 2
            if search.has_cover(_graph(squared_distances > tried[middle]), (1 << count) - 1, count - size):
                high = middle
            else:
                low = middle + 1
        return search.first_independent(_graph(squared_distances > tried[low]), count, size)
    except _OutOfSteps:
        return ball


def _smallest_ball(squared_distances: NDArray[np.float64], size: int) -> tuple[list[int], float]:
    """Of the row that has its `size` nearest within the least distance: these, ascending, and that distance squared.

    Their diameter is at most twice that distance, and no subset's is less than it.
    """
    reach = np.sort(squared_distances, axis=1)[:, size - 1]
    centre = int(np.argmin(reach))
    nearest: list[int] = np.argsort(squared_distances[centre], kind="stable")[:size].tolist()
    return sorted(nearest), float(reach[centre])


def _graph(conflicts: NDArray[np.bool_]) -> list[int]:
    """Each vertex' neighbours as the bits of an integer."""
    return [sum(1 << int(other) for other in np.flatnonzero(row)) for row in conflicts]


class _Search:
    """Vertex covers of graphs given by neighbours and by those vertices that are still there, as bits of an integer."""

    def __init__(self, steps: int) -> None:
        self._steps_left = steps

    def has_cover(self, graph: list[int], there: int, size_max: int) -> bool:
        """Whether at most `size_max` vertices touch all edges.  Raises _OutOfSteps."""
        while True:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise _OutOfSteps
            edge_ends = degree_max = leaf = widest = 0
            for vertex in _vertices(there):
                degree = (graph[vertex] & there).bit_count()
                if degree == 0:
                    there ^= 1 << vertex
                    continue
                edge_ends += degree
                if degree == 1:
                    leaf = graph[vertex] & there
                if degree > degree_max:
                    degree_max, widest = degree, vertex
            if edge_ends == 0:
                return True
            if edge_ends > 2 * size_max * degree_max:
                return False
            if leaf:  # its only neighbour covers at least as much as it does
                there &= ~leaf
                size_max -= 1
            elif degree_max == 2 or degree_max > size_max:  # on a cycle all are alike; or its neighbours are too many
                there ^= 1 << widest
                size_max -= 1
            else:
                neighbours = graph[widest] & there
                if self.has_cover(graph, there ^ (1 << widest), size_max - 1):
                    return True
                there &= ~neighbours
                size_max -= degree_max

    def first_independent(self, graph: list[int], count: int, size: int) -> list[int]:
        """The first in dictionary order of the sets of `size` vertices without an edge; there is one."""
        there = (1 << count) - 1
        spare = count - size
        kept: list[int] = []
        for vertex in range(count):
            if not there >> vertex & 1:
                continue
            conflicts = graph[vertex] & there
            lost = conflicts.bit_count()
            rest = there & ~conflicts
            if not conflicts or (lost <= spare and self.has_cover(graph, rest, spare - lost)):
                kept.append(vertex)
                there, spare = rest, spare - lost
            else:
                there ^= 1 << vertex
                spare -= 1
        return kept[:size]


def _vertices(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1
