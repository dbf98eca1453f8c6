"""python -m p2pdfl.sim replay --seed S | hunt --minutes M: what `make sim` and `make sim-hunt` run."""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import get_args

from p2pdfl.sim.hunt import LearningKind, Result, draw_case, run_case, run_seed
from p2pdfl.sim.mutants import Plant

PROGRESS_S = 10.0
FRESH_SEED_BITS = 40
SEEDS_PER_TASK = 4


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return _replay(options) if options.command == "replay" else _hunt(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m p2pdfl.sim")
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="one seed, and how it ended")
    replay.add_argument("--seed", type=int, required=True)
    replay.add_argument("--log", type=Path, help="write every event to this file")
    hunt = commands.add_parser("hunt", help="many seeds, until one breaks something")
    hunt.add_argument("--minutes", type=float, help="how long; without it, all of --seeds")
    hunt.add_argument("--seeds", type=_seed_range, help="FROM:UNTIL; without it, new ones")
    hunt.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="what is found is the same")
    hunt.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    for each in (replay, hunt):
        each.add_argument("--peers", type=int, help="4 to 16, drawn from the seed if not given")
        each.add_argument("--rounds", type=int, help="6 to 12, drawn from the seed if not given")
        each.add_argument("--plant", choices=get_args(Plant), help="a bug to be found")
        each.add_argument("--crypto", choices=["auto", "real", "stand-in"], default="auto", help="of the beacon")
        each.add_argument(
            "--learning",
            choices=get_args(LearningKind),
            default="stand-in",
            help="real: a small model is trained, audited and aggregated; stand-in: only digests (default)",
        )
    return parser


def _seed_range(text: str) -> range:
    first, separator, last = text.partition(":")
    return range(int(first), int(last)) if separator else range(int(first), int(first) + 1)


# --- one seed -------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> int:
    case = draw_case(
        options.seed,
        peers=options.peers,
        rounds=options.rounds,
        plant=options.plant,
        crypto=options.crypto,
        learning=options.learning,
    )
    start_s = time.perf_counter()
    with ExitStack() as stack:
        file = stack.enter_context(options.log.open("w", encoding="ascii")) if options.log else None
        result = run_case(case, sink=None if file is None else lambda line: file.write(line + "\n"))
    seconds = time.perf_counter() - start_s
    views = ", ".join(f"{number} in view {view}" for view, number in result.views.items())
    print(f"seed {result.seed}: {result.about}")
    print(f"rounds closed   {result.rounds}" + (f" ({views})" if views else ""))
    print(f"virtual time    {result.virtual_ms / 1000:.1f} s, calm from {case.plan.calm_ms / 1000:.1f} s on")
    print(f"events          {result.events} in {seconds:.1f} s")
    print(f"log sha256      {result.digest}")
    if result.out_of_bounds:
        print(f"nothing is promised any more: {result.out_of_bounds}")
    for violation in result.violations:
        print(f"VIOLATION       {violation}")
    if not result.violations:
        print("no violation")
    return 1 if result.violations else 0


# --- many seeds -----------------------------------------------------------------


def _hunt(options: argparse.Namespace) -> int:
    deadline_s = time.monotonic() + 60 * options.minutes if options.minutes else None
    if deadline_s is None and options.seeds is None:
        print("how long, or which?  --minutes or --seeds", file=sys.stderr)
        return 2
    run = partial(
        run_seed,
        peers=options.peers,
        rounds=options.rounds,
        plant=options.plant,
        crypto=options.crypto,
        learning=options.learning,
    )
    # new seeds come from the system here, at the door, and nowhere else
    seeds: Iterable[int] = options.seeds or count(secrets.randbits(FRESH_SEED_BITS))
    tally = _Tally(options)
    try:
        with _results(run, seeds, options.processes) as results:
            for result in results:
                tally.take(result)
                if result.violations and not options.keep_going:
                    break
                if deadline_s is not None and time.monotonic() > deadline_s:
                    break
    except KeyboardInterrupt:
        print(f"stopped {tally.place()}")
    return tally.report()


@contextmanager
def _results(run: Callable[[int], Result], seeds: Iterable[int], processes: int) -> Iterator[Iterator[Result]]:
    """In the order of the seeds, however many work on them: so the first violation is the same one."""
    if processes == 1:
        yield map(run, seeds)
        return
    # Ctrl-C goes to the whole group; the pool is ended from here
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(processes, initializer=signal.signal, initargs=ignore) as pool:
        yield pool.imap(run, seeds, chunksize=SEEDS_PER_TASK)


class _Tally:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._start_s = self._told_s = time.monotonic()
        self._seeds = 0
        self._events = 0
        self._rounds = 0
        self._out_of_bounds = 0
        self._views: Counter[int] = Counter()
        self._failures: list[int] = []
        self._last: int | None = None

    def take(self, result: Result) -> None:
        self._seeds += 1
        self._last = result.seed
        self._events += result.events
        self._rounds += result.rounds
        self._views.update(result.views)
        self._out_of_bounds += result.out_of_bounds is not None
        if result.violations:
            self._failures.append(result.seed)
            print(f"VIOLATION after {self._seeds} seeds: seed {result.seed}, {result.about}")
            for violation in result.violations:
                print(f"    {violation}")
            print(f"    {self._command(result.seed)}", flush=True)
        if time.monotonic() - self._told_s > PROGRESS_S:
            self._told_s = time.monotonic()
            print(self._summary(), flush=True)

    def report(self) -> int:
        views = ", ".join(f"view {view}: {number}" for view, number in sorted(self._views.items()))
        print(self._summary())
        print(f"rounds by the view that they closed in: {views}")
        if self._out_of_bounds:
            print(f"{self._out_of_bounds} ended early: the Byzantine became a third of an epoch's list")
        if self._failures:
            print(f"{len(self._failures)} seeds with a violation")
            return 1
        print("no violation")
        return 0

    def place(self) -> str:
        return "before the first seed was done" if self._last is None else f"after seed {self._last}"

    def _summary(self) -> str:
        minutes = (time.monotonic() - self._start_s) / 60
        rate = self._seeds / minutes if minutes > 0 else 0.0
        seeds = f"{self._seeds} seeds" + ("" if self._last is None else f" up to {self._last}")
        return f"{seeds}, {self._rounds} rounds, {self._events} events, {rate:.0f} seeds/min"

    def _command(self, seed: int) -> str:
        options = self._options
        words = [f"make sim SEED={seed}"]
        if options.peers:
            words.append(f"PEERS={options.peers}")
        if options.rounds:
            words.append(f"ROUNDS={options.rounds}")
        more = [f"--plant {options.plant}"] if options.plant else []
        more += [f"--crypto {options.crypto}"] if options.crypto != "auto" else []
        more += [f"--learning {options.learning}"] if options.learning != "stand-in" else []
        if more:
            words.append(f"ARGS='{' '.join(more)}'")
        return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
