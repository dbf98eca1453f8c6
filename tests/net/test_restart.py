"""The library fails as a whole: it is started again, and the node that uses it notices lost messages at most."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from p2pdfl.net import Limits, Network, NetworkFailed, Unreachable
from p2pdfl.net.libp2p import adapter

from .loopback import TOPIC, assert_works, network, networks, peer_of

pytestmark = [pytest.mark.net, pytest.mark.slow]

QUICK = Limits(restart_s=0.05, redial_s=0.1)


async def break_pubsub(victim: Network) -> None:
    victim._gossip.manager.cancel()


async def break_swarm(victim: Network) -> None:
    """An exception in the service's own task, which nothing contains."""
    manager: Any = adapter.swarm_of(victim._host).manager
    manager._task_nursery.start_soon(raising)


async def break_dht(victim: Network) -> None:
    victim._discovery.dht.manager.cancel()


async def break_mesh(victim: Network) -> None:
    manager: Any = victim._gossip.mesh.manager
    manager._task_nursery.start_soon(raising)


async def break_listener(victim: Network) -> None:
    listener: Any
    [listener] = adapter.swarm_of(victim._host).listeners.values()
    listener.listeners[0].socket.close()


async def close_host(victim: Network) -> None:
    await victim._host.close()


async def raising() -> None:
    raise RuntimeError("the library's fault")


async def until_restarted(victim: Network, count: int = 1) -> None:
    while victim.counters["library restarts"] < count:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "break_it",
    [break_pubsub, break_swarm, break_dht, break_mesh, break_listener, close_host],
    ids=lambda it: it.__name__,
)
async def test_whatever_part_of_the_library_ends_gossip_and_requests_go_on(
    break_it: Callable[[Network], Awaitable[None]],
) -> None:
    async def answer(peer_id: bytes, request: bytes) -> bytes:
        return b"re: " + request

    async with networks(2, limits=QUICK) as (victim, friend):
        victim.serve("/test/1", answer, request_bytes_max=100)
        victim.admit([friend.peer_id])
        addresses, peer_id = victim.addresses, victim.peer_id
        with trio.fail_after(20):
            await break_it(victim)
            await until_restarted(victim)
            await victim.wait_connected(1)
            await friend.wait_connected(1)
            await assert_works(victim, friend)
            reply = await friend.request(peer_id, "/test/1", b"hello", reply_bytes_max=100, timeout_s=5)
        assert reply == b"re: hello"
        assert (victim.addresses, victim.peer_id) == (addresses, peer_id)
        assert victim.counters["library restarts"] == 1


async def test_what_waits_in_the_inbox_and_who_is_admitted_outlive_a_restart() -> None:
    async with networks(3, limits=QUICK) as (victim, friend, other):
        victim.admit([friend.peer_id])
        await friend.publish(b"before")
        with trio.fail_after(20):
            while not len(victim.incoming):
                await trio.lowlevel.checkpoint()
            await break_swarm(victim)
            await until_restarted(victim)
            await victim.wait_connected(1)
            await other.wait_connected(2)
            await other.publish(b"from whom is not admitted")
            while not victim.counters["refused: author not admitted"]:
                await trio.lowlevel.checkpoint()
            await friend.publish(b"after")
            assert [(await victim.incoming.receive()).data for _ in range(2)] == [b"before", b"after"]


async def test_while_the_library_is_down_requests_are_unreachable_and_publications_dropped() -> None:
    async with networks(2, limits=Limits(restart_s=2.0)) as (victim, friend):
        await break_swarm(victim)
        with trio.fail_after(20):
            await until_restarted(victim)
            assert victim.connected() == set()
            await victim.publish(b"nobody hears this")
            with pytest.raises(Unreachable):
                await victim.request(friend.peer_id, "/test/1", b"", reply_bytes_max=1, timeout_s=1)


async def test_a_library_that_keeps_failing_ends_the_node_with_the_reason() -> None:
    limits = Limits(restart_s=0.01, restart_s_max=0.02, restarts_max=3)

    async def break_again_and_again() -> None:
        async with network("someone", limits=limits) as one:
            for number in range(1, 5):
                while TOPIC not in one._gossip.topic_ids:
                    await trio.lowlevel.checkpoint()
                await break_swarm(one)
                await until_restarted(one, number)
            await trio.sleep_forever()

    with (
        trio.fail_after(20),
        pytest.raises(NetworkFailed, match="failed 4 times within 300 s, the last time of RuntimeError"),
    ):
        await break_again_and_again()


async def test_a_restarted_library_leaves_nothing_behind() -> None:
    async with networks(2, limits=QUICK) as (victim, friend):
        first = victim._host
        with trio.fail_after(20):
            await break_swarm(victim)
            await until_restarted(victim)
            await friend.wait_connected(1)
        assert not adapter.connections_of(first)
        assert peer_of(victim) in adapter.swarm_of(friend._host).connections


async def test_who_starts_again_within_a_second_is_heard_again() -> None:
    """As shipped its messages are numbered from the second on that it starts in, and so like those of before."""
    async with network("listener") as listener:
        for _ in range(4):
            async with network("author", listener.addresses) as author:
                with trio.fail_after(10):
                    await author.wait_connected(1)
                    await listener.wait_connected(1)
                    await author.publish(b"x")
                    await listener.incoming.receive()


async def test_who_died_and_could_not_close_in_time_starts_again() -> None:
    """What it died of is lost where its closing is cut short; the same dead host must not be run again."""
    hasty = Limits(restart_s=0.05, close_s=0.0)
    async with network("friend") as friend, network("victim", friend.addresses, limits=hasty) as victim:
        with trio.fail_after(10):
            await victim.wait_connected(1)
            await close_host(victim)
            await until_restarted(victim)
            await victim.wait_connected(1)
