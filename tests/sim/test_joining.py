"""Restarts that take the run up at a checkpoint, in the simulator."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.protocol.run import Run
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import World

from .runs import a_world, run_checked

pytestmark = pytest.mark.slow

TASK = {"training_rounds": 13, "epoch_rounds": 4, "verdict_rounds": 1}
"""Four epochs of four rounds."""


def in_round(world: World, round: int) -> World:
    world.run(until_ms=300_000, until=lambda: world.peers[0].run.round == round)
    return world


def world_of(**options: Any) -> World:
    world = a_world(5, task=TASK, sharing=StandInSharing(), **options)
    world.chain.confirmations = 0
    world.mine_from_now_on(20)
    return world


def forget_anchors(world: World, from_epoch: int) -> None:
    del world.anchors.taken[from_epoch:]
    del world.anchors.lists[from_epoch + 1 :]


def assert_same_history(world: World, index: int) -> None:
    """Heads are compared by `run_checked`."""
    for round, closed in world.peers[index].closed.items():
        other = world.peers[0].closed[round]
        assert (closed.beacon, closed.banned, closed.contents) == (other.beacon, other.banned, other.contents)


@pytest.mark.parametrize(("round", "first"), [(5, 4), (9, 8), (13, 12), (3, 0)])
def test_without_a_disk_a_peer_joins_at_the_last_anchor(round: int, first: int) -> None:
    world = in_round(world_of(), round)
    world.restart(2, is_store_lost=True)
    run_checked(world)
    assert min(world.peers[2].closed) == world.peers[2].first_round == first
    assert_same_history(world, 2)


def test_who_joined_signs_nothing_until_an_epoch_begins_that_it_sees_begin() -> None:
    world = in_round(world_of(), 5)
    signed = len(world.peers[2].sent)
    world.restart(2, is_store_lost=True)
    run_checked(world)
    rounds = {packet.envelope.round for packet in world.peers[2].sent[signed:]}
    assert rounds
    assert min(rounds) == 8


def test_an_own_disk_is_gone_on_from_and_signed_on_at_once() -> None:
    world = in_round(world_of(), 10)
    signed = len(world.peers[2].sent)
    world.restart(2)
    assert world.peers[2].run.first_round == 4, "from there it can judge all that is judged in round 10"
    run_checked(world)
    assert set(world.peers[2].closed) == set(range(world.task.total_rounds))
    before, after = world.peers[2].sent[:signed], world.peers[2].sent[signed:]
    assert min(packet.envelope.round for packet in after if packet not in before) in (10, 11)
    assert not world.peers[2].run.is_muted


def test_an_epoch_whose_anchor_is_owed_is_closed_again() -> None:
    world = in_round(world_of(), 10)
    forget_anchors(world, 1)
    world.restart(2)
    assert world.peers[2].run.first_round == 4
    forget_anchors(world, 0)
    world.restart(2)
    assert world.peers[2].run.first_round == 0
    run_checked(world)


def test_who_joined_goes_on_from_its_new_disk() -> None:
    world = in_round(world_of(), 9)
    world.restart(2, is_store_lost=True)
    world.at(world.now_ms + 30, world.restart, 2)
    run_checked(world)
    assert min(world.peers[2].closed) == 8


class Liar:
    """Another machine than a `Run`, so not honest to the simulator."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


@pytest.mark.parametrize("seed", range(4))
def test_who_lies_about_a_checkpoint_is_passed_over(seed: int) -> None:
    world = in_round(world_of(seed=seed, wrap=lambda index, run: run if index in (0, 2) else Liar(run)), 9)
    world.restart(2, is_store_lost=True)
    run_checked(world)
    assert min(world.peers[2].closed) == 8
    lies = [reason for reason in world.peers[2].refused if reason.startswith("checkpoint: ")]
    assert len(lies) <= 3


def test_if_all_lie_or_have_none_it_follows_from_round_zero() -> None:
    world = in_round(world_of(wrap=lambda index, run: run if index in (0, 2) else Liar(run)), 9)
    world.peers[0].disk.checkpoints.clear()
    world.restart(2, is_store_lost=True)
    run_checked(world)
    assert min(world.peers[2].closed) == 0
    # of the last epoch that is anchored and of the one before
    assert sum(reason.startswith("checkpoint: ") for reason in world.peers[2].refused) == 6
