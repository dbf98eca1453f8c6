from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pdfl.base import task
from p2pdfl.scenario import devnet


def test_a_built_in_task_waits_for_the_members_asked_for() -> None:
    chosen = devnet.choose("digits", 4)
    assert (chosen.data, chosen.members_min) == ("digits", 4)


def test_built_in_data_bring_their_model() -> None:
    chosen = devnet.choose("fashion_mnist", 3)
    assert (chosen.name, chosen.data, chosen.model) == ("fashion_mnist", "fashion_mnist", "mnist_cnn")


def test_a_task_file_is_taken_as_it_is_but_for_the_members(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[task]\nname = "mine"\ntraining_rounds = 7\n')
    chosen = devnet.choose(str(path), 3)
    assert (chosen.name, chosen.training_rounds, chosen.members_min) == ("mine", 7, 3)


@pytest.mark.slow
def test_the_commands_name_one_bootstrap_address_whose_key_is_there(tmp_path: Path) -> None:
    lines = devnet.commands(tmp_path / "task.toml", tmp_path, 3)
    started = [line for line in lines if "p2pdfl.peer" in line]
    assert len(started) == 3
    assert "--listen" in started[0]
    assert len({line.partition("--bootstrap ")[2] for line in started[1:]}) == 1
    assert (tmp_path / "peer1" / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.net
def test_the_devchain_publishes_a_task_prints_the_commands_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "devchain"
    command = [sys.executable, "-m", "p2pdfl.cli", "devchain", "--port", "0", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
        published = task.load(out / "task.toml")
        os.kill(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(10) == 0
    assert published.chain is not None
    assert published.task.is_measured
    assert re.search("the chain is stopped", rest)
