"""Limits and blame on live networks: a flood is cut off, those beside it are served, and it may come back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from net.loopback import GOSSIP, LOOPBACK, TOPIC, Stranger, assert_works, network, networks, peer_of, seed, stranger
from p2pdfl.net import Limits, Network, Refused, Unreachable
from p2pdfl.net.blobs.pull import REQUEST_BYTES
from p2pdfl.net.blobs.service import PROTOCOL as BLOB
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.peer_score import GROSS, REFUSE_AT
from p2pdfl.net.limits.rates import Buckets, Rate
from p2pdfl.net.limits.resource_manager import ResourceManager, group

pytestmark = [pytest.mark.net, pytest.mark.slow]

BRIEF = Limits(refuse_s=1.0, refuse_s_max=1.0)
GROSS_COUNT = math.ceil(REFUSE_AT / GROSS)
GONE = (SwarmException, IOException, RawConnError, MuxedConnError, MuxedStreamError)
ECHO = "/test/echo/1"


async def echo(peer: bytes, request: bytes) -> bytes:
    return request


async def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.lowlevel.checkpoint()


async def until_heard(one: Network, other: Network) -> None:
    """After a connection was lost, gossip begins to pass again a moment after the next is there."""
    with trio.fail_after(20):
        while not len(one.incoming):
            await other.publish(b"are you there?")
            await trio.sleep(0.1)
        one.incoming.receive_nowait()


def signed(author: str, number: int, data: bytes = b"x") -> rpc_pb2.Message:
    key = create_new_key_pair(seed(author))
    made = rpc_pb2.Message(
        data=data, topicIDs=[TOPIC], from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=number.to_bytes(8, "big")
    )
    made.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    return made


def forged(number: int) -> rpc_pb2.Message:
    made = signed("stranger", number)
    made.data = b"changed"
    return made


def frame(*messages: rpc_pb2.Message) -> bytes:
    return encode_varint_prefixed(rpc_pb2.RPC(publish=messages).SerializeToString())


def is_connected(one: Network, other: ID) -> bool:
    return adapter.is_connected(one._host, other)


async def offend(attacker: Stranger, victim: Network, messages: list[rpc_pb2.Message]) -> None:
    with suppress(*GONE):  # cut off in the middle
        stream = await attacker.open(victim, GOSSIP)
        await stream.write(frame(*messages))


async def make_refused(attacker: Stranger, victim: Network) -> None:
    assert await attacker.dial(victim)
    await offend(attacker, victim, [forged(number) for number in range(GROSS_COUNT)])
    await until(lambda: victim._resource_manager.is_refused(attacker.id))


async def test_who_offends_is_cut_off_refused_and_taken_again_when_its_time_is_over() -> None:
    async with networks(2, limits=BRIEF) as (victim, friend), stranger() as attacker:
        await make_refused(attacker, victim)
        await until(lambda: not is_connected(victim, attacker.id))
        await until(lambda: not adapter.is_connected(attacker.host, peer_of(victim)))
        await attacker.dial(victim)
        await until(lambda: victim.counters["refused: peer is refused"] > 0)
        assert not is_connected(victim, attacker.id)
        assert victim.gauges()["refused_peers"] == 1
        await assert_works(victim, friend)

        await until(lambda: not victim._resource_manager.is_refused(attacker.id))
        await until(lambda: not adapter.is_connected(attacker.host, peer_of(victim)))
        assert await attacker.dial(victim)
        await (await attacker.open(victim, GOSSIP)).write(frame(signed("stranger", 1000)))
        with trio.fail_after(5):
            while (await victim.incoming.receive()).origin != attacker.id.to_base58().encode():
                pass
        assert victim.gauges()["refused_peers"] == 0


async def test_who_is_refused_is_not_dialled() -> None:
    async with networks(2, limits=BRIEF) as (one, other):
        for _ in range(GROSS_COUNT):
            one.blame(other.peer_id, "bad gossip signature")
        await until(lambda: not is_connected(one, peer_of(other)))
        with pytest.raises(SwarmException, match="peer is refused"):
            await adapter.swarm_of(one._host).dial_addr(one._host.get_addrs()[0], peer_of(other))
        with trio.fail_after(20):  # its own time over, discovery finds it again
            await until_heard(one, other)
            await until_heard(other, one)


async def test_what_a_refused_author_signed_is_not_taken_from_others_either() -> None:
    async with networks(2) as (victim, friend), stranger() as attacker, stranger("carrier") as carrier:
        await make_refused(attacker, victim)
        assert await carrier.dial(victim)
        await (await carrier.open(victim, GOSSIP)).write(frame(signed("stranger", 1000)))
        await until(lambda: victim.counters["refused: author is refused"] == 1)
        assert not victim._resource_manager.is_refused(carrier.id)
        await assert_works(victim, friend)


async def test_who_passes_on_what_others_signed_badly_is_blamed_and_not_the_others() -> None:
    async with networks(2) as (victim, friend), stranger() as attacker:
        assert await attacker.dial(victim)
        bad = []
        for number in range(GROSS_COUNT):
            made = signed("peer 1", number)
            made.data = b"changed"
            bad.append(made)
        await offend(attacker, victim, bad)
        await until(lambda: victim._resource_manager.is_refused(attacker.id))
        assert not victim._resource_manager.is_refused(peer_of(friend))
        await assert_works(victim, friend)


async def test_a_replay_of_what_a_member_signed_burns_the_rate_of_who_replays_it() -> None:
    limits = Limits(own_messages=Rate(per_s=0.001, burst=5), gossip_messages=Rate(per_s=0.001, burst=20))
    async with networks(2, limits=limits) as (victim, friend), stranger() as attacker:
        assert await attacker.dial(victim)
        stream = await attacker.open(victim, GOSSIP)
        for number in range(30):
            await stream.write(frame(signed("peer 1", number)))
        await until(lambda: victim.counters["refused: gossip over the rate"] > 0)
        assert victim.counters["refused: own gossip over the rate"] == 0
        while len(victim.incoming):
            victim.incoming.receive_nowait()
        await assert_works(victim, friend)


async def test_what_others_pass_on_of_an_author_has_a_rate_and_blames_nobody() -> None:
    """Two who pass on each other's messages are no way around it; who passes on a flood is heard itself."""
    limits = Limits(own_messages=Rate(per_s=0.001, burst=5))
    async with networks(2, limits=limits) as (victim, friend), stranger("carrier") as carrier:
        assert await carrier.dial(victim)
        stream = await carrier.open(victim, GOSSIP)
        for number in range(8):
            await stream.write(frame(signed("author", number)))
        await until(lambda: victim.counters["refused: author over the rate"] == 3)
        assert victim.counters["messages_received"] == 5
        await stream.write(frame(signed("carrier", 0)))
        await until(lambda: victim.counters["messages_received"] == 6)
        assert not [name for name in victim.counters if name.startswith("offence")]
        await assert_works(victim, friend)


