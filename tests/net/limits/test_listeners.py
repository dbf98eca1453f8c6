"""Followers: who is no member hears a run where an operator grants it a place, and costs the members nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from net.loopback import GOSSIP, TOPIC, Stranger, assert_works, network, networks, stranger
from p2pdfl.net import Limits, Network, Refused

pytestmark = [pytest.mark.net, pytest.mark.slow]

ECHO = "/test/echo/1"


@asynccontextmanager
async def members(**limits: Any) -> AsyncIterator[tuple[Network, Network]]:
    """The first grants places, the second does not.  The node's part: each has admitted the two, and no one else."""
    async with networks(1, limits=Limits(**limits)) as (host,), network("member", host.addresses) as other:
        for one in (host, other):
            one.admit([host.peer_id, other.peer_id])
        with trio.fail_after(10):
            await host.wait_connected(1)
            await other.wait_connected(1)
        yield host, other


async def granted(host: Network, count: int) -> None:
    """Until count followers have a place."""
    with trio.fail_after(10):
        while len(list(host._followers)) != count:
            await host._gossip.changed.wait()


async def heard(one: Network) -> bytes:
    with trio.fail_after(5):
        return (await one.incoming.receive()).data


async def test_a_follower_hears_every_member_from_the_one_that_grants_the_place() -> None:
    async with members(followers_max=1) as (host, other), network("follower", host.addresses) as follower:
        await granted(host, 1)
        await host.publish(b"own")
        assert await heard(follower) == b"own"
        await other.publish(b"another member's")
        assert await heard(follower) == b"another member's"
        assert other.counters["copies_to_followers"] == 0


async def test_a_follower_does_not_count_as_connected() -> None:
    async with members(followers_max=1) as (host, other), network("follower", host.addresses):
        await granted(host, 1)
        assert host.connected() == {other.peer_id}


async def test_what_a_follower_says_reaches_nobody() -> None:
    async with members(followers_max=1) as (host, other), network("follower", host.addresses) as follower:
        await granted(host, 1)
        with trio.fail_after(10):
            await follower.wait_connected(1)
        await follower.publish(b"hear me")
        with trio.fail_after(5):
            while not host.counters["refused: author not admitted"]:
                await trio.lowlevel.checkpoint()
        await assert_works(host, other)


async def test_without_a_place_a_stranger_hears_nothing_and_gets_no_answer() -> None:
    async with members() as (host, other), network("follower", host.addresses) as follower:
        host.serve(ECHO, echo, request_bytes_max=10)
        with trio.fail_after(10):
            await follower.wait_connected(1)
        with pytest.raises(Refused):
            await follower.request(host.peer_id, ECHO, b"?", reply_bytes_max=10, timeout_s=5)
        await assert_works(host, other)
        assert host.counters["copies_to_followers"] == 0


async def test_places_are_limited_and_free_again_when_a_follower_goes() -> None:
    async with members(followers_max=1) as (host, _), network("second", host.addresses) as second:
        await granted(host, 1)
        (first_place,) = host._followers
        async with network("third", host.addresses):
            with trio.fail_after(10):
                while len(host._gossip.peer_topics[TOPIC]) < 3:
                    await host._gossip.changed.wait()
            assert list(host._followers) == [first_place]
            assert first_place.to_base58().encode() == second.peer_id
    async with members(followers_max=1) as (host, _):
        async with network("second", host.addresses):
            await granted(host, 1)
        await granted(host, 0)
        async with network("third", host.addresses) as third:
            await granted(host, 1)
            await host.publish(b"for the third")
            assert await heard(third) == b"for the third"


async def test_a_follower_that_becomes_a_member_gives_its_place_back() -> None:
    async with members(followers_max=1) as (host, other), network("follower", host.addresses) as follower:
        await granted(host, 1)
        host.admit([host.peer_id, other.peer_id, follower.peer_id])
        assert not list(host._followers)
        assert host.connected() == {other.peer_id, follower.peer_id}


async def test_a_follower_that_reads_nothing_misses_its_own_copies_only() -> None:
    async with members(followers_max=1, follower_outbound_messages_max=1) as (host, other), stranger() as deaf:
        await follow_without_reading(deaf, host)
        await granted(host, 1)
        for _ in range(16):  # more than Yamux's window, the socket's buffers and one place in the queue hold
            await host.publish(bytes(1 << 20))
            assert len(await heard(other)) == 1 << 20
        assert host.counters["refused: follower too slow"] > 0
        assert host.counters["refused: peer too slow"] == 0
        await assert_works(host, other)


async def test_a_follower_asks_one_question_at_a_time() -> None:
    async with members(followers_max=1) as (host, _), network("follower", host.addresses) as follower:
        asked, answer = trio.Event(), trio.Event()

        async def answer_late(peer: bytes, request: bytes) -> bytes:
            asked.set()
            await answer.wait()
            return b"!"

        host.serve(ECHO, answer_late, request_bytes_max=10)
        await granted(host, 1)
        async with trio.open_nursery() as nursery:

            async def ask_first() -> None:
                assert await follower.request(host.peer_id, ECHO, b"?", reply_bytes_max=10, timeout_s=5) == b"!"

            nursery.start_soon(ask_first)
            await asked.wait()
            with pytest.raises(Refused):
                await follower.request(host.peer_id, ECHO, b"?", reply_bytes_max=10, timeout_s=5)
            answer.set()
        assert host.counters["refused: follower's second request"] == 1


async def test_a_followers_questions_are_spaced() -> None:
    pause_s = 0.2
    async with (
        members(followers_max=1, follower_pause_s=pause_s) as (host, _),
        network("follower", host.addresses) as follower,
    ):
        served_s: list[float] = []

        async def note(peer: bytes, request: bytes) -> bytes:
            served_s.append(trio.current_time())
            return b""

        host.serve(ECHO, note, request_bytes_max=10)
        await granted(host, 1)
        for _ in range(3):
            await follower.request(host.peer_id, ECHO, b"?", reply_bytes_max=10, timeout_s=5)
        assert all(later - earlier >= pause_s for earlier, later in pairwise(served_s))


async def echo(peer: bytes, request: bytes) -> bytes:
    return request


async def follow_without_reading(one: Stranger, host: Network) -> None:
    async def read_nothing(stream: INetStream) -> None:
        await trio.sleep_forever()

    one.host.set_stream_handler(TProtocol(GOSSIP), read_nothing)
    assert await one.dial(host)
    stream = await one.open(host, GOSSIP)
    hello = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)])
    await stream.write(encode_varint_prefixed(hello.SerializeToString()))
