"""Yamux, inside a valid Noise session."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from net.loopback import GOSSIP
from p2pdfl.net.blobs import service
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import STREAMS_PER_CONNECTION_MAX, WINDOW_BYTES_MAX

from .attacker import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    WINDOW_BYTES,
    YAMUX,
    Attacker,
    Ended,
    Identity,
    Stream,
    Yamux,
    hello,
    name_message,
)
from .scene import BLOB_DIGEST, LIMITS, TRAITOR, Attack, Scene
from .test_connections import until_refused

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]

IDENTIFY = b"/ipfs/id/1.0.0"
SOON_S = 2.0
"""A broken rule ends the connection at once, not when a time-out says so; this is for a busy machine."""


async def ends(yamux: Yamux) -> None:
    with trio.fail_after(SOON_S):
        await yamux.until_ended()


async def lives(yamux: Yamux) -> None:
    """The connection still serves."""
    await yamux.open(IDENTIFY)


# --- frames that break a rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param((DATA, 0, 1, 0, b"", 1), id="version 1"),
        pytest.param((9, 0, 1, 0, b"", 0), id="type 9"),
        pytest.param((DATA, 0, 1, 2**32 - 1, b"", 0), id="4 GB for no stream"),
        pytest.param((DATA, SYN, 1, 2**32 - 1, b"", 0), id="4 GB for a new stream"),
        pytest.param((DATA, SYN, 1, WINDOW_BYTES + 1, b"", 0), id="a window and a byte for a new stream"),
        pytest.param((DATA, 0, 7, WINDOW_BYTES_MAX + 1, b"", 0), id="more than any window for no stream"),
        pytest.param((WINDOW, SYN, 0, 0, b"", 0), id="stream 0"),
        pytest.param((WINDOW, SYN, 2, 0, b"", 0), id="a stream with an id of ours"),
        pytest.param((GO_AWAY, 0, 0, 77, b"", 0), id="an unknown reason to go away"),
        pytest.param((GO_AWAY, 0xFFFF, 2**32 - 1, 2**32 - 1, b"", 0), id="a garbled goodbye"),
    ],
)
def test_a_frame_that_ends_the_connection(scene: Scene, frame: tuple[int, int, int, int, bytes, int]) -> None:
    async def send(attacker: Attacker) -> None:
        yamux = await attacker.yamux()
        kind, flags, stream, length, body, version = frame
        await yamux.send_frame(kind, flags, stream, length, body, version=version)
        await ends(yamux)

    scene.run(send)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param((DATA, 0, 77, 5, b"hello"), id="data for no stream"),
        pytest.param((DATA, FIN | RST | ACK, 77, 0, b""), id="the end of no stream"),
        pytest.param((WINDOW, ACK, 78, 2**32 - 1, b""), id="an answer to nothing"),
        pytest.param((WINDOW, 0, 1, 2**32 - 1, b""), id="4 GB of window for no stream"),
        pytest.param((PING, ACK, 0, 12345, b""), id="an answer to no ping"),
        pytest.param((PING, 0, 0, 0, b""), id="a ping that is neither"),
        pytest.param((WINDOW, 0xFF00, 77, 0, b""), id="unknown flags"),
        pytest.param((WINDOW, SYN | FIN, 77, 0, b""), id="a stream that ends as it begins"),
        pytest.param((WINDOW, SYN | RST, 77, 0, b""), id="a stream that is reset as it begins"),
        pytest.param((DATA, SYN | FIN | RST, 77, 5, b"hello"), id="all at once"),
    ],
)
def test_a_frame_that_is_taken_in_good_part(scene: Scene, frame: tuple[int, int, int, int, bytes]) -> None:
    async def send(attacker: Attacker) -> None:
        yamux = await attacker.yamux()
        for _ in range(100):
            kind, flags, stream_id, length, body = frame
            await yamux.send_frame(kind, flags, stream_id, length, body)
            if flags & SYN:
                frame_id = stream_id + 2
                frame_ = (kind, flags, frame_id, length, body)
                await yamux.send_frame(*frame_)
                break
        await lives(yamux)

    scene.run(send)


async def id_used_again(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open()
    await yamux.send_frame(WINDOW, SYN, stream.id, 0)
    await ends(yamux)


async def window_overrun(attacker: Attacker) -> None:
    """As shipped it is logged, and the buffer grows."""
    yamux = await attacker.yamux(Identity(TRAITOR))
    stream = await yamux.open()
    with trio.fail_after(SOON_S):
        await until_refused(lambda data: yamux.send_data(stream.id, data), bytes(1 << 15))


async def window_filled_to_the_last_byte(attacker: Attacker) -> None:
    """It may do that."""
    yamux = await attacker.yamux()
    stream = await yamux.open(IDENTIFY)
    other = await yamux.open()
    await other.send(name_message(b"/multistream/1.0.0") + bytes(WINDOW_BYTES - 20))
    await stream.until_ended()


async def streams_without_number(attacker: Attacker) -> None:
    """600: those over the bound are reset, the others when they agree on no protocol."""
    yamux = await attacker.yamux()
    for number in range(600):
        await yamux.send_frame(WINDOW, SYN, 2 * number + 1, 0)
        if number % 100 == 0:
            await yamux.catch_up()
    assert len(yamux.ended) > 400


async def streams_that_agree_on_nothing(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    streams = [await yamux.open() for _ in range(STREAMS_PER_CONNECTION_MAX)]
    with trio.fail_after(4 * LIMITS.handshake_s):
        for stream in streams:
            await stream.until_ended()
    await lives(yamux)


async def negotiation_that_trickles(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open()

    async def trickle() -> None:
        for byte in name_message(b"/multistream/1.0.0") + name_message(b"/nope") * 20:
            await stream.send(bytes([byte]))
            await trio.sleep(0.05)

    attacker.nursery.start_soon(trickle)
    await stream.until_ended()


async def pings_without_number(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for number in range(600):
        await yamux.send_frame(PING, SYN, 0, number)
        if number % 100 == 0:
            await yamux.catch_up()


async def pings_whose_answers_are_not_read(attacker: Attacker) -> None:
    """Until the victim can write no more; it goes on reading, and closes when nobody takes what it writes."""
    yamux = await attacker.yamux()
    await until_refused(yamux.noise.send, bytes.fromhex("000200010000000000000000") * 2_000)


async def replies_that_are_not_read(attacker: Attacker) -> None:
    """The victim's writing stops; it then closes for silence.  As shipped, not before it has said goodbye."""
    attacker.receive_buffer_bytes = 4096
    yamux = await attacker.yamux(Identity(TRAITOR))
    stream = await yamux.open(service.PROTOCOL)
    await yamux.send_frame(WINDOW, 0, stream.id, 1 << 30)
    await stream.send(len(BLOB_DIGEST).to_bytes(4, "big") + BLOB_DIGEST)
    connections = adapter.swarm_of(attacker.victim._host).connections
    assert Identity(TRAITOR).id in connections
    with trio.fail_after(4 * LIMITS.silent_s):
        while Identity(TRAITOR).id in connections:
            await trio.lowlevel.checkpoint()


