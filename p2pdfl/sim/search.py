"""Many seeds, in one world or in several, until one breaks something."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice

from p2pdfl.sim.outcome import Draw, Outcome
from p2pdfl.sim.worlds import WORLDS

PROGRESS_S = 10.0
FRESH_SEED_BITS = 40

Job = tuple[str, Draw]
"""A world and what is drawn in it."""


def search(
    worlds: Sequence[str],
    draw: Callable[[int], Draw],
    *,
    seeds: range | None,
    minutes: float | None,
    processes: int,
    is_keeping_going: bool,
    command: Callable[[str, Draw], str],
) -> int:
    """The exit code: 1 if something was found.

    seeds: None for new ones.  command: how to see a run again."""
    deadline_s = time.monotonic() + 60 * minutes if minutes else None
    # new seeds come from the system here, at the door, and nowhere else
    first = secrets.randbits(FRESH_SEED_BITS) if seeds is None else 0
    jobs = _in_turns(worlds, lambda: map(draw, count(first) if seeds is None else seeds))
    tallies = {world: Tally(world=world, processes=processes) for world in worlds}
    told_s = time.monotonic()
    try:
        with _results(jobs, processes) as results:
            for (world, drawn), outcome, seconds in results:
                tallies[world].take(outcome, seconds)
                if outcome.violations:
                    _show(world, tallies[world].seeds, outcome, command(world, drawn))
                    if not is_keeping_going:
                        break
                if deadline_s is not None and time.monotonic() > deadline_s:
                    break
                if time.monotonic() - told_s > PROGRESS_S:
                    told_s = time.monotonic()
                    for tally in tallies.values():
                        print(tally.summary(), flush=True)
    except KeyboardInterrupt:
        for tally in tallies.values():
            print(tally.place())
    return _report(tallies.values())


def _in_turns(worlds: Sequence[str], draws: Callable[[], Iterator[Draw]]) -> Iterator[Job]:
    """The same seeds in each world, in an order that does not depend on how fast they are."""
    left = {world: draws() for world in worlds}
    while left:
        for world in list(left):
            turn = [(world, draw) for draw in islice(left[world], WORLDS[world].seeds_per_turn)]
            if not turn:
                del left[world]
            yield from turn


def _run(job: Job) -> tuple[Job, Outcome, float]:
    """Here and not in `__main__`, which a worker process cannot import by that name."""
    world, draw = job
    start_s = time.perf_counter()
    outcome = WORLDS[world].run_seed(draw, None)
    return job, outcome, time.perf_counter() - start_s


@contextmanager
def _results(jobs: Iterable[Job], processes: int) -> Iterator[Iterator[tuple[Job, Outcome, float]]]:
    """In the order of the jobs, however many work on them: so the first violation is the same one."""
    if processes == 1:
        yield map(_run, jobs)
        return
    # Ctrl-C goes to the whole group; the pool is ended from here
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(processes, initializer=signal.signal, initargs=ignore) as pool:
        yield pool.imap(_run, jobs)


def _show(world: str, seeds: int, outcome: Outcome, command: str) -> None:
    print(f"VIOLATION after {seeds} seeds of the {world} world: seed {outcome.seed}, {outcome.about}")
    for violation in outcome.violations:
        print(f"    {violation}")
    print(f"    {command}", flush=True)


def _report(tallies: Iterable[Tally]) -> int:
    found = 0
    for tally in tallies:
        found += tally.found
        views = ", ".join(f"view {view}: {number}" for view, number in sorted(tally.views.items()))
        print(tally.summary())
        print(f"rounds by the view that they closed in: {views}")
        if tally.out_of_bounds:
            print(f"{tally.out_of_bounds} ended early: out of the bounds of what is promised")
    print(f"{found} seeds with a violation" if found else "no violation")
    return 1 if found else 0


@dataclass(kw_only=True)
class Tally:
    """Of one world."""

    world: str
    processes: int
    seeds: int = 0
    found: int = 0
    out_of_bounds: int = 0
    views: Counter[int] = field(default_factory=Counter)
    _busy_s: float = 0.0
    _events: int = 0
    _rounds: int = 0
    _last: int | None = None

    def take(self, outcome: Outcome, seconds: float) -> None:
        self.seeds += 1
        self.found += bool(outcome.violations)
        self.out_of_bounds += outcome.out_of_bounds is not None
        self.views.update(outcome.views)
        self._busy_s += seconds
        self._events += outcome.events
        self._rounds += outcome.rounds
        self._last = outcome.seed

    def place(self) -> str:
        where = "before the first seed was done" if self._last is None else f"after seed {self._last}"
        return f"{self.world}: stopped {where}"

    def summary(self) -> str:
        """Seeds per minute: as if all processes ran this world all the time."""
        rate = 60 * self.processes * self.seeds / self._busy_s if self._busy_s else 0.0
        seeds = f"{self.seeds} seeds" + ("" if self._last is None else f" up to {self._last}")
        return f"{self.world}: {seeds}, {self._rounds} rounds, {self._events} events, {rate:.0f} seeds/min"
