"""Timers that a slow round leaves longer, and a quick one shorter (ADR 12)."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.base import params
from p2pdfl.sim.network import PlainNetwork
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import World

from .runs import a_world, leaders, run_checked

pytestmark = pytest.mark.slow

SLOW_MS, QUICK_MS = (400, 500), (5, 40)
TASK: dict[str, Any] = {
    "training_rounds": 17,
    "verdict_rounds": 1,
    "epoch_rounds": 20,
    # a proposal and the votes on it take a second
    "view_ms": 300,
    # what is on trial is the views: phases end early, and a simulated resync is quicker than this network
    "commit_ms": 6_000,
    "reveal_ms": 3_000,
    "resync_ms": 30_000,
}


def a_slow_world(**world: Any) -> World:
    return a_world(task=TASK, sharing=StandInSharing(), latency_ms=SLOW_MS, **world)


def levels(world: World, index: int) -> list[tuple[int, int]]:
    """(round, its level), where that is another than the round's before."""
    return [
        (int(str(notice.fields["round"])), int(str(notice.fields["level"])))
        for notice in world.peers[index].notices
        if notice.name == "timers"
    ]


def run_until_round(world: World, round: int) -> None:
    world.run(until_ms=300_000, until=lambda: all(peer.run.round >= round for peer in world.peers if peer.is_up))


def test_on_a_slow_network_the_first_round_skips_views_and_the_later_ones_do_not() -> None:
    world = run_checked(a_slow_world())
    views = [view for _, view in sorted(leaders(world).items())]
    assert views[0] > 0
    assert views[1:] == [0] * (len(views) - 1)


def test_without_what_was_learnt_every_round_skips_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "VIEW_LEVEL_MAX", 0)
    assert min(leaders(run_checked(a_slow_world())).values()) > 0


def test_once_the_network_is_quick_the_timers_are_as_short_as_at_first() -> None:
    world = a_slow_world()
    run_until_round(world, 5)
    assert isinstance(world.network, PlainNetwork)
    world.network.latency_ms = QUICK_MS
    run_checked(world)
    for index in range(len(world.peers)):
        highest = max(level for _, level in levels(world, index))
        assert [level for _, level in levels(world, index)][-highest - 1 :] == list(range(highest, -1, -1))
        assert levels(world, index)[-1][0] <= 6 + highest
    assert set(list(leaders(world).values())[1:]) == {0}


def test_a_restarted_member_with_short_timers_holds_up_nobody_though_all_others_are_needed() -> None:
    """Four members of which one is dead: three are a quorum, and the restarted one among them."""
    world = a_slow_world()
    run_until_round(world, 5)
    world.kill(3)
    world.restart(2)
    before_ms = world.now_ms
    run_until_round(world, 10)
    # 29 s; with a close timeout as long as the timer it is 59
    assert world.now_ms - before_ms < 40_000
    run_checked(world)
    assert levels(world, 2)[-1][1] == levels(world, 0)[-1][1]
