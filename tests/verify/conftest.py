from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .runs import RunFiles, TrainingWorld, leave_behind, run_to_the_end


@pytest.fixture(scope="session")
def world() -> TrainingWorld:
    return run_to_the_end()


@pytest.fixture(scope="session")
def honest_run(world: TrainingWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    leave_behind(world, directory)
    return directory


@pytest.fixture
def files(honest_run: Path, tmp_path: Path) -> RunFiles:
    """A copy to tamper with."""
    return RunFiles(shutil.copytree(honest_run, tmp_path / "run"))
