"""The simulator itself: real machines and real cryptography in virtual time."""

from __future__ import annotations

from hashlib import sha256

import pytest

from p2pdfl.base.codec import encode
from p2pdfl.base.types import Digest, Kind, Packet
from p2pdfl.protocol.run import Run
from p2pdfl.sim.check import find_violations
from p2pdfl.sim.world import World

from .byzantine import commit_of, on_sending, only, signed
from .runs import a_world, run_checked

pytestmark = pytest.mark.slow


def test_honest_members_close_every_round_with_the_same_heads() -> None:
    world = run_checked(a_world(task={"training_rounds": 3, "epoch_rounds": 5}))
    assert set(world.heads(0)) == set(range(world.task.total_rounds))
    assert {closed.certificate.view for closed in world.peers[0].closed.values()} == {0}


def _transcript(world: World) -> Digest:
    hasher = sha256()
    for peer in world.peers:
        for packet in peer.sent:
            hasher.update(encode(packet))
    return hasher.digest()


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = run_checked(a_world(seed=9)), run_checked(a_world(seed=9))
    assert _transcript(first) == _transcript(second)
    assert first.now_ms == second.now_ms


def test_another_seed_gives_another_run() -> None:
    assert _transcript(run_checked(a_world(seed=9))) != _transcript(run_checked(a_world(seed=10)))


def test_the_checkers_find_a_member_that_signs_twice_and_who_bans_it() -> None:
    """Taken for honest, a cheat violates what the checkers check."""

    def twice(run: Run, packet: Packet) -> list[Packet]:
        return [packet, signed(run, packet, commit_of(packet).replace(update=b"\x07" * 32))]

    world = a_world(wrap=only(1, on_sending(Kind.COMMIT, twice)))
    world.run(until_ms=60_000, until=world.is_finished)
    assert find_violations(world, byzantine=[1]) == []
    violations = "\n".join(find_violations(world))
    assert "peer1 signed twice" in violations
    assert "banned the honest" in violations


def test_the_checkers_find_who_is_left_behind() -> None:
    world = a_world()
    world.run(until_ms=100)
    assert len(find_violations(world)) == 4
    assert find_violations(world, is_live=False) == []


def test_the_checkers_find_two_heads_of_one_round() -> None:
    world = run_checked(a_world())
    closed = world.peers[2].closed[3]
    world.peers[2].closed[3] = world.peers[1].closed[4]
    assert "round 3: peer2 has another head on its disk" in "\n".join(find_violations(world))
    world.peers[2].closed[3] = closed
