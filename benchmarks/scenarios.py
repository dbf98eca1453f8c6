"""Scenarios side by side: how often they come out as they expect, and what a round costs.

    python benchmarks/scenarios.py bad_path_loopback bad_path
    python benchmarks/scenarios.py honest sixteen thirtytwo --runs 3
    python benchmarks/scenarios.py --runs 5 --busy 2

One after the other, each in processes of its own; several runs of each take turns.  Without a name it is all that there
are.  --busy: beside so many loops that keep a core busy, as on a loaded machine.  Seconds and bytes are medians over
runs of what summary.json has.  Exits with 1 if a run did not come out as its scenario expects; with --out, what it left
behind stays there, as does every other last run of a scenario.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from p2pdfl.scenario import spec
from p2pdfl.scenario.summary import Summary

COLUMNS: dict[str, Callable[[Summary], float | None]] = {
    "training round (s)": lambda summary: summary.round_seconds,
    "closing round (s)": lambda summary: summary.closing_round_seconds,
    "sent per peer and round (kB)": lambda summary: (summary.bytes_sent_per_peer_per_round or 0) / 1000,
    "rounds closed late": lambda summary: summary.late_rounds,
    "COMMITs missing": lambda summary: summary.missing_commits,
    "final accuracy": lambda summary: summary.final_accuracy,
    "in all (s)": lambda summary: summary.wall_seconds,
}
SCENARIOS = Path("scenarios")
FILE_WIDTH = 200
"""Where the table goes into a file."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="FILE_OR_NAME", help="default: all in scenarios/")
    parser.add_argument("--runs", type=int, default=1, help="of each (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=0, help="loops that compute beside them (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the last run of each, and every one that failed, there")
    options = parser.parse_args()
    names = options.names or [path.stem for path in sorted(SCENARIOS.glob("*.toml"))]
    summaries: dict[str, list[Summary]] = {name: [] for name in names}
    lacking: set[str] = set()
    with ExitStack() as running:
        out = options.out or Path(running.enter_context(tempfile.TemporaryDirectory(prefix="p2pdfl-scenarios-")))
        for number in range(options.runs):
            for name in names:
                with busy(options.busy):
                    summary = run(name, out)
                if summary is None:
                    lacking.add(name)
                    continue
                summaries[name].append(summary)
                if not summary.ok:
                    tell_failure(name, summary)
                    (out / summary.scenario).rename(out / f"{summary.scenario}.failed.{number}")
    console = Console()
    (console if console.is_terminal else Console(width=FILE_WIDTH)).print(table(summaries, options.runs))
    failed = [name for name, runs in summaries.items() if name in lacking or not all(summary.ok for summary in runs)]
    if failed:
        print(f"not as expected: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def busy(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(name: str, out: Path) -> Summary | None:
    """None if it came to no summary; its own words are on stderr then."""
    command = [sys.executable, "-m", "p2pdfl.cli", "scenario", name, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        print(f"{name}: exit code {done.returncode}\n{done.stdout}", file=sys.stderr)
        return None
    path = out / spec.load(spec.find(name)).name / "summary.json"
    return Summary.model_validate_json(path.read_bytes())


def tell_failure(name: str, summary: Summary) -> None:
    for item in summary.expected:
        if not item.held:
            print(f"{name}: {item.what}: expected {item.expected}, seen {item.seen}", file=sys.stderr, flush=True)


def table(summaries: dict[str, list[Summary]], runs: int) -> Table:
    result = Table(title="scenarios, medians", title_justify="left")
    for heading in ("", "peers", "network", "as expected", *COLUMNS):
        result.add_column(heading, justify="left" if heading in ("", "network") else "right")
    for name, found in summaries.items():
        if not found:
            result.add_row(name, "", "", f"0 of {runs}")
            continue
        network = str(found[0].conditions or found[0].network)
        held = f"{sum(summary.ok for summary in found)} of {runs}"
        figures = (_cell([value(summary) for summary in found]) for value in COLUMNS.values())
        result.add_row(name, str(len(found[0].peers)), network, held, *figures)
    return result


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if known else "-"


if __name__ == "__main__":
    sys.exit(main())
