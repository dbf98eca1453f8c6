"""What the transactions cost, so that a change of the contract shows."""

from __future__ import annotations

import pytest

from .world import PEERS, TASK, Peer, World

pytestmark = pytest.mark.slow

REGISTER_GAS_MAX = 280_000
ANCHOR_GAS_MAX = {4: 166_000, 8: 206_000, 16: 281_000}
"""By member count, with a quorum of signatures."""


@pytest.mark.parametrize("member_count", ANCHOR_GAS_MAX)
def test_gas_stays_within_what_is_known(member_count: int) -> None:
    world = World()
    world.deploy()
    peers = [Peer(2**64 + i) for i in range(member_count)]
    peers.sort(key=lambda peer: bytes.fromhex(peer.address[2:]))
    for peer in peers:
        world.evm.request("eth_sendTransaction", [{"from": PEERS[0].address, "to": peer.address, "value": hex(10**18)}])
        world.evm._backend.add_account(peer.secret.to_bytes(32, "big"))
    registering = max(
        int(world.send(peer, "register", *world.registration(peer), value=TASK.deposit_wei)["gasUsed"], 16)
        for peer in peers
    )
    starting = int(world.send(peers[0], "start", [peer.address for peer in peers])["gasUsed"], 16)
    quorum = 2 * member_count // 3 + 1
    anchoring = [
        int(world.send(peers[0], "anchor", *arguments)["gasUsed"], 16)
        for epoch in range(2)
        for arguments in [world.anchoring(world.head(epoch, peers), peers, peers, range(quorum))]
    ]
    jury = range(2, 2 + max(1, member_count // 2))
    verdict = int(world.send(peers[0], "slash_by_verdict", *world.verdict(peers, jury))["gasUsed"], 16)
    proof = world.equivocation(peers[0])
    equivocation = int(world.send(peers[1], "slash_by_equivocation", *proof)["gasUsed"], 16)
    print(f"n={member_count}: {registering=} {starting=} {anchoring=} {verdict=} {equivocation=}")  # pytest -s shows it
    assert registering <= REGISTER_GAS_MAX
    assert max(anchoring) <= ANCHOR_GAS_MAX[member_count]
