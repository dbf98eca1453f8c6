"""What must hold of a simulated run, whatever the faults: checked on what the peers did, not on what they say.

Safety     one head per round; no honest member signs two bodies in a slot, or is banned
Liveness   every honest member that is up closes every round
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from p2pdfl.sim.world import World
from p2pdfl.types import Digest, Packet, Round


def find_violations(world: World, *, byzantine: Collection[int] = (), is_live: bool = True) -> list[str]:
    """is_live: whether the run had the time and the members to finish."""
    honest = [index for index in range(len(world.peers)) if index not in byzantine]
    violations = [*_unsafe(world, honest)]
    if is_live:
        violations += _unfinished(world, honest)
    return violations


def _unsafe(world: World, honest: list[int]) -> Iterator[str]:
    heads: dict[Round, Digest] = {}
    addresses = {world.address(index) for index in honest}
    for index in honest:
        peer = world.peers[index]
        for round, head in world.heads(index).items():
            if heads.setdefault(round, head) != head:
                yield f"round {round}: {peer.name} closed with another head"
        for closed in peer.conflicting:
            yield f"round {closed.round}: {peer.name} closed with another head than before its restart"
        for packet in _second_bodies(peer.sent):
            yield f"{peer.name} signed twice in a slot: {packet.envelope!r}"
        for address in addresses & peer.run.banned.keys():
            yield f"{peer.name} banned the honest 0x{address.hex()}: {peer.run.banned[address]}"


def _second_bodies(sent: list[Packet]) -> Iterator[Packet]:
    bodies: dict[tuple[int, int, int], Digest] = {}
    for packet in sent:
        envelope = packet.envelope
        if bodies.setdefault((envelope.round, envelope.view, envelope.kind), envelope.body) != envelope.body:
            yield packet


def _unfinished(world: World, honest: list[int]) -> Iterator[str]:
    for index in honest:
        peer = world.peers[index]
        if peer.is_up and peer.closed.keys() != set(range(world.task.total_rounds)):
            yield f"{peer.name} is in round {peer.run.round} of {world.task.total_rounds} at {world.now_ms} ms"