async def test_forgeries_in_an_authors_name_are_not_counted_as_its_own() -> None:
    limits = Limits(own_messages=Rate(per_s=0.001, burst=2))
    async with networks(1, limits=limits) as (victim,), stranger("carrier") as carrier:
        assert await carrier.dial(victim)
        stream = await carrier.open(victim, GOSSIP)
        for number in range(3):
            await stream.write(frame(forged(number)))
        for number in range(2):
            await stream.write(frame(signed("stranger", number)))
        await until(lambda: victim.counters["messages_received"] == 2)


async def flood_with_gossip(attacker: Stranger, victim: Network) -> None:
    stream = await attacker.open(victim, GOSSIP)
    for number in range(100_000):
        await stream.write(frame(signed("stranger", number)))


async def flood_with_messages_in_one_frame(attacker: Stranger, victim: Network) -> None:
    stream = await attacker.open(victim, GOSSIP)
    for _ in range(2000):
        await stream.write(frame(*[signed("stranger", 0)] * 200))


async def flood_with_empty_frames(attacker: Stranger, victim: Network) -> None:
    stream = await attacker.open(victim, GOSSIP)
    while True:
        await stream.write(encode_varint_prefixed(b"") * 1000)


async def flood_with_streams(attacker: Stranger, victim: Network) -> None:
    """That say nothing."""
    connection = adapter.swarm_of(attacker.host).connections[peer_of(victim)][0]
    while True:
        await connection.new_stream()


async def flood_with_requests(attacker: Stranger, victim: Network) -> None:
    """Too long ones."""
    while True:
        stream = await attacker.open(victim, ECHO)
        await stream.write(b"\xff\xff\xff\xff")


async def flood_with_gossip_streams(attacker: Stranger, victim: Network) -> None:
    while True:
        with suppress(StreamFailure):
            await attacker.open(victim, GOSSIP)


