"""The network as the node sees it."""

from __future__ import annotations

import os
import threading
import time

import pytest
import trio
import trio.testing

from p2pdfl.net import Incoming, Limits, Network

from .loopback import network, networks

pytestmark = [pytest.mark.net, pytest.mark.slow]


async def test_eight_peers_find_each_other_from_one_bootstrap_and_hear_everyone_once() -> None:
    async with networks(8) as peers:
        heard: dict[bytes, list[Incoming]] = {peer.peer_id: [] for peer in peers}

        async def listen(peer: Network) -> None:
            while len(heard[peer.peer_id]) < 7:
                heard[peer.peer_id].append(await peer.incoming.receive())

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(listen, peer)
                    nursery.start_soon(peer.publish, b"from " + peer.peer_id)

        for peer in peers:
            others = {other.peer_id for other in peers} - {peer.peer_id}
            assert peer.connected() == others
            assert {message.origin for message in heard[peer.peer_id]} == others
            assert all(message.data == b"from " + message.origin for message in heard[peer.peer_id])
            assert peer.counters["copies_sent"] <= 7 + 7 * 3


async def test_whom_the_author_cannot_reach_hears_it_from_another() -> None:
    async with networks(5) as (author, unreached, *others):
        author.admit([other.peer_id for other in others])
        for number in range(10):
            await author.publish(b"%d" % number)
            with trio.fail_after(5):
                assert (await unreached.incoming.receive()).data == b"%d" % number


async def test_a_message_that_is_too_long_is_refused_where_it_is_published(pair: tuple[Network, Network]) -> None:
    one, other = pair
    with pytest.raises(ValueError, match="bytes in one message"):
        await one.publish(bytes(Limits().message_bytes_max + 1))
    await one.publish(bytes(Limits().message_bytes_max))
    with trio.fail_after(5):
        assert len((await other.incoming.receive()).data) == Limits().message_bytes_max


async def test_what_is_sent_is_counted_at_the_socket(pair: tuple[Network, Network]) -> None:
    one, other = pair
    sent, received = one.counters["bytes_sent"], other.counters["bytes_received"]
    await one.publish(bytes(10_000))
    with trio.fail_after(5):
        await other.incoming.receive()
    assert 10_000 < one.counters["bytes_sent"] - sent < 12_000
    assert 10_000 < other.counters["bytes_received"] - received < 12_000


async def test_an_unread_inbox_drops_and_counts() -> None:
    limits = Limits(incoming_messages_max=8)  # of which one author gets half
    async with networks(2, limits=limits) as (one, other):
        for number in range(6):
            await one.publish(b"%d" % number)
        with trio.fail_after(5):
            while other.counters["refused: inbox full"] < 2:
                await trio.lowlevel.checkpoint()
            assert [(await other.incoming.receive()).data for _ in range(4)] == [b"0", b"1", b"2", b"3"]


async def test_an_inbox_is_bounded_in_bytes_too() -> None:
    limits = Limits(message_bytes_max=1_000, incoming_bytes_max=4_000)  # of which one author gets half
    async with networks(2, limits=limits) as (one, other):
        for _ in range(3):
            await one.publish(bytes(1_000))
        with trio.fail_after(5):
            while other.counters["refused: inbox full"] < 1:
                await trio.lowlevel.checkpoint()
            await other.incoming.receive()
            await one.publish(bytes(1_000))
            await other.incoming.receive()
            await other.incoming.receive()


async def test_the_same_seed_gives_the_same_peer_id() -> None:
    async with network("someone") as first:
        peer_id = first.peer_id
        assert first.addresses == [f"/ip4/127.0.0.1/tcp/{port_of(first)}/p2p/{peer_id.decode()}"]
    async with network("someone") as second:
        assert second.peer_id == peer_id


async def test_a_wildcard_is_announced_as_the_interfaces_it_stands_for() -> None:
    async with network("someone", listen="/ip4/0.0.0.0/tcp/0") as one:
        assert one.addresses
        assert not any("0.0.0.0" in address for address in one.addresses)


async def test_what_is_announced_can_be_set() -> None:
    async with network("someone", announce=["/dns4/peer.example/tcp/4001"]) as one:
        assert one.addresses == [f"/dns4/peer.example/tcp/4001/p2p/{one.peer_id.decode()}"]


async def test_a_port_in_use_is_an_error() -> None:
    async with network("first") as first:
        with pytest.raises(OSError, match="cannot listen on"):
            async with network("second", listen=f"/ip4/127.0.0.1/tcp/{port_of(first)}"):
                pass


@pytest.mark.parametrize(
    ("listen", "bootstrap", "text"),
    [
        ("nonsense", [], "not a multiaddr"),
        ("/ip4/127.0.0.1/tcp/0", ["/ip4/127.0.0.1/tcp/1"], "does not end in /p2p/"),
    ],
)
async def test_an_address_that_is_none_is_an_error(listen: str, bootstrap: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        async with network("someone", bootstrap, listen=listen):
            pass


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with network("someone"):
            raise KeyError


@pytest.mark.parametrize("limits", [Limits(), Limits(close_s=0.0)], ids=["in order", "without time for order"])
async def test_cancelling_closes_within_a_second_and_leaves_no_socket_and_no_thread(
    limits: Limits, caplog: pytest.LogCaptureFixture
) -> None:
    before, threads_before = open_sockets(), threads()
    with trio.CancelScope() as scope:
        async with networks(3, limits=limits):
            assert open_sockets() > before
            assert threads() == threads_before
            cancelled_at = time.monotonic()
            scope.cancel()
    assert time.monotonic() - cancelled_at < 3 * 1.0
    assert open_sockets() == before
    await trio.testing.wait_all_tasks_blocked()
    assert not caplog.records


def port_of(peer: Network) -> str:
    return peer.addresses[0].split("/")[4]


def threads() -> int:
    """Without those that trio keeps at hand."""
    return sum(not thread.name.startswith("Trio") for thread in threading.enumerate())


def open_sockets() -> int:
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        except OSError:
            continue
    return count
