from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from p2pdfl.scenario import live, report, run_directory
from p2pdfl.scenario.events import PeerRecord
from p2pdfl.scenario.summary import Summary, summarize
from scenario.runs import ADDRESSES, ANCHORS, SLASHES, a_record, a_scenario, the_records

REQUIRED = {
    "peers",
    "honest_banned",
    "rounds",
    "final_accuracy",
    "model_digest",
    "anchors",
    "round_seconds",
    "seconds",
    "bytes_sent_per_peer_per_round",
    "bytes_per_update",
    "expected",
    "ok",
}


@pytest.fixture
def summary() -> Summary:
    return summarize(a_scenario(), the_records(), ANCHORS, SLASHES, wall_seconds=12.5)


def text_of(width: int = 160) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_the_files_of_a_run(tmp_path: Path, summary: Summary) -> None:
    report.write(tmp_path, a_scenario(), the_records(), summary)
    fields = json.loads((tmp_path / "summary.json").read_text())
    assert set(fields) >= REQUIRED
    assert set(fields["peers"][0]) >= {"name", "behaviour", "fault", "caught_round", "evidence", "slashed_wei"}
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_without_a_single_round_can_be_drawn(tmp_path: Path) -> None:
    records = [PeerRecord(name=name) for name in ADDRESSES]
    nothing = summarize(a_scenario(), records, [], [], wall_seconds=0)
    report.write(tmp_path, a_scenario(), records, nothing)
    assert (tmp_path / "accuracy.png").exists()


@pytest.mark.slow
def test_several_bans_can_be_drawn(tmp_path: Path) -> None:
    summary = summarize(a_scenario(), the_records(), ANCHORS, SLASHES, wall_seconds=12.5)
    (ban,) = summary.bans
    honest = ban.model_copy(update={"name": "peer0", "round": 5})
    report.plot_accuracy(
        tmp_path / "a.png", a_scenario(), the_records(), summary.model_copy(update={"bans": [ban, honest]})
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_have_one_row_per_round_and_peer(tmp_path: Path) -> None:
    report.write_metrics(tmp_path / "metrics.csv", a_scenario(), the_records())
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert tuple(rows[0]) == report.METRICS
    assert rows[6] == {
        "round": "1",
        "peer": "peer2",
        "behaviour": "sign_flip",
        "epoch": "0",
        "view": "0",
        "accuracy": "0.55",
        "seconds": "2.0",
        "commits": "4",
        "updates": "3",
        "update_bytes": "3003",
        "bytes_sent": "1000",
    }


def test_the_verdict_names_the_cheater_and_the_outcome(tmp_path: Path, summary: Summary) -> None:
    (tmp_path / "summary.json").write_text("")
    console = text_of()
    report.print_verdict(console, tmp_path, summary)
    text = printed(console)
    assert "sign_flip from round 1" in text
    assert "small: ok" in text
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["3", "peer2", "guilty", "1", "peer1", "3"] in cells
    assert "all 1 who send some in 4.0 rounds with audits by formula; it took 1" in text
    assert str(tmp_path / "summary.json") in text
    assert "accuracy.png" not in text  # only what there is


def test_an_expectation_that_did_not_hold_stands_out(tmp_path: Path) -> None:
    console = text_of()
    not_slashed = summarize(a_scenario(), the_records(), ANCHORS, [], wall_seconds=1)
    report.print_verdict(console, tmp_path, not_slashed)
    assert "NOT as expected" in printed(console)
    assert "NO" in printed(console)


def test_the_live_table_shows_what_each_peer_does() -> None:
    records = [a_record("peer0", lambda events: events[:8]), *the_records()[1:], PeerRecord(name="peer4")]
    console = text_of()
    console.print(live.table(a_scenario(), records, 3))
    lines = printed(console).splitlines()
    assert any("peer0" in line and "2/8" in line and "train" in line and "0.550" in line for line in lines)
    assert any("peer1" in line and "peer2" in line and "finished" in line for line in lines)  # whom it accused
    assert any("peer2" in line and "banned in round 3: guilty" in line for line in lines)
    assert any("peer4" in line and "starting" in line for line in lines)


def test_without_a_terminal_a_line_comes_only_when_something_changes() -> None:
    console = text_of()
    records = [a_record("peer0", lambda events: events[:4])]
    with live.display(console, a_scenario()) as lines:
        for tenths in range(50):
            lines.show(records, tenths / 10)
    assert printed(console) == "[   0 s] round 0 of 8; accuracy 0.500\n"


def test_an_earlier_run_is_replaced_or_moved_aside(tmp_path: Path) -> None:
    run = tmp_path / "small"

    def earlier(text: str) -> None:
        run.mkdir()
        (run / "scenario.toml").write_text(text)

    run_directory.make_room(run, made_by="scenario.toml", keep=False)
    earlier("first")
    run_directory.make_room(run, made_by="scenario.toml", keep=False)
    assert not run.exists()
    for text in ("second", "third"):
        earlier(text)
        run_directory.make_room(run, made_by="scenario.toml", keep=True)
    assert [(tmp_path / f"small.{number}" / "scenario.toml").read_text() for number in (1, 2)] == ["second", "third"]


def test_a_directory_that_is_no_earlier_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError):
        run_directory.make_room(tmp_path / "small", made_by="scenario.toml", keep=False)
    assert (tmp_path / "small" / "thesis.tex").exists()
