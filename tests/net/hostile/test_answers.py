"""What a hostile listener, or a hostile answer, may do to a node that dials or asks it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.envelope import consume_envelope
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.utils.varint import encode_uvarint, encode_varint_prefixed
from multiaddr import Multiaddr

from net.loopback import assert_works, network, networks, peer_of, stranger
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import DHT_MESSAGE_BYTES_MAX, DHT_PROVIDED_KEYS_MAX

from .attacker import MULTISTREAM, NOISE, Ended, Identity, Noise, Tcp, hello, name_message, receive_name
from .test_protocols import DHT, addresses, record

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
async def victim() -> AsyncIterator[Network]:
    async with network("victim") as opened:
        yield opened


Play = Callable[[Tcp], Awaitable[None]]


async def says_nothing(tcp: Tcp) -> None:
    await tcp.until_ended()


async def hangs_up(tcp: Tcp) -> None:
    await tcp.reset()


async def talks_nonsense(tcp: Tcp) -> None:
    await tcp.send(os.urandom(4000))
    await tcp.until_ended()


async def names_a_protocol_of_1_tb(tcp: Tcp) -> None:
    await tcp.send(encode_uvarint(1 << 40) + bytes(1 << 20))
    await tcp.until_ended()


async def agrees_to_what_is_not_utf8(tcp: Tcp) -> None:
    await tcp.send(name_message(MULTISTREAM) + b"\x03\xff\xfe\n")
    await tcp.until_ended()


async def has_no_noise(tcp: Tcp) -> None:
    await tcp.send(name_message(MULTISTREAM) + name_message(b"na"))
    await tcp.until_ended()


async def is_another(tcp: Tcp) -> None:
    await respond(tcp, Identity("another"))


async def signs_with_another_key(tcp: Tcp) -> None:
    await respond(tcp, Identity("listener"), signer=Identity("another"))


async def respond(tcp: Tcp, identity: Identity, *, signer: Identity | None = None) -> None:
    assert await receive_name(tcp.receive) == MULTISTREAM
    await tcp.send(hello(NOISE))
    assert await receive_name(tcp.receive) == NOISE
    noise = Noise(tcp, identity, initiator=False)
    noise.state.read_message(await noise.receive_frame())
    payload = identity.payload(noise.static_public, signer=signer.key_pair if signer else None)
    await noise.send_frame(bytes(noise.state.write_message(payload)))
    await tcp.until_ended()


@pytest.mark.parametrize(
    "play",
    [
        says_nothing,
        hangs_up,
        talks_nonsense,
        names_a_protocol_of_1_tb,
        agrees_to_what_is_not_utf8,
        has_no_noise,
        is_another,
        signs_with_another_key,
    ],
)
async def test_a_listener_that_is_not_who_was_dialled(victim: Network, play: Play) -> None:
    dialled = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        dialled.set()
        with suppress(Ended):
            await play(Tcp(stream))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
        with trio.fail_after(5):
            assert not await adapter.dial(victim._host, Identity("listener").id, [address], timeout_s=1)
        assert dialled.is_set()
        nursery.cancel_scope.cancel()
    assert not victim._host.get_connected_peers()
    assert victim.counters["contained: task"] == 0


# --- answers of the DHT --------------------------------------------------------------------------------------------


def named(count: int, *, signed: bool) -> Message:
    """Peers that do not exist, at addresses where nobody answers."""
    message = Message(type=Message.FIND_NODE)
    for number in range(count):
        peer = message.closerPeers.add(id=Identity(f"named {number}").id.to_bytes())
        peer.addrs.extend(address.to_bytes() for address in addresses(3))
        if signed:
            peer.signedRecord = record(f"named {number}", 3)
    return message


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(encode_uvarint(1 << 40), id="1 TB"),
        pytest.param(encode_varint_prefixed(b"\xff" * 50), id="no protobuf"),
        pytest.param(encode_varint_prefixed(named(1000, signed=False).SerializeToString()), id="1000 peers"),
        pytest.param(encode_varint_prefixed(named(500, signed=False).SerializeToString()), id="500 peers"),
        pytest.param(encode_varint_prefixed(named(100, signed=True).SerializeToString()), id="100 signed records"),
    ],
)
async def test_an_answer_of_the_dht(reply: bytes) -> None:
    """It is heard or not, but nobody named in it is dialled for the routing table's sake, and the lookup ends."""

    async def answer(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        await stream.write(reply)
        await stream.close()

    async with networks(2) as (victim, friend), stranger() as liar:
        liar.host.set_stream_handler(TProtocol(DHT.decode()), answer)
        await liar.dial(victim)
        for one in (victim, friend):
            one.admit([victim.peer_id, friend.peer_id])
        failed_before = victim.counters["dials failed"]
        with trio.fail_after(8):
            await victim._discovery._ask(liar.id, bytes(32))
            await assert_works(victim, friend)
        assert victim.counters["dials failed"] == failed_before
        known = victim._host.get_peerstore()
        assert len(known.peer_ids()) <= Limits().known_addresses_max
        assert known.privkey(peer_of(victim))


NO_ADDRESSES = {
    "no multiaddr": b"\xff\xff",
    "cut short": Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()[:-1],
    "QUIC": Multiaddr("/ip4/127.0.0.1/udp/1/quic-v1").to_bytes(),
    "a text that does not parse back": b"\x36\x03tcp" + Multiaddr("/tcp/1").to_bytes(),
    "relays without end": Multiaddr("/ip4/127.0.0.1/tcp/1" + "/p2p-circuit" * 40).to_bytes(),
}


@pytest.mark.parametrize("address", NO_ADDRESSES.values(), ids=NO_ADDRESSES.keys())
async def test_a_peer_named_with_what_is_no_address_is_not_noted(address: bytes) -> None:
    """As shipped, bytes are kept unlooked at, and whoever makes a text of them to dial them fails."""
    message = Message(type=Message.FIND_NODE)
    message.closerPeers.add(id=Identity("named").id.to_bytes()).addrs.append(address)

    async def answer(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        await stream.write(encode_varint_prefixed(message.SerializeToString()))
        await stream.close()

    async with networks(2) as (victim, friend), stranger() as liar:
        liar.host.set_stream_handler(TProtocol(DHT.decode()), answer)
        await liar.dial(victim)
        with trio.fail_after(8):
            await victim._discovery._ask(liar.id, bytes(32))
            await assert_works(victim, friend)
        assert victim._host.get_peerstore().addrs(Identity("named").id) == []
        assert Identity("named").id not in victim._discovery._found


async def test_a_peer_named_by_an_id_without_end_is_not_noted() -> None:
    """Such an id takes seconds to become text."""
    message = Message(type=Message.FIND_NODE)
    message.closerPeers.add(id=b"\x12" * 47_000).addrs.append(addresses(1)[0].to_bytes())

    async def answer(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        await stream.write(encode_varint_prefixed(message.SerializeToString()))
        await stream.close()

    async with network("victim") as victim, stranger() as liar:
        liar.host.set_stream_handler(TProtocol(DHT.decode()), answer)
        await liar.dial(victim)
        with trio.fail_after(8):
            await victim._discovery._ask(liar.id, bytes(32))
        named = ID(b"\x12" * 47_000)
        assert named not in victim._host.get_peerstore().peer_ids()
        assert named not in victim._discovery._found


async def test_of_a_peers_addresses_those_are_kept_that_can_be_dialled(victim: Network) -> None:
    tcp = Multiaddr("/ip4/192.0.2.1/tcp/1")
    named = [tcp, *(Multiaddr(address) for address in NO_ADDRESSES.values())]
    known = victim._host.get_peerstore()
    known.add_addrs(Identity("mixed").id, named, 60)
    assert known.addrs(Identity("mixed").id) == [tcp]


async def test_peers_that_are_nowhere_make_room_for_those_that_are_not() -> None:
    async with network("victim", limits=Limits(known_peers_max=4)) as victim:
        closed = [Multiaddr("/ip4/127.0.0.1/tcp/1")]
        for number in range(20):
            phantom = Identity(f"phantom {number}").id
            victim._host.get_peerstore().add_addrs(phantom, closed, 60)
            await victim._discovery.meet(phantom)
        victim._discovery.wake()
        with trio.fail_after(10):
            while victim.counters["dials failed"] < 4:
                await trio.testing.wait_all_tasks_blocked()
        async with network("newcomer", victim.addresses) as newcomer:
            with trio.fail_after(10):
                while peer_of(newcomer) not in victim._discovery._found:
                    await trio.testing.wait_all_tasks_blocked()


async def test_an_answer_names_no_more_than_a_bucket_holds() -> None:
    async def answer(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        reply = named(100, signed=False)
        reply.type = Message.GET_PROVIDERS
        reply.providerPeers.extend(reply.closerPeers)
        await stream.write(encode_varint_prefixed(reply.SerializeToString()))
        await stream.close()

    async with network("victim") as victim, stranger() as liar:
        liar.host.set_stream_handler(TProtocol(DHT.decode()), answer)
        await liar.dial(victim)
        asked = await adapter.ask_for_providers(victim._discovery.dht, liar.id, bytes(32), timeout_s=5)
        assert [len(peers) for peers in asked] == [BUCKET_SIZE, BUCKET_SIZE]


async def test_an_answer_that_is_too_long_is_not_heard() -> None:
    """As shipped 4 MB are."""
    reply = named(1000, signed=False)
    assert DHT_MESSAGE_BYTES_MAX < reply.ByteSize() < 2 * DHT_MESSAGE_BYTES_MAX

    async def answer(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        await stream.write(encode_varint_prefixed(reply.SerializeToString()))
        await stream.close()

    async with network("victim") as victim, stranger() as liar:
        liar.host.set_stream_handler(TProtocol(DHT.decode()), answer)
        await liar.dial(victim)
        await victim._discovery._ask(liar.id, bytes(32))
        assert not {Identity(f"named {number}").id for number in range(1000)} & set(victim._discovery._found)
        reply.type = Message.GET_PROVIDERS
        asked = await adapter.ask_for_providers(victim._discovery.dht, liar.id, bytes(32), timeout_s=5)
        assert asked == ([], [])


async def test_a_full_bucket_dials_nobody(victim: Network) -> None:
    """As shipped it pings its oldest peer, at the addresses that somebody gave, while a question waits."""
    dialled = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        dialled.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}")
        [bucket] = victim._discovery.dht.routing_table.buckets
        for number in range(bucket.bucket_size + 1):
            peer = Identity(f"named {number}").id
            victim._host.get_peerstore().add_addrs(peer, [address], 60)
            await bucket.add_peer(PeerInfo(peer, [address]))
        assert bucket.size() == bucket.bucket_size
        assert not dialled.is_set()
        nursery.cancel_scope.cancel()


async def test_provider_records_are_bounded_and_our_own_stay(victim: Network) -> None:
    store = victim._discovery.dht.provider_store
    store.add_provider(b"ours", PeerInfo(peer_of(victim), addresses(1)))
    for number in range(2 * DHT_PROVIDED_KEYS_MAX):
        store.add_provider(b"%d" % number, PeerInfo(Identity().id, addresses(100)))
    assert len(store.providers) == DHT_PROVIDED_KEYS_MAX
    assert b"ours" in store.providers
    assert len(store.get_providers(b"%d" % (2 * DHT_PROVIDED_KEYS_MAX - 1))[0].addrs) <= 8


# --- what is remembered of peers -----------------------------------------------------------------------------------


async def test_a_crowd_of_names_does_not_displace_ourselves_or_members(victim: Network) -> None:
    """As shipped our own key, which has no addresses, is forgotten first, and nothing can be signed any more."""
    known = victim._host.get_peerstore()
    member = Identity("member").id
    known.add_addrs(member, addresses(1), 60)
    victim.admit([member.to_base58().encode()])
    for number in range(Limits().known_addresses_max + 100):
        known.add_addrs(ID(b"\x12\x20" + number.to_bytes(32, "big")), addresses(1), 60)
    assert len(known.peer_ids()) == Limits().known_addresses_max
    assert known.privkey(peer_of(victim))
    assert known.addrs(member) == addresses(1)


async def test_hearsay_does_not_displace_what_a_peer_signed(victim: Network) -> None:
    known = victim._host.get_peerstore()
    envelope, _ = consume_envelope(record("member", 2), "libp2p-peer-record")
    assert known.consume_peer_record(envelope, 60)
    known.add_addrs(Identity("member").id, addresses(100)[50:], 60)
    assert set(known.addrs(Identity("member").id)) == set(addresses(2))


async def test_nobody_signs_for_another(victim: Network) -> None:
    forged = create_signed_peer_record(Identity("member").id, addresses(2), Identity("another").key_pair.private_key)
    known = victim._host.get_peerstore()
    assert not known.consume_peer_record(forged, 60)
    assert Identity("member").id not in known.peer_ids()


async def test_an_older_record_does_not_displace_a_newer_one(victim: Network) -> None:
    known = victim._host.get_peerstore()
    (older, _), (newer, _) = (consume_envelope(record("member", n), "libp2p-peer-record") for n in (1, 2))
    assert known.consume_peer_record(newer, 60)
    assert not known.consume_peer_record(older, 60)
    assert known.addrs(Identity("member").id) == addresses(2)


async def test_nobody_has_more_addresses_than_are_dialled(victim: Network) -> None:
    known = victim._host.get_peerstore()
    known.add_addrs(Identity().id, [*addresses(5_000), Multiaddr("/dns4/" + "a.example" * 20 + "/tcp/1")], 60)
    assert known.addrs(Identity().id) == addresses(5_000)[-Limits().addresses_per_peer_max :]


async def test_a_signed_record_has_no_more_addresses_either(victim: Network) -> None:
    known = victim._host.get_peerstore()
    envelope, _ = consume_envelope(record("member", 100), "libp2p-peer-record")
    assert known.consume_peer_record(envelope, 60)
    assert len(known.addrs(Identity("member").id)) == Limits().addresses_per_peer_max


async def test_who_is_connected_is_not_forgotten() -> None:
    async with networks(2) as (victim, friend):
        known = victim._host.get_peerstore()
        before = known.addrs(peer_of(friend))
        for number in range(Limits().known_addresses_max + 100):
            known.add_addrs(ID(b"\x12\x20" + number.to_bytes(32, "big")), addresses(1), 60)
        assert known.addrs(peer_of(friend)) == before
