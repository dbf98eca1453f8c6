from __future__ import annotations

import io
import json
import multiprocessing
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from rich.console import Console

from p2pdfl.node.keyfile import load_or_create
from p2pdfl.scenario import runner, spec
from p2pdfl.scenario.runner import RunFailed
from p2pdfl.scenario.summary import Summary
from scenario.scripted_peer import PIDS, RUSHED_ROUNDS

pytestmark = [pytest.mark.slow, pytest.mark.scenario]

ENTRY = "scenario.scripted_peer:main"


def scenario_file(directory: Path, name: str) -> Path:
    path = directory / f"{name}.toml"
    path.write_text(f'name = "{name}"\npeers = 2\nstall_s = 1.0\n[task]\ntraining_rounds = 3\n')
    return path


def patient(text: str) -> str:
    return text.replace("stall_s = 1.0", "stall_s = 600.0")


def run(directory: Path, name: str, more: str = "") -> tuple[Summary, str]:
    console = Console(file=io.StringIO(), width=120)
    path = scenario_file(directory, name)
    path.write_text((path.read_text() if name == "stall" else patient(path.read_text())) + more)
    summary = runner.run(path, directory / "runs", peer_entry=ENTRY, console=console)
    assert isinstance(console.file, io.StringIO)
    return summary, console.file.getvalue()


def problems(summary: Summary) -> list[str]:
    (item,) = (item for item in summary.expected if item.what == "the run went through")
    return list(item.seen)


def wait_for_end(pid: int, timeout_s: float) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([process], [], [], timeout_s)
    finally:
        os.close(process)
    return bool(ended)


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path]:
    directory = tmp_path_factory.mktemp("stalled")
    return run(directory, "stall")[0], directory / "runs" / "stall"


def test_a_run_in_which_nothing_moves_is_given_up_and_its_peers_are_stopped(stalled: tuple[Summary, Path]) -> None:
    summary, directory = stalled
    assert not summary.ok
    assert problems(summary) == ["nothing moved for 1 s"]
    assert all(wait_for_end(int((directory / "peers" / name / "pid").read_text()), 0) for name in ("peer0", "peer1"))


def test_a_run_that_came_to_nothing_leaves_what_there_is(stalled: tuple[Summary, Path]) -> None:
    summary, directory = stalled
    assert {path.name for path in directory.iterdir()} >= {
        "scenario.toml",
        "task.toml",
        "environment.json",
        "chain.json",
        "summary.json",
        "metrics.csv",
        "accuracy.png",
        "peers",
    }
    fields = json.loads((directory / "summary.json").read_text())
    assert fields == json.loads(summary.model_dump_json())
    assert fields["peers"][0]["ended"] == "killed by signal 15"


def test_every_peer_but_the_first_gets_the_first_as_its_bootstrap(stalled: tuple[Summary, Path]) -> None:
    peers = stalled[1] / "peers"
    assert "--bootstrap" not in (peers / "peer0/arguments").read_text()
    assert "--bootstrap\n/memory/peer0" in (peers / "peer1/arguments").read_text()


def test_the_keys_of_a_scenario_are_the_same_in_every_run(stalled: tuple[Summary, Path], tmp_path: Path) -> None:
    run(tmp_path, "stall")
    keys = [path.read_text() for path in sorted((tmp_path / "runs/stall/peers").glob("*/key"))]
    assert len(set(keys)) == 2
    assert keys == [path.read_text() for path in sorted((stalled[1] / "peers").glob("*/key"))]


def test_an_honest_peer_that_dies_is_shown_with_its_last_words(tmp_path: Path) -> None:
    summary, output = run(tmp_path, "die")
    assert not summary.ok
    assert "peer1: stopped with exit code 1" in problems(summary)
    assert "the disk is full of eels" in output
    assert "the disk is full of eels" in (tmp_path / "runs/die/peers/peer1/log.txt").read_text()


def test_a_first_peer_that_does_not_come_up_fails_the_run_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"peer0 ended before it listened:\n +no port is free"):
        run(tmp_path, "mute")


