"""Scenarios side by side: what a round costs on a bad path and on loopback, among 8 peers and among 16.

    python benchmarks/scenarios.py bad_path_loopback bad_path
    python benchmarks/scenarios.py honest sixteen thirtytwo --runs 3

One after the other, each in processes of its own; several runs of each take turns.  Seconds and bytes are medians over
runs of what summary.json has.  Exits with 1 if a run did not come out as its scenario expects.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from p2pdfl.scenario import spec
from p2pdfl.scenario.summary import Summary

ROWS: dict[str, Callable[[Summary], float | None]] = {
    "seconds of a training round": lambda summary: summary.round_seconds,
    "seconds of a closing round": lambda summary: summary.closing_round_seconds,
    "kB sent per peer and round": lambda summary: (summary.bytes_sent_per_peer_per_round or 0) / 1000,
    "rounds closed late": lambda summary: summary.late_rounds,
    "COMMITs missing": lambda summary: summary.missing_commits,
    "final accuracy": lambda summary: summary.final_accuracy,
    "seconds in all": lambda summary: summary.wall_seconds,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="+", metavar="FILE_OR_NAME")
    parser.add_argument("--runs", type=int, default=1, help="of each (default: %(default)s)")
    options = parser.parse_args()
    summaries: dict[str, list[Summary]] = {name: [] for name in options.names}
    with tempfile.TemporaryDirectory(prefix="p2pdfl-scenarios-") as out:
        for _ in range(options.runs):
            for name in options.names:
                summary = run(name, Path(out))
                if summary is None:
                    return 1
                summaries[name].append(summary)
    Console().print(table(summaries))
    failed = [name for name, runs in summaries.items() if not all(summary.ok for summary in runs)]
    if failed:
        print(f"not as expected: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, out: Path) -> Summary | None:
    """None if it came to no summary; its own words are on stderr then."""
    command = [sys.executable, "-m", "p2pdfl.cli", "scenario", name, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        print(f"{name}: exit code {done.returncode}\n{done.stdout}", file=sys.stderr)
        return None
    path = out / spec.load(spec.find(name)).name / "summary.json"
    return Summary.model_validate_json(path.read_bytes())


def table(summaries: dict[str, list[Summary]]) -> Table:
    result = Table(title="scenarios, medians", title_justify="left")
    result.add_column("")
    for name in summaries:
        result.add_column(name, justify="right")
    result.add_row("peers", *(str(len(runs[0].peers)) for runs in summaries.values()))
    result.add_row("network", *(str(runs[0].conditions or runs[0].network) for runs in summaries.values()))
    result.add_row("as expected", *("yes" if all(run.ok for run in runs) else "NO" for runs in summaries.values()))
    for what, value in ROWS.items():
        result.add_row(what, *(_cell([value(run) for run in runs]) for runs in summaries.values()))
    return result


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if known else "-"


if __name__ == "__main__":
    sys.exit(main())
