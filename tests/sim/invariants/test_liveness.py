"""Rounds close, and epochs get on chain, in order."""

from __future__ import annotations

from p2pdfl.base import params
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.sim.invariants.anchors_in_order import AnchorsInOrder
from p2pdfl.sim.invariants.epochs_anchored import EpochsAnchored
from p2pdfl.sim.invariants.rounds_close import RoundsClose

from .fabricated import BOUND_MS, HONEST, PEERS, Fabricated, a_head

ALL_ROUNDS = {round: head_digest(a_head(round)) for round in range(6)}


def test_rounds_close__who_stands_still_for_longer_than_the_bound() -> None:
    world = Fabricated(RoundsClose)
    world.now_ms = 700
    for index in (1, 2, 3, 4):
        world.closes(index, a_head(0))
    world.now_ms = world.checkers.first_look_ms
    world.checkers.on_time()
    assert world.violations == []
    world.now_ms += 1
    world.checkers.on_time()
    assert world.violations == [f"peer0 is in round 0 since 500 ms, for more than {BOUND_MS} ms"]


def test_rounds_close__not_of_who_is_down_or_through() -> None:
    world = Fabricated(RoundsClose)
    world.now_ms = 10 * BOUND_MS
    for index in HONEST:
        world.peers[index].is_up = index < 2
        world.peers[index].is_finished = index < 2
    world.checkers.on_time()
    assert world.violations == []


def test_rounds_close__nothing_is_promised_without_a_quorum_that_signs() -> None:
    world = Fabricated(RoundsClose)
    world.peers[4].is_muted = True
    world.now_ms = 10 * BOUND_MS
    world.checkers.on_time()
    assert world.violations == []
    assert world.checkers.out_of_bounds == "too few honest members that sign"


def test_rounds_close__a_round_is_missing_in_the_end() -> None:
    world = Fabricated(RoundsClose)
    for index in HONEST:
        world.peers[index].heads = dict(ALL_ROUNDS)
    # joined from a checkpoint; is down
    world.peers[1].first_round = 3
    del world.peers[1].heads[0], world.peers[1].heads[1], world.peers[1].heads[2]
    world.peers[2].is_up = False
    world.peers[2].heads = {}
    world.checkers.at_end()
    assert world.violations == []
    del world.peers[0].heads[2]
    world.checkers.at_end(is_live=False)
    assert world.violations == []
    world.checkers.at_end()
    assert world.violations == ["peer0 is in round 0 of 6, and has closed 5"]


def test_anchors__each_once_and_in_order() -> None:
    world = Fabricated(AnchorsInOrder)
    for round in range(6):
        world.closes(0, a_head(round))
    world.anchors(a_head(2))
    world.anchors(a_head(5))
    assert world.violations == []
    assert world.checkers.is_chain_done
    world.anchors(a_head(2))
    assert world.violations == ["epoch 0 is anchored, and it is the turn of 2"]


def test_anchors__one_is_left_out() -> None:
    world = Fabricated(AnchorsInOrder)
    world.closes(0, a_head(5))
    world.anchors(a_head(5))
    assert world.violations == ["epoch 1 is anchored, and it is the turn of 0"]


def test_anchors__of_another_head_or_another_round() -> None:
    other_head = "epoch 0 is anchored with another head than its last round closed with"
    for anchored in (a_head(2, "other"), a_head(1)):
        world = Fabricated(AnchorsInOrder)
        world.closes(0, a_head(1))
        world.closes(0, a_head(2))
        world.anchors(anchored)
        assert world.violations == [other_head]


def test_anchors__before_anybody_closed_the_round() -> None:
    world = Fabricated(AnchorsInOrder)
    world.anchors(a_head(2))
    assert len(world.violations) == 1


def test_epochs_anchored__all_have_finished_and_nobody_anchors() -> None:
    world = Fabricated(EpochsAnchored)
    for index in HONEST:
        world.peers[index].is_finished = True
    world.now_ms = 500 + BOUND_MS + params.ANCHOR_STAGGER_MS * PEERS
    world.checkers.on_time()
    assert world.violations == []
    world.now_ms += 1
    world.peers[3].is_finished = False
    world.checkers.on_time()
    assert world.violations == []
    world.peers[3].is_finished = True
    world.checkers.on_time()
    assert world.violations == ["epoch 0 is not anchored, and all have finished at 500 ms"]


def test_epochs_anchored__once_they_are_all_is_well() -> None:
    world = Fabricated(EpochsAnchored)
    for index in HONEST:
        world.peers[index].is_finished = True
    world.anchors(a_head(2))
    world.anchors(a_head(5))
    world.now_ms = 10**9
    world.checkers.on_time()
    assert world.violations == []