@contextmanager
def running(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str = ""
) -> Iterator[tuple[BaseProcess, list[int]]]:
    """A runner in a process of its own, and the process ids of its two peers."""
    fifo = directory / "pids"
    os.mkfifo(fifo)
    monkeypatch.setenv(PIDS, str(fifo))
    process = multiprocessing.get_context("spawn").Process(target=_run_for_long, args=(directory, fault))
    process.start()
    pids: list[int] = []
    while len(pids) < 2:
        with fifo.open() as lines:
            pids += [int(line) for line in lines]
    yield process, pids
    process.join(30)
    assert not process.is_alive()


def _run_for_long(directory: Path, fault: str) -> None:
    path = scenario_file(directory, "stall")
    path.write_text(patient(path.read_text()) + fault)
    runner.run(path, directory / "runs", peer_entry=ENTRY, console=Console(file=io.StringIO()))


@pytest.mark.parametrize(("kind", "does"), [("kill", "killed"), ("stop", "stopped")])
def test_a_peer_is_struck_in_the_phase_however_fast_it_is(kind: str, does: str, tmp_path: Path) -> None:
    fault = f'[[faults]]\npeer = 1\nkind = "{kind}"\nat_round = 2\nphase = "reveal"\nseconds = 0.1\n'
    summary, output = run(tmp_path, "rush", fault)
    assert f"peer1 {does} in round 2, reveal, as the scenario says" in output
    assert (summary.peers[1].struck_at, problems(summary)) == ("round 2, reveal", [])
    if kind == "kill":
        lines = (tmp_path / "runs/rush/peers/peer1/events.jsonl").read_text().splitlines()
        told = [(line["round"], line["phase"]) for line in map(json.loads, lines) if line["event"] == "phase"]
        assert told[told.index((0, "train"), 1) - 1] == (2, "reveal")  # the last of its first life
        assert told[-1] == (RUSHED_ROUNDS - 1, "close")  # nothing strikes it twice


OUTAGE = '[[chain_outages]]\nkind = "{kind}"\nat_round = 0\nseconds = 600\n'


@pytest.mark.parametrize(("kind", "does"), [("refuse", "hangs up on everybody"), ("hang", "hangs")])
def test_a_chain_is_back_when_its_outage_outlives_the_run(kind: str, does: str, tmp_path: Path) -> None:
    summary, output = run(tmp_path, "stall", OUTAGE.format(kind=kind))
    assert f"the chain {does}; the peers are in round 0, train" in output
    assert problems(summary) == ["nothing moved for 1 s"]


STOP = '[[faults]]\npeer = 0\nkind = "stop"\nat_round = 0\nseconds = 600\n'


def test_no_peer_and_no_chain_outlives_a_runner_that_is_killed_not_even_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One peer and the chain are stopped, the other peer runs."""
    with running(tmp_path, monkeypatch, fault=STOP + OUTAGE.format(kind="hang")) as (process, pids):
        assert process.pid is not None
        while len(stopped := [pid for pid in descendants(process.pid) if is_stopped(pid)]) < 2:
            os.sched_yield()
        assert len({*stopped, *pids}) == 3
        process.kill()
        assert all(wait_for_end(pid, 10) for pid in {*stopped, *pids})


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_ctrl_c_stops_the_peers_and_leaves_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, monkeypatch) as (process, pids):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        assert all(wait_for_end(pid, 10) for pid in pids)
    summary = Summary.model_validate_json((tmp_path / "runs/stall/summary.json").read_text())
    assert not summary.ok
    assert problems(summary) == ["interrupted"]


def test_colluders_are_told_each_others_addresses(tmp_path: Path) -> None:
    path = tmp_path / "collusion.toml"
    cheats = [f'[[byzantine]]\npeer = {index}\nbehaviour = "ipm"\ncollude = true\n' for index in (1, 2)]
    cheats.append('[[byzantine]]\npeer = 3\nbehaviour = "zero"\n')
    path.write_text('name = "collusion"\npeers = 5\n' + "".join(cheats))
    scenario = spec.load(path)
    keys = load_or_create(tmp_path / "key", lambda count: runner._seed(scenario, "peer2", count))
    assert runner.colluders(scenario, "peer1") == [keys.address]
    assert runner.colluders(scenario, "peer3") == runner.colluders(scenario, "peer0") == []
