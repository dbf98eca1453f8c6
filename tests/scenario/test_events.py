from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pdfl.scenario.events import Ban, EventTail, PeerRecord, read_record, read_result

ROUND = {
    "ms": 5,
    "event": "round",
    "round": 0,
    "epoch": 0,
    "view": 0,
    "head": "AA" * 32,
    "state": "bb" * 32,
    "accuracy": 0.5,
    "seconds": 1.5,
    "commits": 4,
    "updates": 3,
    "update_bytes": 300,
    "bytes_sent": 100,
}


def text_of(event: dict[str, object]) -> bytes:
    return json.dumps(event).encode()


def record_of(*events: dict[str, object]) -> PeerRecord:
    record = PeerRecord(name="peer0")
    for event in events:
        record.add(text_of(event))
    return record


def test_a_record_follows_round_phase_and_accuracy() -> None:
    record = record_of({"event": "started", "address": "0xAB", "peer_id": "12D3"})
    assert (record.address, record.round, record.accuracy) == ("0xab", None, None)
    record.add(text_of(ROUND))
    record.add(text_of({**ROUND, "round": 1, "accuracy": None}))
    assert (record.round, record.accuracy) == (1, 0.5)
    record.add(text_of({"event": "phase", "round": 2, "view": 0, "phase": "train"}))
    assert record.round == 2
    assert record.rounds[0].head == "aa" * 32


def test_an_accuracy_of_zero_is_a_measurement() -> None:
    assert record_of({**ROUND, "accuracy": 0.0}).accuracy == 0.0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"event": 3}',
        b'{"event": "ban"}',
        b'{"event": "round", "round": "x"}',
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_line_that_does_not_fit_is_counted_and_passed_over(line: bytes) -> None:
    record = PeerRecord(name="peer0")
    record.add(line)
    record.add(text_of({"event": "ban", "round": 3, "member": "0xAA", "evidence": "guilty"}))
    assert record.malformed_lines == 1
    assert [ban.member for ban in record.all(Ban)] == ["0xaa"]


def test_an_event_of_a_newer_peer_is_ignored() -> None:
    assert record_of({"event": "weather", "round": []}).malformed_lines == 0


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    assert tail.lines() == []
    with path.open("ab") as file:
        file.write(b"o\n\nthree \xff\n")
    assert tail.lines() == [b"two", b"three \xff"]


def test_a_tail_does_not_grow_with_an_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(bytes(2 << 20))
    tail = EventTail(path)
    assert tail.lines() == []
    assert tail._rest == b""


def test_the_record_of_a_peer_killed_in_the_middle_of_a_line_is_what_it_wrote_before(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(json.dumps(ROUND) + '\n{"event": "rou')
    record = read_record(tmp_path, "peer0")
    assert list(record.rounds) == [0]
    assert record.malformed_lines == 0
    assert record.result is None


def test_a_result_that_does_not_fit_is_refused_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"name": "peer0", "address": "0xaa", "rounds": "many", "state": "", "heads": {}}')
    with pytest.raises(ValueError, match="rounds: "):
        read_result(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json"):
        read_result(path)
