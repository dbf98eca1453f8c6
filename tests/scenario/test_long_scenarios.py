"""The other scenarios: members come and go, the network is cut, the chain is out of reach, and many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pdfl.scenario.events import Joined, read_record

from .test_scenarios import LONG, SCENARIOS, check


@pytest.mark.slow
@pytest.mark.scenario
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(LONG))
def test_the_scenario_comes_out_as_it_expects(name: str, tmp_path: Path) -> None:
    summary = check(SCENARIOS / f"{name}.toml", tmp_path)
    if name == "churn":
        peers = tmp_path / name / "peers"
        joined = {home.name: next(read_record(home, home.name).all(Joined), None) for home in peers.iterdir()}
        assert {peer for peer, found in joined.items() if found} == {"peer5", "peer8"}
        anchored = {(anchor.epoch, anchor.round) for anchor in summary.anchors}
        assert {(found.epoch, found.round) for found in joined.values() if found} <= anchored
