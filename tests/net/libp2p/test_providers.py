"""Provider records of the task, and what strangers may store with us."""

from __future__ import annotations

import pytest
import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from net.loopback import Stranger, network, networks, peer_of, stranger, until_ended
from net.peers.test_address_book import peer
from p2pdfl.net import Limits, Network
from p2pdfl.net.limits.bounds import DHT_PROVIDED_KEYS_MAX, DHT_PROVIDER_ADDRESSES_MAX

pytestmark = [pytest.mark.net, pytest.mark.slow]

ADDRESS = Multiaddr("/ip4/192.0.2.1/tcp/1")


def held(one: Network, key: bytes) -> set[ID]:
    return {info.peer_id for info in one._discovery.dht.provider_store.get_providers(key)}


async def test_peers_of_the_task_leave_records_of_it_and_find_each_other_by_them() -> None:
    limits = Limits(provide_first_s=0.1, provide_s=0.5)
    async with networks(3, limits=limits) as peers:
        key = peers[0]._discovery._task_key
        with trio.fail_after(20):
            while any(held(one, key) < {peer_of(other) for other in peers} - {peer_of(one)} for one in peers):
                await trio.lowlevel.checkpoint()
        async with network("late", peers[0].addresses, limits=limits) as late:
            with trio.fail_after(20):
                await late.wait_connected(1)
                providers = await late._discovery._ask_for_providers()
            assert providers
            assert set(late._discovery._found) >= {peer_of(one) for one in peers}


async def test_strangers_records_are_bounded_and_never_displace_the_tasks() -> None:
    async with network("one") as one:
        store, key = one._discovery.dht.provider_store, one._discovery._task_key
        for provider in (peer_of(one), peer(0)):
            store.add_provider(key, PeerInfo(provider, [ADDRESS]))
        for number in range(2 * DHT_PROVIDED_KEYS_MAX):
            store.add_provider(b"%d" % number, PeerInfo(peer(1), [ADDRESS] * 100))
        assert len(store.providers) == DHT_PROVIDED_KEYS_MAX
        assert held(one, key) >= {peer(0)}
        assert len(store.get_providers(b"%d" % number)[0].addrs) == DHT_PROVIDER_ADDRESSES_MAX


async def send(attacker: Stranger, victim: Network, message: Message) -> None:
    stream = await attacker.open(victim, PROTOCOL_ID)
    await stream.write(encode_varint_prefixed(message.SerializeToString()))
    with trio.move_on_after(1):
        await until_ended(stream)


async def test_nobody_can_store_a_value() -> None:
    async with network("one") as one, stranger() as attacker:
        assert await attacker.dial(one)
        for key in (b"anything", b"/pk/anything", b"/ipns/anything"):
            record = Record(key=key, value=bytes(1000))
            await send(attacker, one, Message(type=Message.MessageType.PUT_VALUE, key=key, record=record))
        assert one._discovery.dht.value_store.size() == 0


async def test_a_record_for_somebody_else_is_not_taken() -> None:
    async with network("one") as one, stranger() as attacker:
        assert await attacker.dial(one)
        key = one._discovery._task_key
        for provider in (peer(5), attacker.id):
            message = Message(type=Message.MessageType.ADD_PROVIDER, key=key)
            message.providerPeers.add(id=provider.to_bytes(), addrs=[ADDRESS.to_bytes()])
            await send(attacker, one, message)
        with trio.fail_after(5):
            while not held(one, key):
                await trio.lowlevel.checkpoint()
        assert held(one, key) == {attacker.id}
