from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from p2pdfl.node.event_log import EventLog
from p2pdfl.scenario.events import PeerRecord


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_on_disk_when_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    seen = []
    with EventLog(path, lambda event, fields: seen.append((event, dict(fields), len(lines(path))))) as event_log:
        event_log.write("ban", {"round": 3, "member": "0x00", "evidence": "guilty"})
    assert seen == [("ban", {"round": 3, "member": "0x00", "evidence": "guilty"}, 1)]


def test_a_restarted_peer_adds_to_its_story(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for name in ("first", "second"):
        with EventLog(path) as event_log:
            event_log.write(name, {})
    assert [line["event"] for line in lines(path)] == ["first", "second"]


def test_a_line_cut_off_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"ms": 0, "event": "started", "addr')
    with EventLog(path) as event_log:
        event_log.write("finished", {})
    record = PeerRecord(name="peer")
    for line in path.read_bytes().splitlines():
        record.add(line)
    assert record.finished


@pytest.mark.parametrize("value", [None, 3, 0.5, "text \n\x00 \ud800", ("a", "b"), ["a"]])
def test_every_value_is_one_line(tmp_path: Path, value: object) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as event_log:
        event_log.write("event", {"value": value})  # type: ignore[dict-item]
    assert len(path.read_bytes().splitlines()) == 1
    assert lines(path)[0]["value"] == (list(value) if isinstance(value, tuple) else value)


def test_threads_do_not_mix_their_lines_or_lose_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as event_log:

        def work() -> None:
            for count in range(50):
                with event_log.working("train"):
                    event_log.write("event", {"text": "x" * 500, "count": count})
                event_log._add("audit", 1.0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(path)) == 200
    assert event_log.seconds["audit"] == 200.0
    assert 0 < event_log.seconds["train"] < 10


def test_time_counts_when_the_work_fails(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        with pytest.raises(OSError, match="no answer"), event_log.waiting("chain"):
            raise OSError("no answer")
        assert event_log.seconds["chain"] > 0
        assert event_log.seconds["network_wait"] == 0


def test_a_disk_that_is_full_is_an_error_of_the_world() -> None:
    """OSError is what a peer tells in one line."""
    with pytest.raises(OSError, match="No space left"):  # noqa: SIM117  what closing raises counts as well
        with EventLog(Path("/dev/full")) as event_log:
            event_log.write("event", {})
