from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from p2pdfl.node.event_log import EventLog
from p2pdfl.scenario.halt import Halts
from p2pdfl.scenario.spec import PHASES, Place


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLog]:
    monkeypatch.setattr(EventLog, "write", EventLog.write)  # put back after the test
    with EventLog(tmp_path / "events.jsonl") as log:
        yield log


def tell_all(log: EventLog, *, rounds: int) -> threading.Thread:
    def tell() -> None:
        for round in range(rounds):
            for phase in PHASES:
                log.write("phase", {"round": round, "view": 0, "phase": phase})
                log.write("beacon", {"round": round, "value": ""})

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    return thread


def last_told(home: Path) -> Place:
    line = json.loads((home / "events.jsonl").read_text().splitlines()[-1])
    assert line["event"] == "phase"
    return Place(line["round"], PHASES.index(line["phase"]))


def test_nothing_is_told_after_the_phase_until_the_runner_answers(log: EventLog, tmp_path: Path) -> None:
    runner, peer = Pipe()
    places = [Place(0, 1), Place(2, 4)]
    Halts(frozenset(places), peer).arm()
    telling = tell_all(log, rounds=4)
    for place in places:
        runner.recv()
        assert last_told(tmp_path) == place
        runner.send(None)
    telling.join(10)
    assert not telling.is_alive()
    assert not runner.poll()


def test_a_place_that_is_passed_over_halts_at_the_next(log: EventLog, tmp_path: Path) -> None:
    runner, peer = Pipe()
    Halts(frozenset([Place(1, 1), Place(1, 2)]), peer).arm()
    runner.send(None)
    for phase in ("train", "propose", "close"):
        log.write("phase", {"round": 1, "view": 0, "phase": phase})
        assert runner.poll() is (phase != "train")
    runner.recv()
    assert not runner.poll()  # once for both


def test_who_has_no_runner_any_more_does_not_wait(log: EventLog) -> None:
    runner, peer = Pipe()
    Halts(frozenset([Place(0, 0)]), peer).arm()
    runner.close()
    log.write("phase", {"round": 0, "view": 0, "phase": "train"})
