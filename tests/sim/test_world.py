"""Whole runs in virtual time with the real machines and the real cryptography."""

from __future__ import annotations

from p2pdfl.sim.world import World, stand_in_task


def test_honest_members_close_every_round_with_the_same_heads() -> None:
    world = World(stand_in_task(training_rounds=3, epoch_rounds=5, audit_fraction=0.5, members_min=4), 4, seed=1)
    world.run(until_ms=60_000, until=world.is_finished)
    assert world.is_finished()
    assert all(world.heads(index) == world.heads(0) for index in range(4))
    assert set(world.heads(0)) == set(range(world.task.total_rounds))
