"""Threads whose work takes a time drawn from the seed, and what it spends on top; and the clock of a peer."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import trio

from p2pdfl.sim.clock import Clock
from p2pdfl.sim.true.process import Process

T = TypeVar("T")


class PeerClock:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.read_ms(round(trio.current_time() * 1000)) / 1000

    def thread_time(self) -> float:
        return 0.0


class Workers:
    def __init__(self, process: Process, rng: random.Random, *, work_ms_max: float) -> None:
        self._process = process
        self._rng = rng
        self._work_ms_max = work_ms_max

    async def run(self, work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
        async with limiter or nullcontext():
            return await self.finish(work, *arguments)

    async def finish(self, work: Callable[..., T], *arguments: object) -> T:
        """Who is killed meanwhile may have done it, or not."""
        self._process.step()
        await trio.sleep(self._rng.random() * self._work_ms_max / 1000)
        self._process.step()
        try:
            return work(*arguments)
        finally:
            spent_s = self._process.take_spent()
            if spent_s > 0 and not self._process.is_dead:
                await trio.sleep(spent_s)
