"""Bisection names every culprit, no one else, and stays within its bound."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.crypto.batch import find_culprits


def search(guilty: Sequence[bool]) -> tuple[list[int], int]:
    """guilty: per item -> (culprits, number of checks)."""
    checks = 0

    def holds(part: Sequence[int]) -> bool:
        nonlocal checks
        checks += 1
        return not any(guilty[item] for item in part)

    return find_culprits(range(len(guilty)), holds), checks


@given(guilty=st.lists(st.booleans(), max_size=70))
def test_exactly_the_culprits_are_named(guilty: Sequence[bool]) -> None:
    culprits, _ = search(guilty)
    assert culprits == [item for item, is_guilty in enumerate(guilty) if is_guilty]


@given(guilty=st.lists(st.booleans(), max_size=70))
def test_there_are_fewer_than_two_checks_per_item(guilty: Sequence[bool]) -> None:
    _, checks = search(guilty)
    assert checks <= max(1, 2 * len(guilty))


def test_the_innocent_cost_one_check() -> None:
    assert search([False] * 64) == ([], 1)


def test_one_culprit_costs_a_logarithm() -> None:
    for culprit in range(64):
        _, checks = search([item == culprit for item in range(64)])
        assert checks <= 1 + 2 * 6


def test_nothing_needs_no_check() -> None:
    assert search([]) == ([], 0)
