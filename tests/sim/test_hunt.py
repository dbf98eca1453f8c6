"""The search: a run follows from its seed, honest runs hold, and what is broken on purpose is found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from p2pdfl.crypto import pvss
from p2pdfl.sim import caches
from p2pdfl.sim.check import Watch
from p2pdfl.sim.hunt import Case, draw_case, make_world, run_case
from p2pdfl.sim.plants import Plant
from p2pdfl.sim.world import World

from .runs import a_world

pytestmark = pytest.mark.slow

SEED = 4
"""Six peers, one of them Byzantine."""


def _log(case: Case) -> tuple[list[str], str]:
    lines: list[str] = []
    return lines, run_case(case, sink=lines.append).digest


def test_the_same_seed_twice_gives_identical_bytes_of_the_whole_log() -> None:
    first, digest = _log(draw_case(SEED))
    second, again = _log(draw_case(SEED))
    assert len(first) > 500
    assert (first, digest) == (second, again)


def test_another_seed_gives_another_log() -> None:
    assert run_case(draw_case(SEED)).digest != run_case(draw_case(SEED + 17)).digest


def test_the_log_does_not_depend_on_the_process() -> None:
    """ATTACK on ourselves: the order of a set of bytes changes with PYTHONHASHSEED."""
    program = f"from p2pdfl.sim.hunt import draw_case, run_case; print(run_case(draw_case({SEED})).digest)"
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


def test_what_is_remembered_changes_nothing() -> None:
    def run() -> World:
        world = a_world(5, task={"training_rounds": 1})
        world.run(until_ms=60_000, until=world.is_finished)
        return world

    plain = run().log.digest
    with caches.installed():
        assert run().log.digest == plain


def test_the_caches_leave_no_trace() -> None:
    from p2pdfl.protocol import run

    before = run.decode_payload
    with caches.installed():
        assert run.decode_payload is not before
    assert run.decode_payload is before


@pytest.mark.parametrize("seed", [3, 5, 8, 11])
def test_a_drawn_run_holds(seed: int) -> None:
    result = run_case(draw_case(seed))
    assert result.violations == ()
    assert result.out_of_bounds is None
    assert result.rounds > 0


def test_small_runs_have_the_real_sharing() -> None:
    assert draw_case(1, peers=4).sharing is pvss
    assert draw_case(1, peers=9).sharing is not pvss


def test_the_byzantine_and_who_loses_its_store_are_under_a_third() -> None:
    for seed in range(200):
        case = draw_case(seed)
        faulty = len(case.byzantine) + len(case.plan.amnesiacs)
        assert 3 * faulty < case.peer_count - case.late_count


def test_after_the_calm_nothing_is_lost_and_everybody_is_up() -> None:
    for seed in range(50):
        plan = draw_case(seed).plan
        chance = make_world(draw_case(SEED))[0]._random
        assert all(plan.network.delays_ms(0, 1, plan.calm_ms, chance) for _ in range(20))
        assert all(crash.at_ms + crash.down_ms <= plan.calm_ms + 2 for crash in plan.crashes)


@pytest.mark.parametrize(
    ("plant", "seed", "found"),
    [
        ("quorum", 4, "no quorum certified"),
        ("share", 4, "the beacon is open"),
        ("slot", 3, "signed twice in a slot"),
        ("third", 1, "two heads can be certified"),
    ],
)
def test_a_planted_bug_is_found(plant: Plant, seed: int, found: str) -> None:
    assert found in "\n".join(run_case(draw_case(seed, plant=plant)).violations)


def _violations_of_a_slow_disk(seed: int, *, is_leaky: bool) -> list[str]:
    """Asked while its COMMIT is on the way to the disk, then killed: the slot is open again after the restart."""
    world = a_world(seed=seed)
    world.is_leaky = is_leaky
    world.peers[1].disk_ms = 400
    world.crash(1, "before_write")
    world.at(600, world.restart, 1)
    watch = Watch(world=world, byzantine=frozenset(), bound_ms=100_000)
    world.run(until_ms=300_000, until=lambda: watch.is_over or (world.is_finished() and world.peers[1].is_up))
    return watch.violations


def test_what_is_signed_is_nobodys_before_it_is_on_disk() -> None:
    """ATTACK: a question at the right moment, which the node answered."""
    seeds = range(1, 6)
    assert any(_violations_of_a_slow_disk(seed, is_leaky=True) for seed in seeds)
    assert not any(_violations_of_a_slow_disk(seed, is_leaky=False) for seed in seeds)
