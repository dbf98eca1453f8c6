"""python -m p2pdfl.sim replay --seed S | hunt --minutes M: what `make sim` and `make sim-hunt` run.

Exit code 0: nothing is violated, and logs that were compared are equal; 1: not so; 2: the options make no sense; 130:
one run was stopped.  A search that is stopped tells what it has found so far, as at its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

from p2pdfl.sim.difference import describe, first_difference
from p2pdfl.sim.outcome import CryptoKind, Draw, LearningKind, Outcome, Sink
from p2pdfl.sim.search import search
from p2pdfl.sim.worlds import WORLDS, worlds_of

TWO_RUNS = Path()
"""--first-difference without a log."""
STANDARD_OUT = Path("-")


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        worlds = worlds_of(options.world, options.plant)
    except ValueError as error:
        parser.error(str(error))
    if options.command == "hunt":
        if not options.minutes and options.seeds is None:
            parser.error("how long, or which?  --minutes or --seeds")
        return search(
            worlds,
            partial(_draw, options),
            seeds=options.seeds,
            minutes=options.minutes,
            processes=options.processes,
            is_keeping_going=options.keep_going,
            command=_command,
        )
    if len(worlds) > 1 and (options.log or options.first_difference not in (None, TWO_RUNS)):
        parser.error("a log of which world?  --world " + "|".join(worlds))
    replay = _replay if options.first_difference is None else _compare
    try:
        return max([replay(world, _draw(options, options.seed), options) for world in worlds])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m p2pdfl.sim")
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="one seed, and how it ended")
    replay.add_argument("--seed", type=int, required=True)
    output = replay.add_mutually_exclusive_group()
    output.add_argument("--log", type=Path, help="write every event to this file; -: to standard output, and no more")
    output.add_argument(
        "--first-difference",
        type=Path,
        nargs="?",
        const=TWO_RUNS,
        metavar="LOG",
        help="where this run parts from a log that was written before; without one, run it in two processes that order "
        "sets otherwise (PYTHONHASHSEED), and compare those",
    )
    hunt = commands.add_parser("hunt", help="many seeds, until one breaks something")
    hunt.add_argument("--minutes", type=float, help="how long; without it, all of --seeds")
    hunt.add_argument("--seeds", type=_seed_range, help="FROM:UNTIL; without it, new ones")
    hunt.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="what is found is the same")
    hunt.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    plants = [plant for world in WORLDS.values() for plant in world.plants]
    for each in (replay, hunt):
        each.add_argument("--world", choices=list(WORLDS), help="all, if not given")
        each.add_argument("--peers", type=int, help="4 to 16, drawn from the seed if not given")
        each.add_argument("--rounds", type=int, help="6 to 12, drawn from the seed if not given")
        each.add_argument("--plant", choices=plants, help="a bug to be found, in the worlds that can have it")
        each.add_argument("--crypto", choices=get_args(CryptoKind), default="auto", help="of the beacon")
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


def _draw(options: argparse.Namespace, seed: int) -> Draw:
    return Draw(
        seed=seed,
        peers=options.peers,
        rounds=options.rounds,
        plant=options.plant,
        crypto=options.crypto,
        learning=options.learning,
    )


def _arguments(world: str, draw: Draw) -> list[str]:
    """Beside the seed and the size."""
    words = ["--world", world]
    words += ["--plant", draw.plant] if draw.plant else []
    words += ["--crypto", draw.crypto] if draw.crypto != "auto" else []
    words += ["--learning", draw.learning] if draw.learning != "stand-in" else []
    return words


def _command(world: str, draw: Draw) -> str:
    words = [f"make sim SEED={draw.seed}"]
    words += [f"PEERS={draw.peers}"] if draw.peers else []
    words += [f"ROUNDS={draw.rounds}"] if draw.rounds else []
    return " ".join([*words, f"ARGS='{shlex.join(_arguments(world, draw))}'"])


# --- one seed -------------------------------------------------------------------


def _replay(world: str, draw: Draw, options: argparse.Namespace) -> int:
    start_s = time.perf_counter()
    with _sink(options.log) as sink:
        outcome = WORLDS[world].run_seed(draw, sink)
    if options.log != STANDARD_OUT:
        _show(world, outcome, time.perf_counter() - start_s)
    return 1 if outcome.violations else 0


@contextmanager
def _sink(log: Path | None) -> Iterator[Sink | None]:
    if log is None:
        yield None
        return
    with ExitStack() as stack:
        file = sys.stdout if log == STANDARD_OUT else stack.enter_context(log.open("w", encoding="ascii"))
        yield lambda line: print(line, file=file)


def _show(world: str, outcome: Outcome, seconds: float) -> None:
    views = ", ".join(f"{number} in view {view}" for view, number in outcome.views.items())
    print(f"seed {outcome.seed}, {world} world: {outcome.about}")
    print(f"rounds closed   {outcome.rounds}" + (f" ({views})" if views else ""))
    print(f"virtual time    {outcome.virtual_ms / 1000:.1f} s, calm from {outcome.calm_ms / 1000:.1f} s on")
    print(f"events          {outcome.events} in {seconds:.1f} s")
    for name, digest in outcome.digests.items():
        print(f"{name + ' sha256':<15} {digest}")
    if outcome.out_of_bounds:
        print(f"nothing is promised any more: {outcome.out_of_bounds}")
    for violation in outcome.violations:
        print(f"VIOLATION       {violation}")
    if not outcome.violations:
        print("no violation")


# --- two logs --------------------------------------------------------------------


def _compare(world: str, draw: Draw, options: argparse.Namespace) -> int:
    """Line by line while the runs go on, which end where they part."""
    log: Path = options.first_difference
    with ExitStack() as stack:
        if log == TWO_RUNS:
            names = "PYTHONHASHSEED=1", "PYTHONHASHSEED=2"
            left, right = (stack.enter_context(_run(world, draw, hash_seed)) for hash_seed in ("1", "2"))
        else:
            names = str(log), "this run"
            file = stack.enter_context(log.open(encoding="ascii"))
            left = (line.rstrip("\n") for line in file)
            right = stack.enter_context(_run(world, draw, os.environ.get("PYTHONHASHSEED", "random")))
        difference = first_difference(left, right)
    print(f"seed {draw.seed}, {world} world: {names[0]} and {names[1]}")
    if isinstance(difference, int):
        print(f"no difference in {difference} lines")
        # of what broke before its first event there is nothing to compare
        return 0 if difference else 1
    print(describe(difference, *names))
    return 1


@contextmanager
def _run(world: str, draw: Draw, hash_seed: str) -> Iterator[Iterator[str]]:
    """The log of a run in a process of its own."""
    command = [sys.executable, "-m", "p2pdfl.sim", "replay", "--seed", str(draw.seed), *_arguments(world, draw)]
    command += ["--peers", str(draw.peers)] if draw.peers else []
    command += ["--rounds", str(draw.rounds)] if draw.rounds else []
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    # Ctrl-C is for this process; it ends the other
    with subprocess.Popen(
        [*command, "--log", "-"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            yield (line.rstrip("\n") for line in process.stdout)
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