@pytest.mark.parametrize(
    "flood",
    [
        flood_with_gossip,
        flood_with_messages_in_one_frame,
        flood_with_empty_frames,
        flood_with_streams,
        flood_with_requests,
        flood_with_gossip_streams,
    ],
)
async def test_a_flood_is_cut_off_while_others_are_served(
    flood: Callable[[Stranger, Network], object],
) -> None:
    rate = Rate(per_s=20, burst=100)
    limits = Limits(own_messages=rate, gossip_messages=rate, streams=rate, refuse_s=1.0)
    served = 0
    async with networks(2, limits=limits) as (victim, friend), stranger() as attacker:
        victim.serve(ECHO, echo, request_bytes_max=100)
        members = [victim.peer_id, friend.peer_id, attacker.id.to_base58().encode()]
        victim.admit(members)
        friend.admit(members)
        before = victim.gauges()

        async def attack() -> None:
            assert await attacker.dial(victim)
            with suppress(*GONE, StreamFailure):
                await flood(attacker, victim)  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attack)
            with trio.fail_after(20):
                while not victim._resource_manager.is_refused(attacker.id):
                    assert await friend.request(victim.peer_id, ECHO, b"?", reply_bytes_max=1, timeout_s=5) == b"?"
                    served += 1
                    await trio.sleep(2 / rate.per_s)  # half of its own rate
            nursery.cancel_scope.cancel()
        assert served > 0
        await until(lambda: not is_connected(victim, attacker.id))
        await assert_works(victim, friend)
        await until(lambda: victim.gauges()["streams"] <= before["streams"] + 1)
        assert victim.gauges()["inbox_bytes"] == 0
        await until(lambda: not victim._resource_manager.is_refused(attacker.id))
        await until(lambda: not adapter.is_connected(attacker.host, peer_of(victim)))
        assert await attacker.dial(victim)


async def test_an_admitted_author_who_floods_the_inbox_leaves_room_for_others() -> None:
    limits = Limits(incoming_messages_max=16)
    async with networks(3, limits=limits) as (victim, flooder, friend):
        for number in range(40):
            await flooder.publish(b"%d" % number)
        await until(lambda: victim.counters["refused: inbox full"] > 0)
        await friend.publish(b"hello")
        await until(lambda: len(victim.incoming) == 9)
        origins = [victim.incoming.receive_nowait().origin for _ in range(9)]
        assert origins == [flooder.peer_id] * 8 + [friend.peer_id]


async def test_members_are_judged_by_their_id_alone() -> None:
    """An address that brings many bad strangers is refused, and they share it with a member who comes again."""
    limits = Limits(bad_strangers_per_address=2, handshakes_of_refused=Rate(per_s=1e-6, burst=3))
    async with networks(2, limits=limits) as (victim, friend):
        victim.admit([friend.peer_id])
        for number in range(2):
            async with stranger(f"bad {number}") as attacker:
                assert await attacker.dial(victim)
                stream = await attacker.open(victim, GOSSIP)
                with suppress(*GONE):
                    await stream.write(frame(*[_of_another_topic(number) for number in range(GROSS_COUNT)]))
                await until(partial(victim._resource_manager.is_refused, attacker.id))
        assert victim._resource_manager.refused_addresses() == ["127.0.0.1"]
        async with stranger("innocent") as innocent:
            with suppress(*GONE):
                await innocent.dial(victim)
            await until(lambda: victim.counters["refused: peer is refused"] > 0)
            assert not is_connected(victim, innocent.id)
        assert is_connected(victim, peer_of(friend))
        await adapter.swarm_of(friend._host).connections[peer_of(victim)][0].close()
        await until_heard(victim, friend)


def _of_another_topic(number: int) -> rpc_pb2.Message:
    made = signed("stranger", number)
    made.topicIDs[:] = ["another"]
    return made


async def open_silent(attacker: Stranger, victim: Network, count: int) -> None:
    """Streams that agree on nothing."""
    connection = adapter.swarm_of(attacker.host).connections[peer_of(victim)][0]
    for _ in range(count):
        await connection.new_stream()


async def test_one_peer_negotiates_only_so_many_streams_at_once() -> None:
    limits = Limits(negotiations_per_peer_max=4)
    async with networks(2, limits=limits) as (victim, friend), stranger() as attacker:
        assert await attacker.dial(victim)
        await open_silent(attacker, victim, 6)
        await until(lambda: victim.counters["refused: too many streams of a peer"] == 2)
        assert len(victim._gater._streams[attacker.id]) == 4
        await assert_works(victim, friend)


