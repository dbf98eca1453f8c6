from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from p2pdfl.journal import Journal
from p2pdfl.scenario.events import PeerRecord


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_on_disk_when_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    seen = []
    with Journal(path, lambda event, fields: seen.append((event, dict(fields), len(lines(path))))) as journal:
        journal.write("ban", {"round": 3, "member": "0x00", "evidence": "guilty"})
    assert seen == [("ban", {"round": 3, "member": "0x00", "evidence": "guilty"}, 1)]


def test_a_restarted_peer_adds_to_its_story(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for name in ("first", "second"):
        with Journal(path) as journal:
            journal.write(name, {})
    assert [line["event"] for line in lines(path)] == ["first", "second"]


def test_a_line_cut_off_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"ms": 0, "event": "started", "addr')
    with Journal(path) as journal:
        journal.write("finished", {})
    record = PeerRecord(name="peer")
    for line in path.read_bytes().splitlines():
        record.add(line)
    assert record.finished


@pytest.mark.parametrize("value", [None, 3, 0.5, "text \n\x00 \ud800", ("a", "b"), ["a"]])
def test_every_value_is_one_line(tmp_path: Path, value: object) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.write("event", {"value": value})  # type: ignore[dict-item]
    assert len(path.read_bytes().splitlines()) == 1
    assert lines(path)[0]["value"] == (list(value) if isinstance(value, tuple) else value)


def test_threads_do_not_mix_their_lines_or_lose_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:

        def work() -> None:
            for count in range(50):
                with journal.working("train"):
                    journal.write("event", {"text": "x" * 500, "count": count})
                journal._add("audit", 1.0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(path)) == 200
    assert journal.seconds["audit"] == 200.0
    assert 0 < journal.seconds["train"] < 10


def test_time_counts_when_the_work_fails(tmp_path: Path) -> None:
    with Journal(tmp_path / "events.jsonl") as journal:
        with pytest.raises(OSError, match="no answer"), journal.waiting("chain"):
            raise OSError("no answer")
        assert journal.seconds["chain"] > 0
        assert journal.seconds["network_wait"] == 0


def test_a_disk_that_is_full_is_an_error_of_the_world() -> None:
    """OSError is what a peer tells in one line."""
    with pytest.raises(OSError, match="No space left"):  # noqa: SIM117  what closing raises counts as well
        with Journal(Path("/dev/full")) as journal:
            journal.write("event", {})
