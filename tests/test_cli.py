from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pdfl import cli


def test_help_needs_nothing_heavy() -> None:
    """--help must be there at once: no torch, no libp2p, no web3."""
    script = (
        "import sys; from p2pdfl import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'libp2p', 'web3', 'matplotlib', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert all(command in done.stdout for command in ("peer", "scenario", "devchain"))


def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main([])
    assert raised.value.code == cli.EXIT_USAGE
    assert "COMMAND" in capsys.readouterr().err


def test_an_unknown_scenario_is_one_line_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenario", "nothing-like-it"]) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("p2pdfl: no scenario 'nothing-like-it'; there are: bad_path, ")
    assert error.count("\n") == 1


def test_a_scenario_with_a_wrong_field_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\npeers = 3\ncolour = "red"\n[task]\n')
    assert cli.main(["scenario", str(path), "--out", str(tmp_path / "runs")]) == cli.EXIT_USAGE
    assert "mine.toml: colour: there is no such field" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_output_directory_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("")
    assert cli.main(["scenario", "honest", "--out", str(tmp_path / "runs")]) == cli.EXIT_FAILED
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("port", ["-1", "65536", "x", "1.5"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["devchain", f"--port={port}"])
    assert raised.value.code == cli.EXIT_USAGE
    assert "is no port" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--task", "no/such/file.toml"], "no/such/file.toml"), (["--members", "0"], "members_min")],
)
def test_a_task_that_cannot_be_used_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["devchain", "--port", "0", "--out", str(tmp_path / "devchain"), *arguments]) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_verify_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path)]) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("p2pdfl: ")
    assert "task.toml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "9" * 10])
def test_a_replay_count_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["verify", "run", f"--replay={count}"])
    assert raised.value.code == cli.EXIT_USAGE
    assert "is no count" in capsys.readouterr().err


def test_audits_are_told_for_any_number_of_peers(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audits", "--peers", "16", "--byzantine", "7", "--audit-fraction", "0.05", "--audit-fraction", "0.25"]
    assert cli.main(asked) == cli.EXIT_OK
    told = capsys.readouterr().out
    assert "16 peers, 7 of them Byzantine" in told
    assert [line.split("│")[6].strip() for line in told.splitlines() if line.startswith("│")] == ["37.1", "10.7"]


@pytest.mark.parametrize("asked", [["--byzantine", "16"], ["--byzantine", "1", "--audit-fraction", "nan"]])
def test_audits_that_cannot_be_are_one_line(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audits", "--peers", "16", *asked]) == cli.EXIT_USAGE
    assert capsys.readouterr().err.count("\n") == 1
