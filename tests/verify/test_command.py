from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pdfl import cli

from .runs import RunFiles

pytestmark = pytest.mark.slow


def test_a_run_that_is_right_exits_with_0_and_says_so(honest_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(honest_run), "--replay", "2"]) == cli.EXIT_OK
    out = capsys.readouterr().out
    assert out.endswith(f"{honest_run}: ok, 8 of 8 rounds\n")


def test_a_run_that_is_wrong_exits_with_1_and_says_where(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.edit(files.round(3), lambda index: index["head"].update(state="07" * 32))
    assert cli.main(["verify", str(files.path)]) == cli.EXIT_NOT_AS_EXPECTED
    out = capsys.readouterr().out
    assert "round 3: the certificate is for another head" in out
    assert "NOT ok" in out


def test_a_program_gets_the_same_as_json(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.edit(files.round(3), lambda index: index["head"].update(parent="07" * 32))
    assert cli.main(["verify", str(files.path), "--json"]) == cli.EXIT_NOT_AS_EXPECTED
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {item["check"] for item in report["checks"] if item["status"] == "failed"} == {"heads"}
