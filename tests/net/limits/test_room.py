"""Strangers are bounded, and members always find room."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from net.hostile.attacker import Attacker, Identity
from net.loopback import assert_works, network, peer_of, stranger
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter

pytestmark = [pytest.mark.net, pytest.mark.slow]


def connection_count(one: Network) -> int:
    return len(adapter.connections_of(one._host))


async def test_strangers_beyond_their_number_make_room_and_members_keep_theirs() -> None:
    limits = Limits(strangers_max=3)
    async with (
        network("victim", limits=limits) as victim,
        network("friend", victim.addresses) as friend,
        network("late friend") as late,
        AsyncExitStack() as strangers,
    ):
        victim.admit([friend.peer_id, late.peer_id])
        for number in range(10):
            attacker = await strangers.enter_async_context(stranger(f"stranger {number}"))
            await attacker.dial(victim)
        with trio.fail_after(10):
            while victim.counters["connections closed for room"] < 7:
                await trio.lowlevel.checkpoint()
            late.dial(victim.addresses[0])
            await victim.wait_connected(2)
        assert connection_count(victim) <= 2 + limits.strangers_max
        assert victim.counters["connections closed for room"] == 7
        await assert_works(victim, friend)
        await assert_works(victim, late)


async def test_one_stranger_has_few_connections() -> None:
    async with network("victim") as victim, stranger() as attacker:
        for _ in range(6):
            await adapter.swarm_of(attacker.host).dial_addr(victim._host.get_addrs()[0], peer_of(victim))
        with trio.fail_after(10):
            while victim.counters["connections closed for room"] < 3 or connection_count(victim) > 3:
                await trio.lowlevel.checkpoint()
        assert connection_count(victim) == Limits().connections_per_peer_max


async def test_sockets_that_say_nothing_keep_nobody_out() -> None:
    limits = Limits(connections_max=20, strangers_max=4, handshakes_max=8)
    async with network("victim", limits=limits) as victim:
        port = int(victim.addresses[0].split("/")[4])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
        with trio.fail_after(8):  # as shipped each holds its slot for 10 s
            while victim.counters["refused: handshake, for a newer one"] < 32:
                await trio.lowlevel.checkpoint()
            async with network("friend", victim.addresses) as friend:
                await friend.wait_connected(1)
                await victim.wait_connected(1)
                await assert_works(victim, friend)
        for stream in silent:
            await stream.aclose()


@pytest.mark.parametrize(("member", "closed"), [("late", "first"), ("first", "second")])
async def test_who_makes_room_is_the_oldest_stranger_of_the_address_that_has_most(member: str, closed: str) -> None:
    """Not the oldest of all, so that who brings many costs nobody but himself."""
    limits = Limits(connections_max=5, strangers_max=10)
    names = ["early", "first", "second", "third", "fourth", "late"]
    async with network("victim", limits=limits) as victim, trio.open_nursery() as nursery:
        victim.admit([Identity(member).id.to_base58().encode()])
        attacker = Attacker(victim, nursery)
        for number, name in enumerate(names):
            attacker.ip = "127.0.0.1" if name in ("early", "late") else "127.0.0.66"
            await attacker.yamux(Identity(name))
            with trio.fail_after(5):
                while connection_count(victim) + victim.counters["refused: connection, for a newer one"] <= number:
                    await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            while connection_count(victim) > limits.connections_max:
                await trio.lowlevel.checkpoint()
        peers = {connection.muxed_conn.peer_id for connection in adapter.connections_of(victim._host)}
        assert peers == {Identity(name).id for name in names if name != closed}
        await attacker.close()


async def test_who_is_not_admitted_follows_the_topic_in_vain() -> None:
    async with network("one") as one, network("outsider", one.addresses) as outsider:
        with trio.fail_after(10):
            await one.wait_connected(1)
            await outsider.wait_connected(1)
            one.admit([])
            assert one.connected() == set()
            sent = one.counters["copies_sent"]
            await one.publish(b"not for you")
            await outsider.publish(b"not by you")
            while not one.counters["refused: author not admitted"]:
                await trio.lowlevel.checkpoint()
        assert one.counters["copies_sent"] == sent
        assert len(one.incoming) == 0
