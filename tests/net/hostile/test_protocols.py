"""What runs over streams: identify, ping, the DHT, gossip, requests."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_uvarint, encode_varint_prefixed
from multiaddr import Multiaddr

from net.loopback import GOSSIP, TOPIC, seed
from p2pdfl.net.blobs import service
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import ADDRESS_RECORD_BYTES_MAX, DHT_MESSAGE_BYTES_MAX

from .attacker import Attacker, Ended, Identity, Stream, Yamux, hello, receive_name
from .scene import ECHO, ECHO_BYTES_MAX, LIMITS, TRAITOR, Attack, Scene

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]

DHT, IDENTIFY, PUSH, PING = b"/ipfs/kad/1.0.0", b"/ipfs/id/1.0.0", b"/ipfs/id/push/1.0.0", b"/ipfs/ping/1.0.0"
SOON_S = 3.0


def frame(message: Any) -> bytes:
    return encode_varint_prefixed(message.SerializeToString())


async def traitor(attacker: Attacker) -> Yamux:
    """A connection of an admitted member."""
    return await attacker.yamux(Identity(TRAITOR))


async def ends(stream: Stream) -> None:
    with trio.fail_after(SOON_S):
        await stream.until_ended()


def addresses(count: int) -> list[Multiaddr]:
    return [Multiaddr(f"/ip4/10.{n >> 16}.{n >> 8 & 255}.{n & 255}/tcp/{1000 + n % 60_000}") for n in range(count)]


def record(name: str, count: int) -> bytes:
    key = create_new_key_pair(seed(name))
    peer = ID.from_pubkey(key.public_key)
    made: bytes = create_signed_peer_record(peer, addresses(count), key.private_key).marshal_envelope()
    return made


# --- identify and ping ---------------------------------------------------------------------------------------------


async def identify_asked_again_and_again(attacker: Attacker) -> None:
    """Without ever ending our side of a stream: as shipped the victim keeps each."""
    yamux = await attacker.yamux()
    for _ in range(100):
        stream = await yamux.open(IDENTIFY)
        await stream.until_ended()


async def identify_poured_into(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for _ in range(5):
        stream = await yamux.open(IDENTIFY)
        await stream.send(bytes(100_000))
    await yamux.catch_up()


async def identity_pushed(attacker: Attacker) -> None:
    """A thousand addresses and protocols about oneself; nobody asked."""
    yamux = await attacker.yamux()
    stream = await yamux.open()
    made = Identify(listen_addrs=[one.to_bytes() for one in addresses(1000)], protocols=["/p" * 100] * 1000)
    await stream.send(hello(PUSH) + frame(made))
    await ends(stream)
    known = attacker.victim._host.get_peerstore()
    assert Identity().id not in known.peer_ids()


async def ping_of_odd_sizes(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for size in (0, 1, 31, 33, 200_000):
        stream = await yamux.open(PING)
        await stream.send(bytes(size))
        await stream.finish()
    await yamux.catch_up()


async def pings_of_ping_protocol(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open(PING)
    for _ in range(100):
        await stream.send(bytes(32))
        await stream.receive(32)


@pytest.mark.parametrize(
    "attack",
    [
        identify_asked_again_and_again,
        identify_poured_into,
        identity_pushed,
        ping_of_odd_sizes,
        pings_of_ping_protocol,
    ],
)
def test_identify_and_ping(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


# --- the DHT -------------------------------------------------------------------------------------------------------


def question(key: bytes = b"\x12\x20" + bytes(32), **fields: Any) -> bytes:
    return frame(Message(type=Message.FIND_NODE, key=key, **fields))


async def answer(stream: Stream) -> Message:
    length, shift = 0, 0
    while (byte := (await stream.receive(1))[0]) >= 0x80:
        length, shift = length | (byte & 0x7F) << shift, shift + 7
    message = Message()
    message.ParseFromString(await stream.receive(length | byte << shift))
    return message


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(encode_varint_prefixed(b"\xff" * 50), id="no protobuf"),
        pytest.param(encode_uvarint(1 << 40), id="1 TB"),
        pytest.param(encode_uvarint(DHT_MESSAGE_BYTES_MAX + 1), id="a byte too long"),
        pytest.param(b"\xff" * 20, id="an endless varint"),
        pytest.param(question(b""), id="no key"),
        pytest.param(question(bytes(5000)), id="a key of 5 KB"),
        pytest.param(question(senderRecord=b"\xff" * 100), id="a record of garbage"),
        pytest.param(question(senderRecord=record("another", 1)), id="another's record"),
        pytest.param(question(senderRecord=record("stranger", 1000)), id="a record of 1000 addresses"),
        pytest.param(frame(Message(type=cast("Any", 99), key=b"hello")), id="an unknown question"),
    ],
)
def test_a_question_that_makes_no_sense(scene: Scene, said: bytes) -> None:
    async def ask(attacker: Attacker) -> None:
        yamux = await attacker.yamux()
        stream = await yamux.open(DHT)
        await stream.send(said)
        await stream.finish()
        await ends(stream)

    scene.run(ask)


async def questions_that_are_not_asked(attacker: Attacker) -> None:
    """As shipped, twelve such streams keep everybody from asking."""
    for name in range(8):
        yamux = await attacker.yamux(Identity(f"stranger {name}"))
        for _ in range(2):
            await yamux.open(DHT)
    honest = await attacker.yamux(Identity("who asks"))
    stream = await honest.open(DHT)
    await stream.send(question())
    assert (await answer(stream)).type == Message.FIND_NODE


async def question_that_will_be_too_long(attacker: Attacker) -> None:
    """It is not waited for."""
    yamux = await attacker.yamux()
    stream = await yamux.open(DHT)
    waited_for = attacker.victim.counters["refused: DHT stream too slow"]
    await stream.send(encode_uvarint(DHT_MESSAGE_BYTES_MAX + 1))
    await ends(stream)
    assert attacker.victim.counters["refused: DHT stream too slow"] == waited_for


async def question_that_trickles(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open(DHT)

    async def trickle() -> None:
        for byte in question() * 10:
            await stream.send(bytes([byte]))
            await trio.sleep(0.05)

    attacker.nursery.start_soon(trickle)
    await stream.until_ended()


async def more_dht_streams_than_one_peer_needs(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for _ in range(LIMITS.dht_streams_per_peer_max):
        await yamux.open(DHT)
    async with counter_rises(attacker, "too many DHT streams", 1):
        with suppress(Ended):  # the reset may overtake the end of the negotiation
            await yamux.open(DHT)


async def questions_without_number(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open(DHT)
    for number in range(50):
        await stream.send(question(b"\x12\x20" + number.to_bytes(32, "big")))
        await answer(stream)


async def values_and_providers_without_number(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for kind in (Message.PUT_VALUE, Message.ADD_PROVIDER):
        stream = await yamux.open(DHT)
        try:
            for number in range(200):
                message = Message(type=kind, key=b"/x/%d" % number)
                message.record.key, message.record.value = message.key, bytes(10_000)
                about = message.providerPeers.add(id=Identity().id.to_bytes())
                about.addrs.extend(one.to_bytes() for one in addresses(50))
                await stream.send(frame(message))
                await yamux.catch_up()
        except Ended:
            pass
        await yamux.catch_up()
    dht = attacker.victim._discovery.dht
    assert dht.value_store.size() == 0
    assert dht.provider_store.size() <= 20


@pytest.mark.parametrize(
    "attack",
    [
        questions_that_are_not_asked,
        question_that_will_be_too_long,
        question_that_trickles,
        more_dht_streams_than_one_peer_needs,
        questions_without_number,
        values_and_providers_without_number,
    ],
)
def test_dht(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


# --- gossip --------------------------------------------------------------------------------------------------------


def message(author: str = TRAITOR, **fields: Any) -> rpc_pb2.Message:
    """As the author would sign it, with fields replaced after the signature."""
    key = create_new_key_pair(seed(author))
    made = rpc_pb2.Message(
        data=b"x", topicIDs=[TOPIC], from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=bytes(8)
    )
    made.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    made.MergeFrom(rpc_pb2.Message(**fields))
    return made


def publish(*messages: rpc_pb2.Message) -> bytes:
    return frame(rpc_pb2.RPC(publish=list(messages)))


def counter_rises(attacker: Attacker, reason: str, count: int) -> Any:
    return _Rises(attacker, f"refused: {reason}", count)


class _Rises:
    def __init__(self, attacker: Attacker, name: str, count: int) -> None:
        self._counters, self._name, self._count = attacker.victim.counters, name, count

    async def __aenter__(self) -> None:
        self._before = self._counters[self._name]

    async def __aexit__(self, *failure: object) -> None:
        with trio.fail_after(SOON_S):
            while self._counters[self._name] < self._before + self._count:
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(encode_varint_prefixed(b"\xff\xff\xff\xff"), id="no protobuf"),
        pytest.param(encode_uvarint(1 << 40), id="1 TB"),
        pytest.param(b"\xff" * 20, id="an endless varint"),
        pytest.param(encode_uvarint(LIMITS.message_bytes_max + 1 << 20), id="more than a message"),
    ],
)
def test_gossip_that_ends_its_stream(scene: Scene, said: bytes) -> None:
    async def say(attacker: Attacker) -> None:
        stream = await (await traitor(attacker)).open(GOSSIP)
        async with counter_rises(attacker, "malformed gossip", 1):
            await stream.send(said)
            await ends(stream)

    scene.run(say)


async def subscriptions_without_number(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    topics = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"topic {number}") for number in range(3_000)]
    for start in range(0, 3_000, 50):
        await stream.send(frame(rpc_pb2.RPC(subscriptions=topics[start : start + 50])))
    await stream.send(frame(rpc_pb2.RPC(subscriptions=topics)))
    await stream.send(frame(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="t" * 200_000)])))
    await yamux.catch_up()


async def subscribing_and_leaving(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    for number in range(1_000):
        change = rpc_pb2.RPC.SubOpts(subscribe=number % 2 == 0, topicid=TOPIC)
        await stream.send(frame(rpc_pb2.RPC(subscriptions=[change])))
    await yamux.catch_up()


async def bad_signatures_without_number(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    async with counter_rises(attacker, "bad gossip signature", 1_000):
        for start in range(0, 1_000, 50):
            await stream.send(
                publish(*[message(seqno=number.to_bytes(8, "big")) for number in range(start + 1, start + 51)])
            )
            await yamux.catch_up()


async def replays(attacker: Attacker) -> None:
    """The victim hears it once."""
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    made = rpc_pb2.Message(data=b"again", topicIDs=[TOPIC], from_id=Identity(TRAITOR).id.to_bytes(), seqno=b"replayed")
    key = Identity(TRAITOR).key_pair.private_key
    made.signature = key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    before = attacker.victim.counters["copies_received"]
    for _ in range(500):
        await stream.send(publish(made))
    await yamux.catch_up()
    with trio.fail_after(SOON_S):
        while attacker.victim.counters["copies_received"] < before + 500:
            await trio.lowlevel.checkpoint()
    assert list(attacker.victim._gossip._seen).count(bytes(made.from_id + made.seqno)) == 1


async def the_victims_own_words(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    async with counter_rises(attacker, "own message returned", 20):
        for number in range(20):
            await stream.send(publish(message("victim", seqno=number.to_bytes(8, "big"))))


async def sequence_numbers_of_odd_sizes(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    async with counter_rises(attacker, "malformed gossip", 4):
        for seqno in (b"1", bytes(7), bytes(9), bytes(50_000)):
            made = message()
            made.seqno = seqno
            await stream.send(publish(made))


async def authors_who_are_nobody(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    before = attacker.victim.counters["messages_received"]
    for author in (b"", b"\x00", bytes(34), b"\x12\x20" + bytes(32), b"\xff" * 64, bytes(60_000)):
        made = message()
        made.from_id = author
        await stream.send(publish(made))
    await yamux.catch_up()
    assert attacker.victim.counters["messages_received"] - before <= 10, "only what the honest pair said meanwhile"


async def control_messages_without_number(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    rpc = rpc_pb2.RPC()
    for number in range(500):
        topic = TOPIC if number % 2 else f"topic {number}"
        rpc.control.graft.add(topicID=topic)
        prune = rpc.control.prune.add(topicID=topic, backoff=2**62)
        prune.peers.add(peerID=Identity(f"named {number % 10}").id.to_bytes(), signedPeerRecord=b"\xff" * 50)
        rpc.control.ihave.add(topicID=topic, messageIDs=[number.to_bytes(16, "big")] * 20)
        rpc.control.iwant.add(messageIDs=[number.to_bytes(16, "big")] * 20)
    for _ in range(5):
        await stream.send(frame(rpc))
        await yamux.catch_up()
    assert not attacker.victim._gossip.mesh.back_off.get(TOPIC, {}).get(Identity("named 1").id)


async def empty_messages_without_number(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    for _ in range(100):
        await stream.send(b"\x00" * 100)
    await yamux.catch_up()


async def message_that_is_too_long(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    async with counter_rises(attacker, "message too long", 1):
        await stream.send(publish(message(data=bytes(LIMITS.message_bytes_max + 1))))


async def address_record_of_2000_addresses(attacker: Attacker) -> None:
    """As shipped it is parsed before anything is known of it, which stops the node for seconds."""
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    huge = record(TRAITOR, 2_000)
    assert ADDRESS_RECORD_BYTES_MAX < len(huge) < LIMITS.message_bytes_max
    async with counter_rises(attacker, "bad address record", 1):
        await stream.send(frame(rpc_pb2.RPC(senderRecord=huge)))


async def gossip_that_trickles(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(GOSSIP)
    await stream.send(encode_uvarint(1000))
    for _ in range(20):
        await stream.send(b"\x00")
    await yamux.catch_up()


@pytest.mark.parametrize(
    "attack",
    [
        subscriptions_without_number,
        subscribing_and_leaving,
        bad_signatures_without_number,
        replays,
        the_victims_own_words,
        sequence_numbers_of_odd_sizes,
        authors_who_are_nobody,
        control_messages_without_number,
        empty_messages_without_number,
        message_that_is_too_long,
        address_record_of_2000_addresses,
        gossip_that_trickles,
    ],
)
def test_gossip(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


# --- requests and blobs --------------------------------------------------------------------------------------------


async def request_of_4_gb(attacker: Attacker) -> None:
    stream = await (await traitor(attacker)).open(ECHO)
    async with counter_rises(attacker, "request too long", 1):
        await stream.send(b"\xff\xff\xff\xff")
        await ends(stream)


async def request_that_trickles(attacker: Attacker) -> None:
    stream = await (await traitor(attacker)).open(ECHO)
    await stream.send((1000).to_bytes(4, "big"))

    async def trickle() -> None:
        for _ in range(1000):
            await stream.send(b"\x00")
            await trio.sleep(0.05)

    attacker.nursery.start_soon(trickle)
    await stream.until_ended()


async def request_broken_off(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    async with counter_rises(attacker, "request broken off", 20):
        for _ in range(20):
            stream = await yamux.open(ECHO)
            await stream.send((1000).to_bytes(4, "big") + b"and then")
            await stream.reset()


async def requests_without_number(attacker: Attacker) -> None:
    """More than a peer may have open are reset; none takes a place from the friend's."""
    yamux = await traitor(attacker)
    refused = 0
    for _ in range(100):
        try:
            await yamux.open(ECHO)
        except Ended:
            refused += 1
            if yamux.tcp.stream.socket.fileno() < 0:
                raise
    assert refused <= 100 - LIMITS.served_streams_per_peer_max
    served = attacker.victim._requests._served
    assert served[Identity(TRAITOR).id] <= LIMITS.served_streams_per_peer_max


