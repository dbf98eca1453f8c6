"""Many at once, one after another, and again: who is kept, and that doing it again costs no memory."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from net.loopback import GOSSIP, TOPIC, assert_works, network, networks, peer_of
from net.test_host import port_of
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter

from .attacker import Attacker, Ended, Identity
from .scene import Attack, Scene, blocks_and_bytes, containers_of
from .test_connections import reset_at_once
from .test_muxer import data_then_reset, streams_without_number, window_overrun
from .test_protocols import (
    DHT,
    address_record_of_2000_addresses,
    bad_signatures_without_number,
    ends,
    frame,
    record,
    replays,
    requests_without_number,
    subscriptions_without_number,
    values_and_providers_without_number,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]


@asynccontextmanager
async def crowd_at(victim: Network, count: int) -> Any:
    """Connections of as many strangers, each with a key of his own."""
    async with trio.open_nursery() as nursery:
        attacker = Attacker(victim, nursery)
        yield [await attacker.yamux(Identity(f"stranger {number}")) for number in range(count)]
        await attacker.close()


async def test_a_newcomer_gets_in_where_a_crowd_holds_every_place() -> None:
    """As shipped, who comes last is sent away."""
    limits = Limits(connections_max=8, handshakes_max=8)
    async with network("victim", limits=limits) as victim, crowd_at(victim, 20):
        async with network("newcomer", victim.addresses) as newcomer:
            with trio.fail_after(5):
                await newcomer.wait_connected(1)
                await victim.wait_connected(1)
            await assert_works(victim, newcomer)
        assert len(adapter.swarm_of(victim._host).get_connections()) <= limits.connections_max + limits.handshakes_max
        assert victim.counters["refused: connection, for a newer one"] >= 12


async def test_a_newcomer_gets_in_at_once_where_every_place_and_every_handshake_is_taken() -> None:
    limits = Limits(connections_max=8, handshakes_max=8)
    async with network("victim", limits=limits) as victim, crowd_at(victim, 8), AsyncExitStack() as silent:
        slots = adapter.swarm_of(victim._host)._inbound_limiter
        for _ in range(8):
            await silent.enter_async_context(await trio.open_tcp_stream("127.0.0.1", int(port_of(victim))))
        with trio.fail_after(5):
            while slots.borrowed_tokens < 16:
                await trio.lowlevel.checkpoint()
            once = Limits(redial_s=30.0, redial_s_max=30.0)
            async with network("newcomer", victim.addresses, limits=once) as newcomer:
                await newcomer.wait_connected(1)


async def test_all_peers_together_ask_the_dht_only_so_much() -> None:
    async with network("victim", limits=Limits(dht_streams_max=2)) as victim, crowd_at(victim, 3) as crowd:
        for one in crowd[:2]:
            await one.open(DHT)
        with suppress(Ended):  # the reset may overtake the end of the negotiation
            await ends(await crowd[2].open(DHT))
        assert victim.counters["refused: too many DHT streams"] == 1


async def test_a_member_keeps_its_place_in_a_crowd() -> None:
    limits = Limits(connections_max=8, handshakes_max=8)
    async with networks(2, limits=limits) as (victim, friend):
        for one in (victim, friend):
            one.admit([victim.peer_id, friend.peer_id])
        swarm = adapter.swarm_of(victim._host)
        before = list(swarm.connections[peer_of(friend)])
        async with crowd_at(victim, 20):
            await assert_works(victim, friend)
            assert swarm.connections[peer_of(friend)] == before


async def test_as_many_connections_fit_as_are_granted() -> None:
    """As shipped, 256 that are inbound, whatever one sets."""
    async with (
        network("victim", limits=Limits(connections_max=400, strangers_max=300)) as victim,
        crowd_at(victim, 262) as crowd,
    ):
        await crowd[0].catch_up()
        await crowd[-1].catch_up()
        assert len(adapter.swarm_of(victim._host).get_connections()) == 262


async def come_say_something_and_go(attacker: Attacker, name: str) -> None:
    yamux = await attacker.yamux(Identity(name))
    stream = await yamux.open(GOSSIP)
    follow = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)])
    follow.control.graft.add(topicID=TOPIC)
    follow.control.prune.add(topicID=TOPIC)
    await stream.send(frame(follow))
    await yamux.catch_up()
    await yamux.tcp.close()


def test_nothing_is_kept_of_a_stranger_who_left(scene: Scene) -> None:
    async def visit(attacker: Attacker) -> None:
        await come_say_something_and_go(attacker, "a visitor")

    scene.run(visit)
    scene.run(reset_at_once)

    async def another(attacker: Attacker) -> None:
        # Pubsub's loop over peers that left holds on to the last.
        await come_say_something_and_go(attacker, "another visitor")

    scene.run(another)
    assert containers_of(Identity("a visitor").id) == []


def test_what_a_stranger_signed_is_kept_as_one_small_record(scene: Scene) -> None:
    async def visit(attacker: Attacker) -> None:
        yamux = await attacker.yamux(Identity("a visitor"))
        stream = await yamux.open(GOSSIP)
        await stream.send(frame(rpc_pb2.RPC(senderRecord=record("a visitor", 8))))
        await yamux.catch_up()

    scene.run(visit)
    known = scene.victim._host.get_peerstore()
    assert len(known.addrs(Identity("a visitor").id)) == 8
    assert len(known.peer_ids()) <= Limits().known_addresses_max


_crowds = count(1)


async def visitors_without_number(attacker: Attacker) -> None:
    crowd = next(_crowds)
    for number in range(15):
        await come_say_something_and_go(attacker, f"visitor {crowd} {number}")


@pytest.mark.parametrize(
    "attack",
    [
        reset_at_once,
        window_overrun,
        data_then_reset,
        streams_without_number,
        bad_signatures_without_number,
        replays,
        subscriptions_without_number,
        address_record_of_2000_addresses,
        values_and_providers_without_number,
        requests_without_number,
        visitors_without_number,
    ],
)
def test_doing_it_again_costs_no_memory(scene: Scene, attack: Attack) -> None:
    """What the pair keeps of its own talk for some seconds rises and falls by as much; a leak only rises."""
    seen = []
    for _ in range(6):
        scene.run(attack)
        seen.append(blocks_and_bytes())
    blocks, resident = (max(values) for values in zip(*seen[:3], strict=True))
    blocks_after, resident_after = (min(values) for values in zip(*seen[3:], strict=True))
    assert blocks_after - blocks < 1_000
    assert resident_after - resident < 4 << 20
