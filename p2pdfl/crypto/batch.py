"""Naming the culprits of a failed batch check by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def find_culprits(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """The items that make `holds` false.

    `holds` is a random linear combination over any part of `items`, so a part without culprits passes and one with a
    culprit fails, but for a chance of 2^-128.  One check if all is well; about 2 log2(items) per culprit, of halving
    size, otherwise, and never more than 2 items.
    """
    if not items or holds(items):
        return []
    return _bisect(items, holds)


def _bisect(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """`items` are known to fail."""
    if len(items) == 1:
        return list(items)
    left, right = items[: len(items) // 2], items[len(items) // 2 :]
    if holds(left):
        return _bisect(right, holds)
    return _bisect(left, holds) + find_culprits(right, holds)
