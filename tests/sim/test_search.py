"""The command: one seed, many seeds in one world or in several, and where two logs part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pdfl.sim.__main__ import main
from p2pdfl.sim.difference import Difference, first_difference
from p2pdfl.sim.outcome import Draw, Outcome, Sink
from p2pdfl.sim.worlds import WORLDS, SimWorld, worlds_of

LINES = [f"{time_ms} {time_ms % 3} event {time_ms}" for time_ms in range(100)]


def an_outcome(draw: Draw, *violations: str) -> Outcome:
    return Outcome(
        seed=draw.seed,
        digests={},
        rounds=1,
        views={0: 1},
        virtual_ms=1,
        calm_ms=0,
        events=10,
        violations=violations,
        out_of_bounds=None,
        about="a fabricated run",
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is run, in two worlds that take no time."""
    runs: list[tuple[str, int]] = []

    def world(name: str, seeds_per_turn: int, *plants: str) -> SimWorld:
        def run_seed(draw: Draw, sink: Sink | None) -> Outcome:
            runs.append((name, draw.seed))
            if draw.seed == 102 and draw.plant is None:
                raise KeyboardInterrupt
            return an_outcome(draw, *(["it is broken"] if draw.plant and draw.seed == 101 else []))

        return SimWorld(run_seed=run_seed, plants=plants, seeds_per_turn=seeds_per_turn)

    monkeypatch.setitem(WORLDS, "fast", world("fast", 3, "quorum"))
    monkeypatch.setitem(WORLDS, "true", world("true", 1, "unsynced"))
    return runs


def test_each_world_gets_its_turn_and_the_same_seeds(seen: list[tuple[str, int]]) -> None:
    assert main(["hunt", "--seeds", "0:4", "--processes", "1"]) == 0
    fast, true = [("fast", seed) for seed in range(4)], [("true", seed) for seed in range(4)]
    assert seen == [*fast[:3], true[0], fast[3], *true[1:]]


def test_a_world_can_be_left_out(seen: list[tuple[str, int]]) -> None:
    assert main(["hunt", "--seeds", "0:2", "--processes", "1", "--world", "true"]) == 0
    assert seen == [("true", 0), ("true", 1)]


def test_a_bug_is_looked_for_in_the_world_that_can_have_it(
    seen: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hunt", "--seeds", "100:110", "--processes", "1", "--plant", "unsynced"]) == 1
    assert seen == [("true", 100), ("true", 101)]
    told = capsys.readouterr().out.splitlines()
    assert "VIOLATION after 2 seeds of the true world: seed 101, a fabricated run" in told
    assert "    make sim SEED=101 ARGS='--world true --plant unsynced'" in told
    with pytest.raises(ValueError, match="another world: true"):
        worlds_of("fast", "unsynced")


def test_a_search_that_is_stopped_says_how_far_it_got(
    seen: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hunt", "--seeds", "100:200", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert "fast: stopped after seed 101" in told
    assert "fast: 2 seeds up to 101" in told
    assert "true: stopped before the first seed was done" in told


def test_a_run_that_is_stopped_is_no_traceback(seen: list[tuple[str, int]]) -> None:
    assert main(["replay", "--seed", "102"]) == 130


@pytest.mark.parametrize("options", [["--log", "somewhere"], ["--first-difference", "somewhere"]])
def test_a_log_is_of_one_world(seen: list[tuple[str, int]], options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "--seed", "1", *options])
    assert stopped.value.code == 2
    assert seen == []


@pytest.mark.slow
def test_the_first_violation_does_not_depend_on_how_many_processes_search(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for processes in ("1", "2"):
        assert main(["hunt", "--seeds", "20:24", "--plant", "third", "--processes", processes]) == 1
        found.append([line for line in capsys.readouterr().out.splitlines() if "seeds/min" not in line])
    assert found[0] == found[1]
    assert "    make sim SEED=21 ARGS='--world fast --plant third'" in found[0]


# --- two logs ---------------------------------------------------------------------------


def test_equal_logs_have_no_difference() -> None:
    assert first_difference(LINES, iter(LINES)) == len(LINES)


def test_the_first_difference_comes_with_what_led_to_it() -> None:
    other = [*LINES[:50], "50 1 something else", *LINES[51:]]
    found = first_difference(LINES, other)
    assert isinstance(found, Difference)
    assert found.line_number == 51
    assert found.before == tuple(LINES[42:50])
    # line 50 is peer 2's in one log and peer 1's in the other
    assert found.own == (*LINES[26:50:3], *LINES[28:50:3])
    assert found.left == tuple(LINES[50:54])
    assert found.right[0] == "50 1 something else"


def test_a_log_that_ends_early_differs_there() -> None:
    found = first_difference(LINES, LINES[:50])
    assert isinstance(found, Difference)
    assert (found.line_number, found.left[:1], found.right) == (51, (LINES[50],), ())


def test_nothing_is_read_beyond_what_is_shown() -> None:
    def endless() -> Iterator[str]:
        yield "0 1 other"
        while True:
            yield "1 1 more"

    assert isinstance(first_difference(endless(), iter(LINES)), Difference)


@pytest.mark.slow
def test_two_processes_write_the_same_log(capsys: pytest.CaptureFixture[str]) -> None:
    """ATTACK on ourselves: the order of a set of bytes changes with PYTHONHASHSEED."""
    assert main(["replay", "--world", "fast", "--seed", "4", "--first-difference"]) == 0
    assert "no difference in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_compared_with_a_log_that_was_written_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "seed-4.log"
    run = ["replay", "--world", "fast", "--seed", "4", "--crypto", "stand-in"]
    assert main([*run, "--log", str(log)]) == 0
    assert main([*run, "--first-difference", str(log)]) == 0
    lines = log.read_text().splitlines()
    now_ms, peer, _ = lines[500].split(" ", 2)
    log.write_text("\n".join([*lines[:500], f"{now_ms} {peer} something else", *lines[501:]]))
    capsys.readouterr()
    assert main([*run, "--first-difference", str(log)]) == 1
    told = capsys.readouterr().out
    assert "they part in line 501" in told
    assert f"- {now_ms:>8} ms  peer{peer:<3} something else" in told
