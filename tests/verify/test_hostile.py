"""Whatever somebody puts into the files: a failed check or a run that is none, never a crash, never a hang."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pdfl.base.types import Packet
from p2pdfl.verify.files import BadFile, Transcript, Unusable, read_bounded, read_json
from p2pdfl.verify.findings import Check, Findings, lines
from p2pdfl.verify.registry import load
from p2pdfl.verify.verification import verify

from .runs import RunFiles

GARBAGE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"NaN",
    b"[" * 100_000,
    b'{"round": 1e999, "head": {}, "events": [{}], "blocks": [{}], "model_digest": []}',
    b'{"events": [1], "blocks": [1], "model_digest": {"\x1b[31m": "zz"}, "final_accuracy": "0.9"}',
    b"9" * 10_000,
]


def is_refused(path: Path) -> bool:
    try:
        report = verify(path)
    except Unusable:
        return True
    assert all(line.isprintable() for line in lines(report))
    return not report.ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task.toml", "chain.json", "summary.json", "model.safetensors", "round", "blob"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_place_of_any_file_is_refused(files: RunFiles, name: str, garbage: bytes) -> None:
    special = {"round": files.round(3), "blob": files.blob(files.index(3)["contents"])}
    special.get(name, files.path / name).write_bytes(garbage)
    assert is_refused(files.path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task.toml", "chain.json", "summary.json", "model.safetensors", "round", "blob"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link", "device"])
def test_what_is_no_file_is_not_waited_for(files: RunFiles, name: str, kind: str) -> None:
    special = {"round": files.round(3), "blob": files.blob(files.index(3)["contents"])}
    path = special.get(name, files.path / name)
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("/nowhere")
        case "device":
            path.symlink_to("/dev/zero")
    if kind == "dangling link" and name in ("summary.json", "model.safetensors"):
        assert verify(files.path).ok  # as if it were not there, which is said
    else:
        assert is_refused(files.path)


HOSTILE_VALUES: list[Any] = [None, True, -1, 2**40, 1.5, "", "zz", "../../../etc/passwd", "/etc/passwd", [], {}, [[]]]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(leaf for key, item in value.items() for leaf in _leaves(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(leaf for key, item in enumerate(value) for leaf in _leaves(item, (*path, key)))]
    return [path]


def _set(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_field_of_a_round_of_a_wrong_type_or_value_is_refused(files: RunFiles, seed: int) -> None:
    draw = random.Random(seed)
    original = files.round(2).read_bytes()
    for value in HOSTILE_VALUES:
        index = json.loads(original)
        path = draw.choice([path for path in _leaves(index) if path])
        _set(index, path, value)
        files.round(2).write_text(json.dumps(index))
        assert is_refused(files.path) or json.loads(original) == index, (path, value)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_field_of_the_chains_events_of_a_wrong_type_is_refused(files: RunFiles, seed: int) -> None:
    draw = random.Random(seed)
    original = (files.path / "chain.json").read_bytes()
    for value in HOSTILE_VALUES:
        content = json.loads(original)
        path = draw.choice([path for path in _leaves(content) if path and path[0] in ("events", "blocks")])
        _set(content, path, value)
        (files.path / "chain.json").write_text(json.dumps(content))
        is_refused(files.path)  # some fields, as a transaction's hash, nobody can check


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_crashes(files: RunFiles, seed: int) -> None:
    draw = random.Random(seed)
    paths = sorted(path for path in files.path.rglob("*") if path.is_file())
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(paths)
        data = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(max(1, len(data)))
            data[place : place + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 4))
        path.write_bytes(data)
    is_refused(files.path)


@pytest.mark.slow
def test_a_proposal_of_a_view_beyond_all_reach_costs_nothing(files: RunFiles) -> None:
    (packet,) = files.packets(1, "propose")
    far = packet.replace(envelope=packet.envelope.replace(view=2**32 - 1))

    def change(index: Any) -> None:
        entry = next(entry for entry in index["packets"] if entry["kind"] == "propose")
        entry.update(digest=files.put(far), view=2**32 - 1)

    files.edit(files.round(1), change)
    assert is_refused(files.path)


@pytest.mark.slow
def test_a_packet_that_says_it_is_another_is_refused(files: RunFiles) -> None:
    def change(index: Any) -> None:
        index["packets"][0]["view"] = 1

    files.edit(files.round(1), change)
    assert is_refused(files.path)


# --- without a run ---------------------------------------------------------------------------------------------------


def test_a_directory_without_a_run_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"task\.toml"):
        verify(tmp_path)
    with pytest.raises(Unusable, match="rounds"):
        Transcript(tmp_path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadFile, match="at most 1000 are possible"):
        read_bounded(path, 1_000)


def test_nested_json_does_not_reach_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(BadFile, match="nested too deeply"):
        read_json(path, 1 << 20)


def test_a_blob_is_what_its_digest_says(tmp_path: Path) -> None:
    for part in ("rounds", "blobs"):
        (tmp_path / part).mkdir()
    transcript = Transcript(tmp_path)
    (tmp_path / "blobs" / ("07" * 32)).write_bytes(b"something")
    with pytest.raises(BadFile, match="its content has another digest"):
        transcript.blob(b"\x07" * 32, 100)
    with pytest.raises(BadFile, match="No such file"):
        transcript.wire(Packet, b"\x08" * 32)
    (tmp_path / "blobs" / "..strange").write_bytes(b"")
    assert list(transcript.unread_blobs()) == [("..strange", "is no digest")]


EVENT: dict[str, Any] = {"event": "ExitRequested", "tx": "0x" + "01" * 32, "block": 3, "address": "0x" + "02" * 20}


@pytest.mark.parametrize(
    "change",
    [
        lambda event: event.pop("tx"),
        lambda event: event.update(block="0x03"),
        lambda event: event.update(block=-3),
        lambda event: event.update(block=True),
        lambda event: event.update(block=3.0),
        lambda event: event.update(address="0x02"),
        lambda event: event.update(address=2),
        lambda event: event.update(more="0x02"),
        lambda event: event.update(event="Exit"),
        lambda event: event.update(event=["ExitRequested"]),
        lambda event: event.update(
            event="Registered", peer_id="0x" + "01" * 65, pvss_key="0x02" + "01" * 32, deposit_wei=1
        ),
        lambda event: event.update(event="Registered", peer_id="0x01", pvss_key="0x02" + "00" * 32, deposit_wei=1),
    ],
)
def test_an_event_that_the_contract_cannot_have_logged_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = tmp_path / "chain.json"
    path.write_text(json.dumps({"events": [EVENT], "blocks": []}))
    assert len(load(path, 1).events) == 1
    event = dict(EVENT)
    change(event)
    path.write_text(json.dumps({"events": [event], "blocks": []}))
    with pytest.raises(BadFile, match=r"chain\.json"):
        load(path, 1)


def test_one_block_has_one_number(tmp_path: Path) -> None:
    path = tmp_path / "chain.json"
    block = {"number": 1, "hash": "0x" + "01" * 32}
    for other in ({**block, "number": 2}, {**block, "hash": "0x" + "02" * 32}):
        path.write_text(json.dumps({"events": [], "blocks": [block, other]}))
        with pytest.raises(BadFile, match="two blocks"):
            load(path, 1)


def test_what_a_file_says_does_not_reach_the_terminal_as_it_is() -> None:
    findings = Findings()
    for _ in range(30):
        findings.fail(Check.FILES, "\x1b[2J" + "x" * 10_000)
    told = lines(findings.report(rounds=0, rounds_of_task=1, caveats=()))
    assert all(line.isprintable() and len(line) < 500 for line in told)
    assert any(line.strip() == "and 10 more" for line in told)
