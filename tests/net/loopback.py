"""Live networks on loopback, and a peer that speaks to them byte by byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pdfl.net import Limits, Network, open_network
from p2pdfl.net.libp2p import adapter

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
TOPIC = "test"
GOSSIP = "/meshsub/1.1.0"


def seed(name: str) -> bytes:
    return sha256(name.encode()).digest()


@asynccontextmanager
async def networks(count: int, *, prefix: str = "peer", **options: Any) -> AsyncIterator[list[Network]]:
    """All in one process; the first is the others' only bootstrap; yields once all are connected to all."""
    opened: list[Network] = []
    done = trio.Event()

    async def hold(number: int, *, task_status: Any) -> None:
        bootstrap = opened[0].addresses if opened else []
        async with network(f"{prefix} {number}", bootstrap, **options) as one:
            task_status.started(one)
            await done.wait()

    async with trio.open_nursery() as nursery:  # a task each, so that they close side by side
        for number in range(count):
            opened.append(await nursery.start(hold, number))
        with trio.fail_after(30):
            for one in opened:
                await one.wait_connected(count - 1)
        try:
            yield opened
        finally:
            done.set()


@asynccontextmanager
async def network(
    name: str, bootstrap: Sequence[str] = (), *, listen: str = LOOPBACK, **options: Any
) -> AsyncIterator[Network]:
    async with open_network(
        key_seed=seed(name), listen=[listen], bootstrap=bootstrap, topic=TOPIC, **options
    ) as opened:
        yield opened


class Stranger:
    """A host with no manners: dials, opens streams and writes what it is told."""

    def __init__(self, host: BasicHost) -> None:
        self.host = host
        self.id: ID = host.get_id()

    async def dial(self, victim: Network) -> bool:
        address = Multiaddr(victim.addresses[0])
        return await adapter.dial(self.host, peer_of(victim), [address], timeout_s=2)

    async def open(self, victim: Network, protocol: str) -> INetStream:
        return await adapter.open_stream(self.host, peer_of(victim), protocol)


@asynccontextmanager
async def stranger(name: str = "stranger") -> AsyncIterator[Stranger]:
    counters: Counter[str] = Counter()
    host = adapter.create_host(seed(name), limits=Limits(connections_max=10), counters=counters, announce=[])
    async with adapter.running(adapter.swarm_of(host), counters):
        yield Stranger(host)
        await adapter.close(host)


def peer_of(network: Network) -> ID:
    return ID.from_base58(network.peer_id.decode())


async def until_ended(stream: INetStream) -> None:
    """Reads until the other side ends the stream."""
    with trio.fail_after(5):
        while await adapter.read_some(stream, 1 << 16):
            pass


async def assert_works(victim: Network, friend: Network) -> None:
    """Gossip and requests still pass between the two."""
    with trio.fail_after(5):
        await friend.publish(b"are you there?")
        async for message in victim.incoming:
            if message.data == b"are you there?":
                break
        await victim.publish(b"yes")
        async for message in friend.incoming:
            if message.data == b"yes":
                break
