"""Keys of other kinds than Ed25519.  The library parses an RSA key before it asks how long it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from Crypto.PublicKey import RSA
from libp2p.crypto import rsa, secp256k1
from libp2p.crypto.keys import KeyPair
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from net.loopback import GOSSIP, TOPIC, assert_works, networks
from p2pdfl.net import Network

from .attacker import YAMUX, Attacker, Ended, hello, receive_name

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]

RSA_PAIR, SECP256K1_PAIR = rsa.create_new_key_pair(2048), secp256k1.create_new_key_pair()
RSA_KEY, RSA_ID = RSA_PAIR.public_key.serialize(), ID.from_pubkey(RSA_PAIR.public_key)
DHT = b"/ipfs/kad/1.0.0"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the RSA keys that are parsed."""
    lengths: list[int] = []
    parse = RSA.import_key

    def noted(data: bytes, *rest: Any) -> Any:
        lengths.append(len(data))
        return parse(data, *rest)

    monkeypatch.setattr(RSA, "import_key", noted)
    return lengths


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Attacker, Network, Network]]:
    """The pair works afterwards."""
    async with networks(2) as (victim, friend), trio.open_nursery() as nursery:
        attacker = Attacker(victim, nursery)
        with trio.fail_after(10):
            yield attacker, victim, friend
        await attacker.close()
        await assert_works(victim, friend)


async def shake_hands(attacker: Attacker, pair: KeyPair) -> None:
    """With a signature that is right."""
    noise = await attacker.noise_begun()
    await noise.first()
    await noise.second()
    await noise.third(noise.identity.payload(noise.static_public, signer=pair, key=pair.public_key.serialize()))
    await noise.send(hello(YAMUX))
    await receive_name(noise.receive)


@pytest.mark.parametrize("pair", [RSA_PAIR, SECP256K1_PAIR], ids=["rsa", "secp256k1"])
async def test_a_peer_has_an_ed25519_key(pair: KeyPair, parsed: list[int]) -> None:
    async with attacked() as (attacker, _, _):
        with pytest.raises(Ended):
            await shake_hands(attacker, pair)
        assert not parsed


async def say_gossip(attacker: Attacker, rpc: rpc_pb2.RPC, count: str) -> None:
    stream = await (await attacker.yamux()).open(GOSSIP)
    await stream.send(encode_varint_prefixed(rpc.SerializeToString()))
    while not attacker.victim.counters[count]:
        await trio.lowlevel.checkpoint()


async def author(attacker: Attacker) -> None:
    made = rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=RSA_ID.to_bytes(), seqno=bytes(8))
    made.signature = RSA_PAIR.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    made.key = RSA_KEY
    await say_gossip(attacker, rpc_pb2.RPC(publish=[made]), "refused: bad gossip signature")


async def signer_of_addresses(attacker: Attacker) -> None:
    record = create_signed_peer_record(RSA_ID, [Multiaddr("/ip4/127.0.0.1/tcp/1")], RSA_PAIR.private_key)
    rpc = rpc_pb2.RPC(senderRecord=record.marshal_envelope())
    await say_gossip(attacker, rpc, "refused: bad address record")


async def value_in_the_dht(attacker: Attacker) -> None:
    key = b"/pk/" + RSA_ID.to_bytes().hex().encode()
    message = Message(type=Message.PUT_VALUE, key=key)
    message.record.key, message.record.value = key, RSA_KEY
    stream = await (await attacker.yamux()).open(DHT)
    await stream.send(encode_varint_prefixed(message.SerializeToString()))
    await stream.until_ended()


async def author_of_a_value_in_the_dht(attacker: Attacker) -> None:
    identity = attacker.victim_id
    key = b"/pk/" + identity.to_bytes().hex().encode()
    public = identity.extract_public_key()
    assert public is not None
    message = Message(type=Message.PUT_VALUE, key=key)
    message.record.key, message.record.value = key, public.serialize()
    message.record.author, message.record.signature = RSA_KEY, bytes(256)
    stream = await (await attacker.yamux()).open(DHT)
    await stream.send(encode_varint_prefixed(message.SerializeToString()))
    await stream.until_ended()


@pytest.mark.parametrize("name", [author, signer_of_addresses, value_in_the_dht, author_of_a_value_in_the_dht])
async def test_nobodys_rsa_key_is_parsed(name: Callable[[Attacker], Awaitable[None]], parsed: list[int]) -> None:
    async with attacked() as (attacker, _, _):
        await name(attacker)
        assert not parsed
