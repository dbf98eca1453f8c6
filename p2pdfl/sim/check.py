"""The fast world as the invariants see it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Round
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.world import SimPeer, World


@dataclass(frozen=True, slots=True)
class State:
    _peer: SimPeer

    @property
    def is_up(self) -> bool:
        return self._peer.is_up

    @property
    def is_finished(self) -> bool:
        return self._peer.run.is_finished

    @property
    def is_muted(self) -> bool:
        return self._peer.run.is_muted

    @property
    def round(self) -> Round:
        return self._peer.run.round

    @property
    def members(self) -> Sequence[Address]:
        return self._peer.run.epoch.addresses

    @property
    def first_round(self) -> Round:
        return 0

    @property
    def heads(self) -> Mapping[Round, Digest]:
        return {round: closed.certificate.head for round, closed in self._peer.closed.items()}

    @property
    def banned(self) -> Mapping[Address, str]:
        return self._peer.run.banned


class Seen:
    """A `World`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.task: Task = world.task
        self.addresses = tuple(world.address(index) for index in range(len(world.peers)))

    @property
    def now_ms(self) -> int:
        return self._world.now_ms

    def state(self, index: int) -> State:
        return State(self._world.peers[index])


def watch(
    world: World,
    *,
    byzantine: Collection[int] = (),
    amnesiacs: Collection[int] = (),
    bound_ms: int,
    calm_ms: int = 0,
    is_beyond_a_third: bool = False,
) -> Checkers:
    """From now on, all that happens in this world is checked."""
    checkers = Checkers(
        Seen(world),
        byzantine=byzantine,
        amnesiacs=amnesiacs,
        bound_ms=bound_ms,
        calm_ms=calm_ms,
        is_beyond_a_third=is_beyond_a_third,
    )

    def look() -> None:
        if not checkers.is_over:
            world.at(world.now_ms + checkers.look_every_ms, look)
            checkers.on_time()

    world.watch = checkers
    world.at(checkers.first_look_ms, look)
    return checkers


def find_violations(world: World, *, byzantine: Collection[int] = (), is_live: bool = True) -> list[str]:
    """Of a run that is over and that nobody watched: what the peers did, in an order in which it can have happened.

    is_live: whether it had the time and the members to finish."""
    checkers = Checkers(
        Seen(world),
        byzantine=byzantine,
        amnesiacs=[index for index, peer in enumerate(world.peers) if peer.is_store_lost],
        bound_ms=0,
    )
    peers = list(enumerate(world.peers))
    for index, peer in peers:
        for notice in peer.notices:
            checkers.on_notice(index, notice)
    sent = [(packet, index) for index, peer in peers for packet in peer.sent]
    for packet, index in sorted(sent, key=lambda each: each[0].envelope.round):
        checkers.on_sent(index, packet)
    for index, peer in peers:
        for closed in (*peer.closed.values(), *peer.conflicting):
            checkers.on_closed(index, closed)
        for duty in peer.submitted:
            checkers.on_submitted(index, duty)
    for anchor in world.anchors.taken:
        checkers.on_anchored(anchor)
    checkers.at_end(is_live=is_live)
    return checkers.violations
