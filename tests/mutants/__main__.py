"""Random one-line mutants of protocol/ and crypto/, and some that have a name: do the tests notice?

    python -m mutants --seed 1 --count 60     in tests/

Each lives in a copy of the tree.  A mutant is killed by the first test that fails, or by not coming to an end; what
survives is listed with its diff: it lacks a test, or `explained.py` says why that is all right.  Exit status 1 if any
survives unexplained.

Neither of the two kept tools fits.  mutmut (3.8) wraps every function in a trampoline and mutates nothing outside
functions; cosmic-ray (8.7) mutates the working tree in place and has one test command for all modules.  Neither draws
a sample from a seed, takes mutants of ours, or deletes statements.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .explained import EXPLAINED
from .mutate import Mutant, find_mutants
from .named import NAMED
from .trial import ROOT, Trial

ROOMS = ("protocol", "crypto")


@dataclass(frozen=True)
class Job:
    label: str
    path: str
    source: str
    why: str | None = None
    """It may survive."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", default="1")
    parser.add_argument("--count", type=int, default=60, help="random ones, beside those with a name")
    parser.add_argument(
        "--only", default="", help="modules whose path contains this, and of the named ones those in them"
    )
    parser.add_argument("--no-named", action="store_true", help="the random ones alone")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    started = time.monotonic()
    paths = [str(file.relative_to(ROOT)) for room in ROOMS for file in sorted((ROOT / "p2pdfl" / room).glob("*.py"))]
    named = [] if arguments.no_named else _named(paths)
    jobs = [job for job in (*named, *_random(paths, arguments)) if arguments.only in job.path]
    print(f"seed {arguments.seed}: {len(jobs)} mutants", flush=True)
    survivors = _run(jobs, arguments.workers)
    for job in survivors:
        print(f"\nSURVIVED  {job.label}" + (f"\n          explained: {job.why}" if job.why else ""))
    bad = [job for job in survivors if job.why is None]
    print(
        f"\nseed {arguments.seed}: {len(jobs)} mutants, {len(survivors)} survived, "
        f"{len(survivors) - len(bad)} of them explained; {time.monotonic() - started:.0f} s"
    )
    return 1 if bad else 0


def _named(paths: list[str]) -> list[Job]:
    jobs = []
    for named in NAMED:
        path = named.find(ROOT, paths)
        source = (ROOT / path).read_text().replace(named.old, named.new)
        compile(source, path, "exec")
        jobs.append(Job(f"{named.name}  [{path}]", path, source))
    return jobs


def _random(paths: list[str], arguments: argparse.Namespace) -> list[Job]:
    mutants = [mutant for path in paths if arguments.only in path for mutant in find_mutants(path, ROOT)]
    rng = random.Random(arguments.seed)
    return [_job(mutant) for mutant in rng.sample(mutants, min(arguments.count, len(mutants)))]


def _job(mutant: Mutant) -> Job:
    gone, came = (" ".join(lines) for lines in mutant.diff((ROOT / mutant.path).read_text()))
    label = f"{mutant.path}:{mutant.line}\n          - {gone}\n          + {came}"
    return Job(label, mutant.path, mutant.source, EXPLAINED.get((gone, came)))


def _run(jobs: Sequence[Job], workers: int) -> list[Job]:
    """Those that survive."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory, ThreadPoolExecutor(workers) as pool:
        trials: queue.SimpleQueue[Trial] = queue.SimpleQueue()
        for place in range(workers):
            trials.put(Trial.make(Path(directory) / str(place)))

        def examine(job: Job) -> tuple[Job, str | None, float]:
            trial, started = trials.get(), time.monotonic()
            try:
                return job, trial.killer(job.path, job.source), time.monotonic() - started
            finally:
                trials.put(trial)

        survivors = []
        try:
            for job, killer, took_s in pool.map(examine, jobs):
                print(f"{'killed  ' if killer else 'SURVIVED'}  {job.label}", flush=True)
                print(f"          {f'by {killer}, ' if killer else ''}{took_s:.0f} s", flush=True)
                if killer is None:
                    survivors.append(job)
        finally:
            pool.shutdown(cancel_futures=True)
        return survivors


if __name__ == "__main__":
    sys.exit(main())
