"""TCP, the negotiation of protocols, and Noise: before the victim knows who is there."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from Crypto.PublicKey import RSA
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.pb import crypto_pb2
from libp2p.utils.varint import encode_uvarint

from net.loopback import network
from p2pdfl.net.limits.bounds import PROTOCOL_NAME_BYTES_MAX, PROTOCOL_PROPOSALS_MAX

from .attacker import (
    MULTISTREAM,
    NOISE,
    YAMUX,
    Attacker,
    Ended,
    Identity,
    Noise,
    Tcp,
    hello,
    name_message,
    receive_name,
)
from .scene import LIMITS, Attack, Scene

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]


# --- TCP -----------------------------------------------------------------------------------------------------------


async def silence(attacker: Attacker) -> None:
    tcp = await attacker.tcp()
    with trio.fail_after(4 * LIMITS.handshake_s):
        await tcp.until_ended()


async def reset_at_once(attacker: Attacker) -> None:
    for _ in range(50):
        await (await attacker.tcp()).reset()


async def half_close(attacker: Attacker) -> None:
    tcp = await attacker.tcp()
    await tcp.stream.send_eof()
    await tcp.until_ended()


async def slow_loris(attacker: Attacker) -> None:
    """Always a little more, so that it is never silent."""
    tcp = await attacker.tcp()
    attacker.nursery.start_soon(trickle, tcp, hello(NOISE) * 10)
    await tcp.until_ended()


async def trickle(tcp: Tcp, data: bytes) -> None:
    try:
        for byte in data:
            await tcp.send(bytes([byte]))
            await trio.sleep(0.05)
    except Ended:
        pass


async def silent_crowd_while_a_newcomer_dials(attacker: Attacker) -> None:
    """As shipped, as many as there are slots keep everybody else out."""
    for _ in range(300):
        await attacker.tcp()
    await newcomer_connects(attacker)


async def flood_of_connections_while_a_newcomer_dials(attacker: Attacker) -> None:
    """Quicker than a handshake takes, from another address: what makes room is the attacker's own."""
    slots = trio.Semaphore(200)

    async def one() -> None:
        async with slots:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", attacker.port, local_address="127.0.0.66") as stream:
                    await stream.receive_some(1)
                    await stream.receive_some(1 << 16)
            except (OSError, trio.BrokenResourceError):
                pass

    async def flood() -> None:
        while True:
            attacker.nursery.start_soon(one)
            async with slots:
                pass

    attacker.nursery.start_soon(flood)
    await newcomer_connects(attacker)


async def newcomer_connects(attacker: Attacker) -> None:
    """At its first attempt."""
    once = replace(LIMITS, redial_s=30.0, redial_s_max=30.0)
    async with network("newcomer", attacker.victim.addresses, limits=once) as newcomer:
        with trio.fail_after(6):
            await newcomer.wait_connected(1)


@pytest.mark.parametrize(
    "attack",
    [
        silence,
        reset_at_once,
        half_close,
        slow_loris,
        silent_crowd_while_a_newcomer_dials,
        flood_of_connections_while_a_newcomer_dials,
    ],
)
def test_tcp(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


# --- multistream-select --------------------------------------------------------------------------------------------

GREETING = name_message(MULTISTREAM)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(encode_uvarint(1 << 40), id="a name of 1 TB"),
        pytest.param(encode_uvarint(PROTOCOL_NAME_BYTES_MAX + 1), id="a name one byte too long"),
        pytest.param(b"\xff" * 50, id="an endless varint"),
        pytest.param(b"\x00", id="an empty name"),
        pytest.param(b"\x04abcd", id="a name without an end"),
        pytest.param(b"\x03\xff\xfe\n", id="a name that is not UTF-8"),
        pytest.param(name_message(b"/multistream/2.0.0"), id="another version"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: you\r\nUser-Agent: a browser that lost its way, it seems\r\n\r\n", id="HTTP"
        ),
        pytest.param(bytes.fromhex("16030100c8010000c40303") + bytes(200), id="TLS"),
        pytest.param(GREETING + b"\x03\xff\xfe\n", id="a proposal that is not UTF-8"),
        pytest.param(GREETING + encode_uvarint(7) + b"/noise!", id="a proposal without an end"),
        pytest.param(GREETING + encode_uvarint(1 << 24), id="a proposal of 16 MB"),
        pytest.param(GREETING + name_message(b"/nope") * 5_000, id="5000 proposals"),
        pytest.param(GREETING + name_message(b"ls") * 5_000, id="5000 times ls"),
    ],
)
def test_multistream(scene: Scene, said: bytes) -> None:
    """It ends the connection, and not only when time is up."""

    async def say(attacker: Attacker) -> None:
        tcp = await attacker.tcp()
        with trio.fail_after(0.9 * LIMITS.handshake_s):
            try:
                await tcp.send(said)
            except Ended:
                return
            await tcp.until_ended()

    scene.run(say)