async def test_one_peer_has_only_so_many_streams() -> None:
    few = Limits(streams_per_peer_max=5, served_streams_per_peer_max=5, negotiations_per_peer_max=5)
    async with networks(2, limits=few) as (victim, friend), stranger() as attacker:
        victim.serve(ECHO, echo, request_bytes_max=10)
        assert await attacker.dial(victim)
        for protocol in (GOSSIP, GOSSIP, ECHO, ECHO, ECHO):
            await attacker.open(victim, protocol)
        await until(lambda: all(stream.get_protocol() for stream in victim._gater._streams[attacker.id]))
        await open_silent(attacker, victim, 2)
        await until(lambda: victim.counters["refused: too many streams of a peer"] == 2)
        await assert_works(victim, friend)


async def test_all_peers_have_only_so_many_streams_and_none_is_blamed_for_the_others() -> None:
    async with networks(2) as (victim, friend), stranger() as attacker, stranger("late") as late:
        assert await attacker.dial(victim)
        assert await late.dial(victim)
        await open_silent(attacker, victim, 32)
        await until(lambda: len(victim._gater._streams.get(attacker.id, ())) == 32)
        victim._gater._limits = replace(victim._gater._limits, streams_per_peer_max=32, streams_max=32)
        await open_silent(late, victim, 1)
        await until(lambda: victim.counters["refused: too many streams"] == 1)
        assert victim._resource_manager._peers.score(late.id, trio.current_time()) == 0
        await assert_works(victim, friend)


async def test_one_peer_opens_streams_at_a_rate() -> None:
    async with networks(2) as (victim, friend), stranger() as attacker:
        victim._resource_manager._streams = Buckets[ID](Rate(per_s=0.001, burst=5), names_max=10)
        assert await attacker.dial(victim)
        await open_silent(attacker, victim, 7)
        await until(lambda: victim.counters["refused: streams over the rate"] == 2)
        await assert_works(victim, friend)


async def test_new_connections_of_an_address_come_at_a_rate() -> None:
    limits = Limits(handshakes=Rate(per_s=0.001, burst=3))
    async with network("victim", limits=limits) as victim:
        port = int(victim.addresses[0].split("/")[4])
        for _ in range(5):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        await until(lambda: victim.counters["refused: connections over the rate"] == 2)


async def test_new_connections_of_a_members_address_come_at_a_rate_of_their_own() -> None:
    limits = Limits(handshakes=Rate(per_s=0.001, burst=3), handshakes_of_members=Rate(per_s=0.001, burst=5))
    async with networks(2, limits=limits) as (victim, friend):
        victim.admit([friend.peer_id])
        port = int(victim.addresses[0].split("/")[4])
        for _ in range(7):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        await until(lambda: victim.counters["refused: connections over the rate"] == 2)
        await assert_works(victim, friend)


async def test_a_peer_that_does_not_read_is_cut_off_all_the_same() -> None:
    """As shipped, closing a connection that one dialled waits for the other side to read."""
    async with networks(2) as (victim, friend), stranger() as deaf:
        addresses = await adapter.listen(deaf.host, [Multiaddr(LOOPBACK)])
        assert await adapter.dial(victim._host, deaf.id, addresses, timeout_s=5)
        connection = adapter.swarm_of(victim._host).connections[deaf.id][0]
        deafened: Any = adapter.swarm_of(deaf.host).connections[peer_of(victim)][0].muxed_conn
        socket = deafened.secured_conn.conn
        async with socket.read_writer.read_write_closer.stream.read_lock:  # deaf from here on
            stream: Any = await connection.new_stream()

            async def talk() -> None:
                with suppress(*GONE):
                    while not connection.is_closed:
                        await stream.muxed_stream.conn._write_frame(bytes(1 << 20))
                        await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                await trio.testing.wait_all_tasks_blocked(0.1)
                for _ in range(GROSS_COUNT):
                    victim.blame(deaf.id.to_base58().encode(), "bad gossip signature")
                await until(lambda: deaf.id not in adapter.swarm_of(victim._host).connections, limit_s=3)
        await assert_works(victim, friend)


async def test_replies_beyond_the_rate_wait() -> None:
    limits = Limits(served_bytes=Rate(per_s=100_000, burst=100_000))
    async with networks(2, limits=limits) as (one, other):
        other.serve(ECHO, echo, request_bytes_max=100_000)
        assert len(await ask(one, other, 100_000)) == 100_000
        with pytest.raises(Unreachable, match="in time"):
            await ask(one, other, 100_000, timeout_s=0.3)
        assert other.counters["requests_served"] == 1


