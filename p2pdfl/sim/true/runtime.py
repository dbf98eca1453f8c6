"""trio as a function of a seed: its own switch for deterministic scheduling, a seeded choice among tasks that can run,
and a clock that jumps to the next deadline when nobody can."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run as scheduler

T = TypeVar("T")

TICKS_AT_ONE_TIME_MAX = 200_000
"""Of the scheduler without time going on: far more than any burst of events takes."""


class StandsStill(Exception):
    """Tasks keep each other busy and time does not go on."""


def run(main: Callable[[], Awaitable[T]], seed: int | str) -> T:
    """The same seed gives the same run, in any process."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    with _deterministic(seed):
        return trio.run(main, clock=clock, instruments=[_Watchdog(clock)])


@contextmanager
def _deterministic(seed: int | str) -> Iterator[None]:
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r = random.Random(f"scheduler/{seed}")
    # what a collection finalizes, it may schedule
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before  # type: ignore[misc]


class _Watchdog(trio.abc.Instrument):
    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._time = 0.0
        self._ticks = 0

    def before_io_wait(self, timeout: float) -> None:
        now = self._clock.current_time()
        if now != self._time:
            self._time, self._ticks = now, 0
        self._ticks += 1
        if self._ticks > TICKS_AT_ONE_TIME_MAX:
            raise StandsStill(f"at {now:.3f} s")
