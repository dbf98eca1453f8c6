"""Simulated runs for tests: small tasks, few members, and the checkers after every run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from p2pdfl.sim import caches
from p2pdfl.sim.check import find_violations
from p2pdfl.sim.world import World, stand_in_task

TASK: dict[str, Any] = {
    "training_rounds": 2,
    "epoch_rounds": 9,
    "audit_fraction": 0.5,
    "members_min": 4,
    "commit_ms": 1_000,
    "reveal_ms": 500,
    "grace_ms": 200,
    "view_ms": 1_000,
    "resync_ms": 300,
}


def a_world(peer_count: int = 4, *, seed: int = 1, task: dict[str, Any] | None = None, **world: Any) -> World:
    """Timers are a tenth of the defaults: latencies stay as they are, and virtual time costs nothing."""
    return World(stand_in_task(**{**TASK, **(task or {})}), peer_count, seed=seed, **world)


def run_checked(world: World, *, byzantine: Collection[int] = (), until_ms: int = 300_000) -> World:
    """To the last round; every safety property holds, and every honest member gets there."""
    with caches.installed():
        world.run(until_ms=until_ms, until=lambda: is_finished(world, byzantine))
    assert find_violations(world, byzantine=byzantine) == []
    return world


def is_finished(world: World, byzantine: Collection[int] = ()) -> bool:
    return all(peer.run.is_finished for index, peer in enumerate(world.peers) if peer.is_up and index not in byzantine)


def bans(world: World, byzantine: int) -> set[str | None]:
    """By what evidence the others banned it, None for not at all."""
    return {
        peer.run.banned.get(world.address(byzantine))
        for index, peer in enumerate(world.peers)
        if index != byzantine and peer.is_up
    }


def leaders(world: World, index: int = 0) -> dict[int, int]:
    """round -> the view that it closed in."""
    return {round: closed.certificate.view for round, closed in world.peers[index].closed.items()}
