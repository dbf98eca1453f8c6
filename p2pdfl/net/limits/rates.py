"""Token buckets: how much of something a peer may do in the long run, and at once.

An honest peer keeps what it passes on below `PASS_ON` of what the next one takes from it.  So nobody is made a flooder
by what others give it to pass on: an attacker may choose whose copies go through it, but not how many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

PASS_ON = 0.5


@dataclass(frozen=True, kw_only=True)
class Rate:
    per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.per_s > 0
        assert self.burst > 0

    def times(self, factor: float) -> Rate:
        return Rate(per_s=self.per_s * factor, burst=self.burst * factor)


class Buckets(Generic[Name]):
    """A bucket per name.  Time is an argument, in seconds that never go back."""

    def __init__(self, rate: Rate, *, names_max: int) -> None:
        """names_max: beyond it, the name that was longest not seen starts afresh."""
        assert names_max > 0
        self._rate = rate
        self._names_max = names_max
        self._left: OrderedDict[Name, tuple[float, float]] = OrderedDict()
        """Name -> (what was left, when)."""

    def __len__(self) -> int:
        return len(self._left)

    def take(self, name: Name, count: float, now_s: float) -> bool:
        """False: that is over the rate, and nothing is taken."""
        left = self._level(name, now_s)
        is_within = left >= count
        self._put(name, left - count if is_within else left, now_s)
        return is_within

    def has(self, name: Name, count: float, now_s: float) -> bool:
        """Whether it could take so much now."""
        return self._level(name, now_s) >= count

    def owe(self, name: Name, count: float, now_s: float) -> float:
        """Takes it in any case.  Returns for how many seconds name has to wait until it has paid."""
        left = self._level(name, now_s) - count
        self._put(name, left, now_s)
        return max(0.0, -left / self._rate.per_s)

    def _level(self, name: Name, now_s: float) -> float:
        left, at_s = self._left.get(name, (self._rate.burst, now_s))
        return min(self._rate.burst, left + (now_s - at_s) * self._rate.per_s)

    def _put(self, name: Name, left: float, now_s: float) -> None:
        self._left[name] = (left, now_s)
        self._left.move_to_end(name)
        if len(self._left) > self._names_max:
            self._left.popitem(last=False)