async def test_replies_that_would_take_too_much_memory_are_not_given() -> None:
    limits = Limits(served_bytes_max=150_000, served_bytes=Rate(per_s=1, burst=1), serve_s=2.0)
    async with networks(2, limits=limits) as (one, other):
        other.serve(ECHO, echo, request_bytes_max=100_000)
        async with trio.open_nursery() as nursery:

            async def ask_and_wait() -> None:
                with suppress(Unreachable, Refused):
                    await ask(one, other, 100_000, timeout_s=60)

            nursery.start_soon(ask_and_wait)
            await until(lambda: other.gauges()["reply_bytes"] == 100_000)
            with pytest.raises(Refused):
                await ask(one, other, 100_000)
            nursery.cancel_scope.cancel()
        assert other.counters["refused: replies take too much memory"] == 1
        await until(lambda: other.gauges()["reply_bytes"] == 0)


async def ask(one: Network, other: Network, size: int, *, timeout_s: float = 5) -> bytes:
    return await one.request(other.peer_id, ECHO, bytes(size), reply_bytes_max=size, timeout_s=timeout_s)


async def test_a_request_longer_than_served_is_an_offence(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo, request_bytes_max=9)
    for _ in range(GROSS_COUNT):
        with pytest.raises((Refused, Unreachable)):
            await ask(one, other, 10)
    assert other._resource_manager.is_refused(peer_of(one))


async def test_a_holder_that_lies_is_blamed_and_one_that_has_nothing_is_not() -> None:
    async with networks(3) as (one, liar, empty):

        async def lie(peer: bytes, digest: bytes) -> bytes:
            return b"something else"

        liar.serve(BLOB, lie, request_bytes_max=REQUEST_BYTES)
        for number in range(GROSS_COUNT):
            digest = sha256(b"%d" % number).digest()
            assert await one.fetch(digest, [liar.peer_id, empty.peer_id], bytes_max=100) is None
        assert one._resource_manager.is_refused(peer_of(liar))
        assert not one._resource_manager.is_refused(peer_of(empty))


async def test_a_peer_passes_on_no_more_than_half_of_what_the_next_takes() -> None:
    """So nobody can make it a flooder."""
    limits = Limits(gossip_messages=Rate(per_s=0.001, burst=40), own_messages=Rate(per_s=1, burst=1000))
    async with networks(2, limits=limits) as (victim, friend):
        async with stranger("author") as author:
            wide = Limits(gossip_messages=Rate(per_s=0.001, burst=40))
            assert wide.gossip_messages == limits.gossip_messages
            assert await author.dial(victim)
            stream = await author.open(victim, GOSSIP)
            for number in range(35):
                await stream.write(frame(signed("author", number)))
            await until(lambda: victim.counters["refused: more to pass on than a peer takes"] >= 15)
        assert victim.counters["messages_received"] == 35
        assert friend.counters["refused: gossip over the rate"] == 0


def test_what_is_too_long_to_pass_on_takes_nothing_from_what_is_not() -> None:
    limits = Limits(
        message_bytes_max=400,
        gossip_messages=Rate(per_s=0.001, burst=4),
        gossip_bytes=Rate(per_s=0.001, burst=1_000),
    )
    resource_manager, to = ResourceManager(limits=limits, counters=Counter(), clock=lambda: 0.0), ID(b"next")
    assert resource_manager.may_pass_on(to, 400)
    assert not resource_manager.may_pass_on(to, 400)
    assert resource_manager.may_pass_on(to, 100)
    assert not resource_manager.may_pass_on(to, 0)


async def test_eight_peers_that_talk_as_fast_as_a_round_does_blame_nobody() -> None:
    async with networks(8) as peers:
        ids = [peer.peer_id for peer in peers]
        for peer in peers:
            peer.admit(ids)

        async def speak(peer: Network) -> None:
            for _ in range(6):
                await peer.publish(bytes(64 << 10))

        async def listen(peer: Network) -> None:
            for _ in range(6 * 7):
                await peer.incoming.receive()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(speak, peer)
                    nursery.start_soon(listen, peer)
        for peer in peers:
            assert not [name for name in peer.counters if name.startswith("offence")]
            assert peer.counters["refused: gossip over the rate"] == 0


async def test_a_reason_that_is_nobodys_fault_blames_nobody() -> None:
    async with networks(2) as (one, other):
        for _ in range(1000):
            one.blame(other.peer_id, "author not admitted")
        assert not one._resource_manager.is_refused(peer_of(other))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("not an address", "not an address"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, expected: str) -> None:
    assert group(address) == expected
