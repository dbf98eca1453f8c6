"""The wire format does not change silently: docs/wire-vectors.json is what the code computes and a live peer says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed
from net.loopback import GOSSIP, LOOPBACK, Stranger, peer_of, stranger

from p2pdfl.base import params
from p2pdfl.base.codec import decode, decode_payload, encode
from p2pdfl.base.types import Packet
from p2pdfl.crypto.envelope import ENVELOPE_TYPE, POSSESSION_TYPE, recover
from p2pdfl.net import Limits, Network, open_network
from p2pdfl.net.blobs.service import PROTOCOL as PULL
from p2pdfl.net.gossip.pubsub import RPC_OVERHEAD_BYTES
from p2pdfl.net.libp2p import adapter
from p2pdfl.node.checkpoint_sync import CHECKPOINT_PROTOCOL
from p2pdfl.node.resync import RESYNC_PROTOCOL
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest

from . import declared, vectors

COMMITTED = Path(__file__).parents[2] / "docs" / "wire-vectors.json"
DOCUMENT = (COMMITTED.parent / "wire.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def committed() -> Any:
    return json.loads(COMMITTED.read_bytes())


@cache
def computed() -> Any:
    return json.loads(vectors.text())


@pytest.mark.parametrize("part", computed())
def test_the_committed_vectors_are_what_the_code_computes(committed: Any, part: str) -> None:
    assert committed[part] == computed()[part], "a change that is meant: a new version in docs/wire.md, `make vectors`"


def test_nothing_else_is_committed(committed: Any) -> None:
    assert list(committed) == list(computed())


def test_the_vectors_decode_to_what_they_say(committed: Any) -> None:
    for vector in committed["packets"]:
        packet = decode(Packet, bytes.fromhex(vector["bytes"]), bytes_max=1 << 20)
        assert vectors.as_json(packet.envelope) == vector["envelope"]
        assert vectors.as_json(decode_payload(packet)) == vector["payload"]
        assert recover(vectors.DOMAIN, packet.envelope, packet.signature).hex() == vector["signer"]
        assert encode(packet).hex() == vector["bytes"]


def test_the_resync_decodes(committed: Any) -> None:
    for name, kind in (("request", ResyncRequest), ("reply", ResyncReply)):
        data = bytes.fromhex(committed["resync"][name])
        assert len(data) == 4 + int.from_bytes(data[:4], "big")
        decode(kind, data[4:], bytes_max=1 << 20)


@pytest.mark.parametrize("line", declared.lines(), ids=lambda line: line.split()[0])
def test_the_document_declares_every_type_as_the_code_does(line: str) -> None:
    assert line in DOCUMENT.splitlines()


@pytest.mark.parametrize(
    "said",
    [
        f"at most {params.PACKET_BYTES_MAX + RPC_OVERHEAD_BYTES:,} bytes",
        f"data {params.PACKET_BYTES_MAX:,} bytes",
        f"bytes (10), at most {params.UPDATE_INLINE_BYTES_MAX:,} ",
        f"ResyncRequest (at most {params.RESYNC_REQUEST_BYTES_MAX:,} bytes)",
        f"at most {params.RESYNC_FRAME_BYTES_MAX >> 20} MiB",
        f"{params.RESYNC_REPLY_MESSAGES_MAX} packets and about {params.RESYNC_REPLY_BYTES_MAX >> 20} MiB",
        f"may take {Limits().serve_s:.0f} s",
        f"At most {Limits().follower_outbound_messages_max} wait",
        f"{Limits().follower_pause_s} s apart",
        f"`{RESYNC_PROTOCOL}`",
        f"`{CHECKPOINT_PROTOCOL}`",
        f"CheckpointRequest (at most {params.CHECKPOINT_REQUEST_BYTES_MAX} bytes)",
        f"`{PULL}`",
        f"`{GOSSIP}`",
        ENVELOPE_TYPE,
        POSSESSION_TYPE,
    ],
)
def test_the_document_states_the_limits_and_names_of_the_code(said: str) -> None:
    assert said in " ".join(DOCUMENT.split())


@pytest.fixture
async def scene(committed: Any) -> AsyncIterator[tuple[Network, Stranger]]:
    """The first member of the vectors, and somebody who speaks to it byte by byte."""
    body = bytes.fromhex(committed["update"]["bytes"])
    async with (
        open_network(
            key_seed=vectors.PEERS[0].keys.peer_secret,
            listen=[LOOPBACK],
            bootstrap=[],
            topic=committed["task"]["topic"],
            blob_source={bytes.fromhex(committed["update"]["digest"]): body}.get,
        ) as one,
        stranger() as other,
    ):
        yield one, other


@pytest.mark.net
@pytest.mark.slow
async def test_a_live_peer_gossips_what_the_vectors_say(scene: tuple[Network, Stranger], committed: Any) -> None:
    one, other = scene
    expected = committed["gossip"]
    said, heard = trio.open_memory_channel[rpc_pb2.Message](10)

    async def hear(stream: INetStream) -> None:
        data = bytearray()
        while piece := await adapter.read_some(stream, 1 << 16):
            data += piece
            rpc, rest = _split(bytes(data))
            while rpc is not None:
                for message in rpc_pb2.RPC.FromString(rpc).publish:
                    said.send_nowait(message)
                data[:] = rest
                rpc, rest = _split(rest)

    other.host.set_stream_handler(TProtocol(GOSSIP), hear)
    assert await other.dial(one)
    stream = await other.open(one, GOSSIP)
    hello = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=committed["task"]["topic"])])
    await stream.write(encode_varint_prefixed(hello.SerializeToString()))
    with trio.fail_after(10):
        await one.wait_connected(1)
        one._gossip.counter = int(expected["sequence_number"]) - 1
        await one.publish(bytes.fromhex(committed["gossip_kinds"]["packet"]))
        message = await heard.receive()
    assert one.peer_id.decode() == expected["author"]
    assert message.SerializeToString().hex() == expected["message"]
    assert (message.from_id + message.seqno).hex() == expected["message_id"]


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize("case", ["held", "not_held"])
async def test_a_live_peer_answers_a_pull_as_the_vectors_say(
    scene: tuple[Network, Stranger], committed: Any, case: str
) -> None:
    one, other = scene
    assert await other.dial(one)
    stream = await adapter.open_stream(other.host, peer_of(one), PULL)
    await stream.write(bytes.fromhex(committed["pull"][case]["request"]))
    reply = bytes.fromhex(committed["pull"][case]["reply"])
    heard = bytearray()
    with trio.fail_after(10):
        while len(heard) < len(reply) and (piece := await adapter.read_some(stream, 1 << 16)):
            heard += piece
    assert heard == reply


def _split(data: bytes) -> tuple[bytes | None, bytes]:
    """The first frame under its varint length, and what follows; None while it is not whole."""
    length = shift = 0
    for place, byte in enumerate(data):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            end = place + 1 + length
            return (data[place + 1 : end], data[end:]) if len(data) >= end else (None, data)
    return None, data