def test_a_name_of_16_mb_is_not_waited_for(scene: Scene) -> None:
    async def pour(attacker: Attacker) -> None:
        tcp = await attacker.tcp()
        await tcp.send(encode_uvarint(1 << 24))
        with trio.fail_after(0.9 * LIMITS.handshake_s):
            await until_refused(tcp.send, bytes(1 << 16))

    scene.run(pour)


@pytest.mark.parametrize("security", [b"/plaintext/2.0.0", b"/tls/1.0.0", b"/secio/1.0.0"])
def test_another_security_is_not_on_offer(scene: Scene, security: bytes) -> None:
    async def propose(attacker: Attacker) -> None:
        tcp = await attacker.tcp()
        await tcp.send(hello(security))
        assert await receive_name(tcp.receive) == MULTISTREAM
        assert await receive_name(tcp.receive) == b"na"

    scene.run(propose)


def test_an_honest_number_of_proposals_is_heard_out(scene: Scene) -> None:
    async def propose(attacker: Attacker) -> None:
        tcp = await attacker.tcp()
        await tcp.send(GREETING + name_message(b"/nope") * (PROTOCOL_PROPOSALS_MAX - 2) + name_message(NOISE))
        assert await receive_name(tcp.receive) == MULTISTREAM
        for _ in range(PROTOCOL_PROPOSALS_MAX - 2):
            assert await receive_name(tcp.receive) == b"na"
        assert await receive_name(tcp.receive) == NOISE

    scene.run(propose)


async def until_refused(send: Callable[[bytes], Awaitable[None]], piece: bytes) -> None:
    """Sends the same again and again until the victim ends it."""
    with suppress(Ended):
        while True:
            await send(piece)


# --- Noise ---------------------------------------------------------------------------------------------------------


async def up_to(attacker: Attacker, message_count: int) -> Noise:
    noise = await attacker.noise_begun()
    for step in (noise.first, noise.second, noise.third)[:message_count]:
        await step()
    return noise


@pytest.mark.parametrize("message_count", [0, 1, 2, 3])
def test_noise_half_open(scene: Scene, message_count: int) -> None:
    async def stop(attacker: Attacker) -> None:
        await (await up_to(attacker, message_count)).tcp.until_ended()

    scene.run(stop)


@pytest.mark.parametrize("message_count", [0, 1, 2, 3])
def test_noise_broken_off(scene: Scene, message_count: int) -> None:
    async def reset(attacker: Attacker) -> None:
        for _ in range(5):
            await (await up_to(attacker, message_count)).tcp.reset()

    scene.run(reset)


async def frame_that_trickles(attacker: Attacker) -> None:
    noise = await attacker.noise_begun()
    await noise.tcp.send(b"\xff\xff")
    attacker.nursery.start_soon(trickle, noise.tcp, bytes(65535))
    await noise.tcp.until_ended()


async def empty_frame(attacker: Attacker) -> None:
    noise = await attacker.noise_begun()
    await noise.send_frame(b"")
    await noise.tcp.until_ended()


async def first_message_of_64_kb(attacker: Attacker) -> None:
    noise = await attacker.noise_begun()
    await noise.send_frame(os.urandom(65535))
    await noise.receive_frame()
    await noise.tcp.until_ended()


async def key_of_low_order(attacker: Attacker) -> None:
    noise = await attacker.noise_begun()
    await noise.send_frame(bytes(32))
    await noise.tcp.until_ended()


async def third_message_of_noise_only(attacker: Attacker) -> None:
    noise = await up_to(attacker, 2)
    await noise.send_frame(os.urandom(200))
    await noise.tcp.until_ended()


async def third_message_cut_short(attacker: Attacker) -> None:
    noise = await up_to(attacker, 2)
    whole = bytes(noise.state.write_message(noise.identity.payload(noise.static_public)))
    await noise.send_frame(whole[:-1])
    await noise.tcp.until_ended()