async def blobs_that_nobody_has(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    for number in range(50):
        stream = await yamux.open(service.PROTOCOL)
        digest = number.to_bytes(32, "big")
        await stream.send(len(digest).to_bytes(4, "big") + digest)
        await stream.until_ended()


async def digest_of_odd_size(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    for size in (0, 1, 31, 33, 60_000):
        stream = await yamux.open(service.PROTOCOL)
        await stream.send(size.to_bytes(4, "big") + bytes(size))
        await ends(stream)


async def request_of_a_stranger(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    async with counter_rises(attacker, "stranger's request", 1):
        try:
            stream = await yamux.open(ECHO)
            await ends(stream)
        except Ended:
            pass


async def reply_that_is_left_standing(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open(ECHO)
    size = ECHO_BYTES_MAX // 2
    await stream.send(size.to_bytes(4, "big"))
    for _ in range(0, size, 1 << 15):
        await stream.send(bytes(1 << 15))
        await yamux.catch_up()
    await yamux.catch_up()
    assert len(yamux.buffers[stream.id]) <= 256 << 10, "no more than the window we gave"


async def protocol_that_is_not_served(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    for _ in range(20):
        with pytest.raises(Ended):
            await yamux.open(b"/nobody/serves/this")


async def protocol_whose_name_cannot_be_read(attacker: Attacker) -> None:
    """It is refused like any other, not contained as a failure of ours."""
    yamux = await traitor(attacker)
    contained = attacker.victim.counters["contained: stream"]
    not_utf8, endless_length = b"\x03\xff\xfe\n", b"\xff" * 20
    for name in (not_utf8, endless_length):
        stream = await yamux.open()
        await stream.send(hello(b"/nope")[:-7] + name)
        await ends(stream)
    assert attacker.victim.counters["contained: stream"] == contained


async def protocol_with_no_end_of_proposals(attacker: Attacker) -> None:
    yamux = await traitor(attacker)
    stream = await yamux.open()
    await stream.send(hello(b"/nope") + b"\x06/nope\n" * 200)
    assert await receive_name(stream.receive) == b"/multistream/1.0.0"
    await ends(stream)


@pytest.mark.parametrize(
    "attack",
    [
        request_of_4_gb,
        request_that_trickles,
        request_broken_off,
        requests_without_number,
        blobs_that_nobody_has,
        digest_of_odd_size,
        request_of_a_stranger,
        reply_that_is_left_standing,
        protocol_that_is_not_served,
        protocol_whose_name_cannot_be_read,
        protocol_with_no_end_of_proposals,
    ],
)
def test_requests(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


def test_the_adapter_is_what_is_attacked(scene: Scene) -> None:
    assert adapter.swarm_of(scene.victim._host).upgrader.security_multistream.transports.keys() == {"/noise"}
