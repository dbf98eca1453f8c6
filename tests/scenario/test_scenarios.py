"""The scenarios of this project, as `make scenario NAME=...` runs it: real processes, real network, real chain."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from p2pdfl.cli import PEER_ENTRY
from p2pdfl.scenario import report, runner, spec
from p2pdfl.scenario.namespaces import Unavailable
from p2pdfl.scenario.summary import Summary

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
PEERS_MAX = 8
"""Others with more are for benchmarks/scenarios.py: two cores have a minute's work with them."""


def names() -> set[str]:
    return {path.stem for path in SCENARIOS.glob("*.toml") if spec.load(path).peers <= PEERS_MAX}


SHORT = {"byzantine", "false_accuser", "garbage", "kill_bootstrap"}
"""In `make test`: all parts together, a jury both ways, an objective fault, a peer that dies."""
LONG = names() - SHORT | {"churn", "vanish"}
"""In `make test-long`: what they show of the protocol tests/sim shows without processes."""


@pytest.mark.slow
@pytest.mark.scenario
@pytest.mark.parametrize("name", sorted(SHORT))
def test_the_scenario_comes_out_as_it_expects(name: str, tmp_path: Path) -> None:
    check(SCENARIOS / f"{name}.toml", tmp_path)


def check(path: Path, tmp_path: Path) -> Summary:
    console = Console(file=io.StringIO(), width=120)
    try:
        summary = runner.run(path, tmp_path, peer_entry=PEER_ENTRY, console=console)
    except Unavailable as error:
        pytest.skip(str(error))
    report.print_verdict(console, tmp_path / summary.scenario, summary)
    assert isinstance(console.file, io.StringIO)
    print(console.file.getvalue())  # shown if this fails
    assert summary.ok
    return summary
