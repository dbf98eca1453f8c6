from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import PEERS, World


def _kept(world: World) -> Iterator[World]:
    """The stage as it was when the session reached it, whatever a test does to it."""
    snapshot, task, contract = world.evm.request("evm_snapshot", []), world.task, world.contract
    yield world
    world.task, world.contract = task, contract
    assert world.evm.request("evm_revert", [snapshot])


@pytest.fixture(scope="session")
def _deployed() -> World:
    world = World()
    world.deploy()
    return world


@pytest.fixture(scope="session")
def _registered() -> World:
    world = World()
    world.deploy()
    world.register(*PEERS[:4])
    return world


@pytest.fixture(scope="session")
def _started() -> World:
    world = World()
    world.deploy()
    world.register(*PEERS[:6])
    world.send(PEERS[4], "request_exit")
    world.send(PEERS[5], "request_exit")
    world.start(*PEERS[:4])
    return world


@pytest.fixture
def deployed(_deployed: World) -> Iterator[World]:
    """Nobody has registered."""
    yield from _kept(_deployed)


@pytest.fixture
def registered(_registered: World) -> Iterator[World]:
    """PEERS[:4] have registered."""
    yield from _kept(_registered)


@pytest.fixture
def started(_started: World) -> Iterator[World]:
    """PEERS[:4] are epoch 0's members; PEERS[4] and PEERS[5] registered and asked to exit before the start."""
    yield from _kept(_started)
