"""Members come and go, the network is cut, the chain is out of reach: those of `make test-long`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_scenarios import LONG, SCENARIOS, check


@pytest.mark.slow
@pytest.mark.scenario
@pytest.mark.parametrize("name", sorted(LONG))
def test_the_scenario_comes_out_as_it_expects(name: str, tmp_path: Path) -> None:
    check(SCENARIOS / f"{name}.toml", tmp_path)