async def half_a_header(attacker: Attacker) -> None:
    """It never answers a ping."""
    yamux = await attacker.yamux()
    await yamux.noise.send(b"\x00\x00")
    await yamux.tcp.until_ended()


async def half_a_body(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open()
    await yamux.send_frame(DATA, 0, stream.id, 1000, b"only this")
    await yamux.tcp.until_ended()


async def frame_in_a_thousand_pieces(attacker: Attacker) -> None:
    """As shipped it ends the connection: it gives up after a hundred reads, as if the other side had."""
    identity = Identity("patient")
    yamux = await attacker.yamux(identity)
    await lives(yamux)
    [connection] = adapter.connections_of(attacker.victim._host, identity.id)
    frame = yamux.noise.encrypt(bytes.fromhex("000200010000000000000007") * 86)
    for byte in len(frame).to_bytes(2, "big") + frame:
        heard = adapter.heard_on(connection)
        await yamux.tcp.send(bytes([byte]))
        while adapter.heard_on(connection) == heard:  # so that each is read by itself
            assert not connection.is_closed
            await trio.lowlevel.checkpoint()
    await lives(yamux)


async def data_then_reset(attacker: Attacker) -> None:
    """As shipped each leaves its data behind, for 90 s."""
    yamux = await attacker.yamux()
    for _ in range(100):
        stream = await yamux.open()
        await stream.send(bytes(50_000))
        await stream.reset()
        await yamux.catch_up()
    await lives(yamux)


async def resets_without_number(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    for _ in range(300):
        stream = Stream(yamux, yamux.take_id())
        await yamux.send_frame(WINDOW, SYN, stream.id, 0)
        await stream.reset()
        if stream.id % 100 == 1:
            await yamux.catch_up()
    await lives(yamux)


async def data_after_the_end(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open(IDENTIFY)
    await stream.finish()
    for _ in range(10):
        await stream.send(bytes(1000))
    await lives(yamux)


async def window_that_grows_with_what_is_read(attacker: Attacker) -> None:
    """As shipped up to 16 MB, which a peer may then send unread."""
    identity = Identity("quick")
    yamux = await attacker.yamux(identity)
    stream = await yamux.open(GOSSIP)
    [connection] = adapter.connections_of(attacker.victim._host, identity.id)
    muxed: Any = connection.muxed_conn
    muxed._rtt = 1e3  # so that each update that comes is a quick one
    frame = encode_varint_prefixed(rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(60_000))]).SerializeToString())
    widest = 0
    for _ in range(2 * WINDOW_BYTES_MAX // (4 * len(frame))):
        await stream.send(frame * 4)
        await yamux.catch_up()
        widest = max(widest, yamux.windows[stream.id])
    assert WINDOW_BYTES_MAX // 2 < widest <= WINDOW_BYTES_MAX


async def windows_of_terabytes(attacker: Attacker) -> None:
    yamux = await attacker.yamux()
    stream = await yamux.open(IDENTIFY)
    for _ in range(1_000):
        await yamux.send_frame(WINDOW, 0, stream.id, 2**32 - 1)
    await stream.until_ended()


async def connections_that_come_and_go(attacker: Attacker) -> None:
    for _ in range(20):
        yamux = await attacker.yamux()
        await yamux.tcp.reset()


async def goodbye_as_the_connection_begins(attacker: Attacker) -> None:
    """As shipped, one that ends while the library adds it stays in its table for ever."""
    for steps in range(12):  # so that one of them comes while it is added
        noise = await attacker.noise(Identity(f"stranger {steps}"))
        await noise.send(hello(YAMUX))
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        with suppress(Ended):
            await Yamux(noise).send_frame(GO_AWAY, 0, 0, 0)
        await noise.tcp.until_ended()


async def many_connections_of_one_peer(attacker: Attacker) -> None:
    for _ in range(12):
        await attacker.yamux()


async def gossip_stream_reset_and_opened_again(attacker: Attacker) -> None:
    yamux = await attacker.yamux(Identity(TRAITOR))
    for _ in range(100):
        await (await yamux.open(GOSSIP)).reset()
    await lives(yamux)


@pytest.mark.parametrize(
    "attack",
    [
        id_used_again,
        window_overrun,
        window_filled_to_the_last_byte,
        streams_without_number,
        streams_that_agree_on_nothing,
        negotiation_that_trickles,
        pings_without_number,
        pings_whose_answers_are_not_read,
        replies_that_are_not_read,
        half_a_header,
        half_a_body,
        frame_in_a_thousand_pieces,
        data_then_reset,
        resets_without_number,
        data_after_the_end,
        window_that_grows_with_what_is_read,
        windows_of_terabytes,
        connections_that_come_and_go,
        goodbye_as_the_connection_begins,
        many_connections_of_one_peer,
        gossip_stream_reset_and_opened_again,
    ],
)
def test_yamux(scene: Scene, attack: Attack) -> None:
    scene.run(attack)
