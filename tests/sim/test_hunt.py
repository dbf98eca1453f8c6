"""The search: a run follows from its seed, honest runs hold, and what is broken on purpose is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import list_hash
from p2pdfl.sim import caches
from p2pdfl.sim.chain import Anchors
from p2pdfl.sim.check import watch
from p2pdfl.sim.hunt import Case, draw_case, make_world, run_case
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.mutants import Plant
from p2pdfl.sim.world import World

from .runs import a_world

pytestmark = pytest.mark.slow

SEED = 4
"""Six peers, one of them Byzantine."""
EVENTS, DIGEST = 2_559, "467f93fbd5ef1124"
"""Of its run with the stand-in sharing."""


def _log(case: Case) -> tuple[list[str], str]:
    lines: list[str] = []
    return lines, run_case(case, sink=lines.append).digests["log"]


def test_the_same_seed_twice_gives_identical_bytes_of_the_whole_log() -> None:
    first, digest = _log(draw_case(SEED))
    second, again = _log(draw_case(SEED))
    assert len(first) > 500
    assert (first, digest) == (second, again)


def test_the_log_of_a_seed_is_what_it_was() -> None:
    """What makes the search faster must not change what it looks at.  Another digest is for a change of the protocol
    or of the model, and then it is meant."""
    result = run_case(draw_case(SEED, crypto="stand-in"))
    assert (result.events, result.digests["log"][:16]) == (EVENTS, DIGEST)


def test_another_seed_gives_another_log() -> None:
    assert run_case(draw_case(SEED)).digests != run_case(draw_case(SEED + 17)).digests


def test_what_is_remembered_changes_nothing() -> None:
    def run() -> World:
        world = a_world(5, task={"training_rounds": 1})
        world.run(until_ms=60_000, until=world.is_finished)
        return world

    plain = run().log.digest
    with caches.installed():
        assert run().log.digest == plain


def test_the_caches_leave_no_trace() -> None:
    from p2pdfl.protocol import ingress

    names = vars(ingress)
    before = names["decode_payload"]
    with caches.installed():
        assert names["decode_payload"] is not before
    assert names["decode_payload"] is before


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
        rng = make_world(draw_case(SEED))[0]._random
        assert all(plan.network.delays_ms(0, 1, plan.calm_ms, rng) for _ in range(20))
        assert all(crash.at_ms + crash.down_ms <= plan.calm_ms + 2 for crash in plan.crashes)


@pytest.mark.parametrize(
    ("plant", "seed", "found"),
    [
        ("quorum", 4, "no quorum certified"),
        ("share", 4, "the beacon is open"),
        ("slot", 3, "signed twice in a slot"),
        ("impunity", 3, "has not banned"),
        ("third", 23, "two heads can be certified"),
    ],
)
def test_a_planted_bug_is_found(plant: Plant, seed: int, found: str) -> None:
    assert found in "\n".join(run_case(draw_case(seed, plant=plant)).violations)


# --- the chain ----------------------------------------------------------------------


def _mined(world: World) -> tuple[World, Checkers]:
    checkers = watch(world, bound_ms=30_000)
    world.mine_from_now_on(500)
    with caches.installed():
        world.run(until_ms=600_000, until=lambda: checkers.is_over or (world.is_finished() and checkers.is_chain_done))
    return world, checkers


EPOCHS = {"training_rounds": 9, "epoch_rounds": 3}


def test_every_epoch_is_anchored_in_order_and_once() -> None:
    world, checkers = _mined(a_world(task=EPOCHS))
    assert checkers.violations == []
    assert [anchor.head.epoch for anchor in world.anchors.taken] == list(range(world.task.epoch_count))


def test_rounds_close_while_the_chain_is_out_of_reach_and_the_anchors_follow() -> None:
    world = a_world(task=EPOCHS)
    before: list[tuple[bool, int]] = []
    world.at(100, lambda: world.reach_chain(is_reachable=False))
    world.at(20_000, lambda: before.append((world.is_finished(), len(world.anchors.taken))))
    world.at(20_000, lambda: world.reach_chain(is_reachable=True))
    _, checkers = _mined(world)
    assert before == [(True, 0)]
    assert checkers.violations == []
    assert [anchor.head.epoch for anchor in world.anchors.taken] == list(range(world.task.epoch_count))


def test_the_checkers_find_an_epoch_that_nobody_anchors() -> None:
    world = a_world()
    world.idle = frozenset(range(4))
    _, checkers = _mined(world)
    assert "epoch 0 is not anchored" in checkers.violations[-1]


def test_the_contract_takes_the_certified_head_of_the_next_epoch_only() -> None:
    world, _ = _mined(a_world(task=EPOCHS))
    first, second, *_ = world.anchors.taken
    members = tuple(entry.address for entry in world.genesis.registrations)
    chain = Anchors(task=first.head.task, domain=world.config.domain, lists=[list_hash(members)])
    votes = first.certificate.ballots
    refused = [
        second,
        replace(first, head=first.head.replace(state=b"\x01" * 32)),
        replace(first, certificate=first.certificate.replace(ballots=votes[:2])),
        replace(first, members=members[:1]),
        replace(first, next_members=members[:1]),
    ]
    assert not any(chain.take(anchor) for anchor in refused)
    assert chain.take(first)
    assert not chain.take(first)
    assert chain.take(second)
    assert chain.refused_count == len(refused) + 1
