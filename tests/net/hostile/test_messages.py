"""Each of these ended a py-libp2p 0.8.1 node as shipped, or used it up.  A node must outlive all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_uvarint, encode_varint_prefixed

from net.loopback import (
    GOSSIP,
    TOPIC,
    Stranger,
    assert_works,
    network,
    networks,
    seed,
    stranger,
    until_ended,
)
from p2pdfl.net import Limits, Network, Refused
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.rates import Rate

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
async def acquainted() -> AsyncIterator[tuple[Network, Network, Stranger]]:
    """A victim, its friend, and a stranger who is connected to the victim."""
    async with networks(2) as (victim, friend), stranger() as attacker:
        assert await attacker.dial(victim)
        yield victim, friend, attacker


def message(author: str = "stranger", **fields: Any) -> rpc_pb2.Message:
    """A message as the author would sign it, with fields replaced after the signature."""
    key = create_new_key_pair(seed(author))
    made = rpc_pb2.Message(
        data=b"x", topicIDs=[TOPIC], from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=bytes(8)
    )
    made.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    made.MergeFrom(rpc_pb2.Message(**fields))
    return made


async def gossip(attacker: Stranger, victim: Network, *messages: rpc_pb2.Message) -> None:
    stream = await attacker.open(victim, GOSSIP)
    await stream.write(encode_varint_prefixed(rpc_pb2.RPC(publish=list(messages)).SerializeToString()))


async def counted(victim: Network, reason: str, count: int = 1) -> None:
    with trio.fail_after(5):
        while victim.counters[reason] < count:
            await trio.lowlevel.checkpoint()


async def read_nothing(stream: INetStream) -> None:
    await trio.sleep_forever()


async def test_a_protobuf_that_is_none(acquainted: tuple[Network, Network, Stranger]) -> None:
    victim, friend, attacker = acquainted
    stream = await attacker.open(victim, GOSSIP)
    await stream.write(encode_varint_prefixed(b"\xff\xff\xff\xff"))
    await until_ended(stream)
    await counted(victim, "refused: malformed gossip")
    await assert_works(victim, friend)


@pytest.mark.parametrize("prefix", [encode_uvarint(1 << 30), b"\xff" * 20])
async def test_a_frame_that_announces_too_much(acquainted: tuple[Network, Network, Stranger], prefix: bytes) -> None:
    victim, friend, attacker = acquainted
    stream = await attacker.open(victim, GOSSIP)
    await stream.write(prefix)
    await until_ended(stream)
    await counted(victim, "refused: malformed gossip")
    await assert_works(victim, friend)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"from_id": b""}, "bad gossip signature"),
        ({"from_id": b"\x00"}, "bad gossip signature"),
        ({"from_id": b"\x12\x20" + bytes(32)}, "bad gossip signature"),
        ({"from_id": b"\x12\x20" + bytes(32), "key": b"\xff\xff"}, "bad gossip signature"),
        ({"from_id": b"\x00\x24\x08\x01\x12\x20" + b"\xff" * 32}, "bad gossip signature"),
        ({"from_id": bytes(1_000)}, "malformed gossip"),
        ({"data": b"changed"}, "bad gossip signature"),
        ({"signature": b"short"}, "bad gossip signature"),
        ({"seqno": b"1"}, "malformed gossip"),
        ({"topicIDs": ["another"]}, "other topic"),
    ],
)
async def test_a_message_whose_author_is_none(
    acquainted: tuple[Network, Network, Stranger], bad: dict[str, Any], reason: str
) -> None:
    victim, friend, attacker = acquainted
    forged = message(**bad)
    if bad == {"from_id": b""}:
        forged.ClearField("from_id")
        reason = "malformed gossip"
    await gossip(attacker, victim, forged)
    await counted(victim, f"refused: {reason}")
    await assert_works(victim, friend)
    assert victim.counters["messages_received"] == 1


async def test_a_message_in_the_victims_own_name(acquainted: tuple[Network, Network, Stranger]) -> None:
    victim, friend, attacker = acquainted
    await gossip(attacker, victim, message("peer 0"))
    await counted(victim, "refused: own message returned")
    await assert_works(victim, friend)


async def test_an_author_who_is_not_admitted(acquainted: tuple[Network, Network, Stranger]) -> None:
    victim, friend, attacker = acquainted
    await gossip(attacker, victim, message(seqno=bytes(8)))
    with trio.fail_after(5):
        assert (await victim.incoming.receive()).origin == attacker.id.to_base58().encode()
    victim.admit([friend.peer_id])
    await gossip(attacker, victim, message("someone else"))
    await counted(victim, "refused: author not admitted")
    await assert_works(victim, friend)


async def test_a_member_whose_message_a_stranger_passes_on_is_heard() -> None:
    async with networks(2) as (victim, friend), stranger() as carrier:
        victim.admit([friend.peer_id])
        await carrier.dial(victim)
        await gossip(carrier, victim, message("peer 1"))
        with trio.fail_after(5):
            assert (await victim.incoming.receive()).origin == friend.peer_id


async def test_a_handler_that_raises(acquainted: tuple[Network, Network, Stranger]) -> None:
    async def fail(stream: INetStream) -> None:
        raise RuntimeError("remote-triggered")

    victim, friend, attacker = acquainted
    victim._host.set_stream_handler(TProtocol("/test/fails/1"), fail)
    with suppress(StreamFailure):  # the reset may overtake the end of the negotiation
        await attacker.open(victim, "/test/fails/1")
    await counted(victim, "contained: stream")
    await assert_works(victim, friend)


async def test_a_negotiation_that_makes_no_sense(acquainted: tuple[Network, Network, Stranger]) -> None:
    async def babble(stream: INetStream) -> None:
        await stream.write(encode_varint_prefixed(b"\xff\xfe\n"))

    victim, friend, attacker = acquainted
    adapter.swarm_of(attacker.host).set_stream_handler(babble)
    with pytest.raises(Refused):
        await victim.request(attacker.id.to_base58().encode(), "/test/1", b"", reply_bytes_max=0, timeout_s=2)
    await assert_works(victim, friend)


async def test_what_others_do_wrong_is_not_logged(
    acquainted: tuple[Network, Network, Stranger], caplog: pytest.LogCaptureFixture
) -> None:
    """As shipped, that a peer does not agree on a protocol is an error of ten lines."""
    victim, _, attacker = acquainted
    with pytest.raises(Refused):
        await victim.request(attacker.id.to_base58().encode(), "/test/1", b"", reply_bytes_max=0, timeout_s=2)
    assert not caplog.records


async def test_more_gossip_streams_than_one_peer_needs(acquainted: tuple[Network, Network, Stranger]) -> None:
    victim, friend, attacker = acquainted
    held = [await attacker.open(victim, GOSSIP) for _ in range(Limits().gossip_streams_per_peer_max)]
    with suppress(StreamFailure):  # the reset may overtake the end of the negotiation
        await attacker.open(victim, GOSSIP)
    await counted(victim, "refused: too many gossip streams")
    await held[0].reset()
    await assert_works(victim, friend)


async def test_more_subscriptions_than_one_message_may_have_are_none(
    acquainted: tuple[Network, Network, Stranger],
) -> None:
    victim, _, attacker = acquainted
    subscribe = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)
    rpc = rpc_pb2.RPC(subscriptions=[subscribe] * 65, publish=[message()])
    stream = await attacker.open(victim, GOSSIP)
    await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
    with trio.fail_after(5):
        await victim.incoming.receive()
    assert attacker.id not in victim._gossip.peer_topics[TOPIC]


async def test_control_messages_about_topics_that_are_not_ours_leave_no_trace(
    acquainted: tuple[Network, Network, Stranger],
) -> None:
    victim, friend, attacker = acquainted
    rpc = rpc_pb2.RPC()
    for number in range(50):
        rpc.control.graft.add(topicID=f"g{number}")
        rpc.control.prune.add(topicID=f"p{number}")
        rpc.control.ihave.add(topicID=f"i{number}", messageIDs=[b"m"])
        rpc.control.iwant.add(messageIDs=[b"m"])
        rpc.subscriptions.add(subscribe=True, topicid=f"s{number}")
    stream = await attacker.open(victim, GOSSIP)
    await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
    await gossip(attacker, victim, message(seqno=b"after it"))
    await assert_works(victim, friend)
    assert set(victim._gossip.peer_topics) == {TOPIC}
    assert set(victim._gossip.mesh.back_off) <= {TOPIC}
    assert attacker.id not in victim._gossip.mesh.graft_flood_tracking


def subscriptions(count: int) -> rpc_pb2.RPC:
    """Leaving and coming back in turn, and following at the end."""
    return rpc_pb2.RPC(
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=left % 2 == 0, topicid=TOPIC) for left in reversed(range(count))]
    )


async def test_following_and_leaving_without_end_changes_what_is_reachable_once(
    acquainted: tuple[Network, Network, Stranger], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, friend, attacker = acquainted
    announce, following = victim._gossip.announce_change, list[bool]()

    def noted() -> None:
        following.append(attacker.id in victim._gossip.peer_topics[TOPIC])
        announce()

    monkeypatch.setattr(victim._gossip, "announce_change", noted)
    stream = await attacker.open(victim, GOSSIP)
    for _ in range(20):
        await stream.write(encode_varint_prefixed(subscriptions(64).SerializeToString()))
    await stream.write(encode_varint_prefixed(rpc_pb2.RPC(publish=[message()]).SerializeToString()))
    await counted(victim, "messages_received")
    assert following == [True]
    await assert_works(victim, friend)


async def test_subscriptions_count_as_messages_do() -> None:
    limits = Limits(gossip_messages=Rate(per_s=0.001, burst=100))
    async with networks(2, limits=limits) as (victim, friend), stranger() as attacker:
        assert await attacker.dial(victim)
        stream = await attacker.open(victim, GOSSIP)
        for _ in range(3):
            await stream.write(encode_varint_prefixed(subscriptions(64).SerializeToString()))
        await counted(victim, "refused: gossip over the rate", 2)
        await assert_works(victim, friend)


async def test_inbound_slots_come_back() -> None:
    """As shipped, a node accepts connections_max connections in its life."""
    async with network("victim", limits=Limits(connections_max=3, handshakes_max=1)) as victim:
        for number in range(8):
            async with stranger(f"stranger {number}") as visitor:
                assert await visitor.dial(victim)
                await visitor.open(victim, GOSSIP)


async def test_half_open_connections_do_not_stop_the_node() -> None:
    async with networks(2) as (victim, friend):
        host, port = "127.0.0.1", int(victim.addresses[0].split("/")[4])
        halves = [await trio.open_tcp_stream(host, port) for _ in range(20)]
        for half in halves[:10]:
            await half.send_all(b"\x13/multistream/1.0.0\n" + b"\xff" * 100)
        await assert_works(victim, friend)
        for half in halves:
            await half.aclose()


async def test_a_peer_that_stops_reading_does_not_hold_up_the_others() -> None:
    limits = Limits(outbound_messages_max=4)
    async with networks(2, limits=limits) as (victim, friend), stranger() as deaf:
        deaf.host.set_stream_handler(TProtocol(GOSSIP), read_nothing)
        await deaf.dial(victim)
        stream = await deaf.open(victim, GOSSIP)
        subscribe = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)])
        await stream.write(encode_varint_prefixed(subscribe.SerializeToString()))
        with trio.fail_after(5):
            await victim.wait_connected(2)
        heard = 0
        with trio.fail_after(20):
            for _ in range(20):
                await victim.publish(bytes(100_000))
                await friend.incoming.receive()
                heard += 1
        assert heard == 20
        assert victim.counters["refused: peer too slow"] > 0