async def handshake_replayed(attacker: Attacker) -> None:
    honest = await attacker.noise_begun()
    first = bytes(honest.state.write_message(b""))
    await honest.send_frame(first)
    await honest.second()
    third = bytes(honest.state.write_message(honest.identity.payload(honest.static_public)))
    await honest.send_frame(third)
    replay = await attacker.noise_begun()
    await replay.send_frame(first)
    await replay.receive_frame()
    await replay.send_frame(third)
    await replay.tcp.until_ended()


async def tag_that_is_wrong(attacker: Attacker) -> None:
    noise = await attacker.noise()
    await noise.send_frame(noise.encrypt(hello(YAMUX))[:-1] + b"\x00")
    await noise.tcp.until_ended()


async def frame_replayed(attacker: Attacker) -> None:
    noise = await attacker.noise()
    frame = noise.encrypt(name_message(MULTISTREAM))
    await noise.send_frame(frame)
    await noise.send_frame(frame)
    await noise.tcp.until_ended()


async def frame_without_a_tag(attacker: Attacker) -> None:
    noise = await attacker.noise()
    await noise.send_frame(b"short")
    await noise.tcp.until_ended()


async def muxer_that_is_not_there(attacker: Attacker) -> None:
    noise = await attacker.noise()
    await noise.send(hello(b"/mplex/6.7.0"))
    assert await receive_name(noise.receive) == MULTISTREAM
    assert await receive_name(noise.receive) == b"na"
    await noise.tcp.until_ended()


@pytest.mark.parametrize(
    "attack",
    [
        frame_that_trickles,
        empty_frame,
        first_message_of_64_kb,
        key_of_low_order,
        third_message_of_noise_only,
        third_message_cut_short,
        handshake_replayed,
        tag_that_is_wrong,
        frame_replayed,
        frame_without_a_tag,
        muxer_that_is_not_there,
    ],
)
def test_noise(scene: Scene, attack: Attack) -> None:
    scene.run(attack)


def key(kind: int, data: bytes) -> bytes:
    message = crypto_pb2.PublicKey()
    message.key_type = kind  # type: ignore[assignment]
    message.data = data
    return message.SerializeToString()


ED25519, SECP256K1 = crypto_pb2.Ed25519, crypto_pb2.Secp256k1
UNKNOWN_KIND = b"\x08\x63\x12\x02hi"
HUGE_RSA = key(crypto_pb2.RSA, RSA.construct((2**16383 + 9, 65537), consistency_check=False).export_key("DER"))


def forged(name: str, identity: Identity, static: bytes) -> bytes:
    other = create_new_key_pair(bytes(32))
    payloads: dict[str, Callable[[], bytes]] = {
        "signed with another key": lambda: identity.payload(static, signer=other),
        "signed for another Noise key": lambda: identity.payload(bytes(32)),
        "another's identity key": lambda: identity.payload(static, key=other.public_key.serialize()),
        "no payload": lambda: b"",
        "no protobuf": lambda: b"\xff" * 64,
        "an unknown kind of key": lambda: identity.payload(static, key=UNKNOWN_KIND),
        "an Ed25519 key of two bytes": lambda: identity.payload(static, key=key(ED25519, b"hi")),
        "a secp256k1 key that is no point": lambda: identity.payload(
            static, key=key(SECP256K1, b"\x02" + b"\xff" * 32)
        ),
        "an RSA key of garbage": lambda: identity.payload(static, key=key(crypto_pb2.RSA, os.urandom(2000))),
        "an RSA key of 16384 bits": lambda: identity.payload(static, key=HUGE_RSA),
        "60 KB of extensions": lambda: b"\x22\xe0\xd4\x03" + bytes(60_000),
    }
    return payloads[name]()


@pytest.mark.parametrize(
    "name",
    [
        "signed with another key",
        "signed for another Noise key",
        "another's identity key",
        "no payload",
        "no protobuf",
        "an unknown kind of key",
        "an Ed25519 key of two bytes",
        "a secp256k1 key that is no point",
        "an RSA key of garbage",
        "an RSA key of 16384 bits",
        "60 KB of extensions",
    ],
)
def test_noise_payload(scene: Scene, name: str) -> None:
    async def forge(attacker: Attacker) -> None:
        noise = await up_to(attacker, 2)
        await noise.third(forged(name, noise.identity, noise.static_public))
        with trio.fail_after(0.9 * LIMITS.handshake_s):
            await noise.tcp.until_ended()

    scene.run(forge)
