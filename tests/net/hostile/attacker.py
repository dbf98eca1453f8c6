"""A peer that speaks every layer byte by byte over a TCP stream, and so can break any rule of any of them.

Each layer is an object over the one below: `Tcp`, `Noise`, `Yamux`, `Stream`.  All are used from one task at a time and
read only when asked to, so that a test can also be the peer that never reads.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID
from libp2p.security.noise.messages import make_data_to_be_signed
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload
from libp2p.utils.varint import encode_uvarint
from noise.connection import Keypair, NoiseConnection

from net.loopback import peer_of, seed
from p2pdfl.net import Network

MULTISTREAM = b"/multistream/1.0.0"
NOISE = b"/noise"
YAMUX = b"/yamux/1.0.0"
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_BYTES = 256 << 10
"""A stream's window at its beginning."""


def name_message(name: bytes) -> bytes:
    """A protocol name as multistream-select sends it."""
    return encode_uvarint(len(name) + 1) + name + b"\n"


def hello(name: bytes) -> bytes:
    return name_message(MULTISTREAM) + name_message(name)


class Ended(Exception):
    """The victim ended the connection or the stream."""


class Tcp:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Ended from error

    async def receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = await self.stream.receive_some(count - len(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Ended from error
            if not piece:
                raise Ended
            data += piece
        return bytes(data)

    async def reset(self) -> None:
        """RST instead of FIN."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.close()

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await self.stream.aclose()

    async def until_ended(self) -> None:
        """Reads until the victim ends the connection."""
        with suppress(Ended):
            while True:
                await self.receive(1)


async def receive_name(receive: Callable[[int], Awaitable[bytes]]) -> bytes:
    length, shift = 0, 0
    while (byte := (await receive(1))[0]) >= 0x80:
        length, shift = length | (byte & 0x7F) << shift, shift + 7
    return (await receive(length | byte << shift))[:-1]


class Identity:
    def __init__(self, name: str = "stranger") -> None:
        self.key_pair: KeyPair = create_new_key_pair(seed(name))
        self.id = ID.from_pubkey(self.key_pair.public_key)
        self.static = seed(name + " noise")

    def payload(self, static_public: bytes, *, signer: KeyPair | None = None, key: bytes | None = None) -> bytes:
        """What the handshake's last message carries: our key, and its signature of our Noise key."""
        signed = make_data_to_be_signed(_Raw(static_public))  # type: ignore[arg-type]
        return NoiseHandshakePayload(
            identity_key=self.key_pair.public_key.serialize() if key is None else key,
            identity_sig=(signer or self.key_pair).private_key.sign(signed),
        ).SerializeToString()


class _Raw:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def to_bytes(self) -> bytes:
        return self._data


class Noise:
    """An XX handshake step by step, then its transport messages."""

    def __init__(self, tcp: Tcp, identity: Identity, *, initiator: bool = True) -> None:
        self.tcp = tcp
        self.identity = identity
        self.state = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        self.state.set_keypair_from_private_bytes(Keypair.STATIC, identity.static)
        self.state.set_as_initiator() if initiator else self.state.set_as_responder()
        self.state.start_handshake()
        self._unread = bytearray()

    @property
    def static_public(self) -> bytes:
        public: bytes = self.state.noise_protocol.keypairs["s"].public_bytes
        return public

    async def send_frame(self, data: bytes) -> None:
        await self.tcp.send(len(data).to_bytes(2, "big") + data)

    async def receive_frame(self) -> bytes:
        return await self.tcp.receive(int.from_bytes(await self.tcp.receive(2), "big"))

    async def first(self) -> None:
        await self.send_frame(bytes(self.state.write_message(b"")))

    async def second(self) -> None:
        self.state.read_message(await self.receive_frame())

    async def third(self, payload: bytes | None = None) -> None:
        payload = self.identity.payload(self.static_public) if payload is None else payload
        await self.send_frame(bytes(self.state.write_message(payload)))

    def encrypt(self, data: bytes) -> bytes:
        return bytes(self.state.encrypt(data))

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 60_000):
            await self.send_frame(self.encrypt(data[start : start + 60_000]))

    async def receive(self, count: int) -> bytes:
        while len(self._unread) < count:
            self._unread += self.state.decrypt(await self.receive_frame())
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data


class Yamux:
    """Frames as they come.  Frames of streams are put aside for their stream; pings are answered while reading."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.tcp = noise.tcp
        self.buffers: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.windows: defaultdict[int, int] = defaultdict(lambda: WINDOW_BYTES)
        """Stream -> how much we may send."""
        self._next_id = 1
        self._ping = 1 << 31

    async def send_frame(
        self, kind: int, flags: int, stream_id: int, length: int, body: bytes = b"", *, version: int = 0
    ) -> None:
        await self.noise.send(struct.pack("!BBHII", version, kind, flags, stream_id, length) + body)

    async def send_data(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        await self.send_frame(DATA, flags, stream_id, len(data), data)

    async def receive_frame(self) -> tuple[int, int, int, int]:
        _, kind, flags, stream_id, length = struct.unpack("!BBHII", await self.noise.receive(12))
        if kind == DATA:
            self.buffers.setdefault(stream_id, bytearray()).extend(await self.noise.receive(length))
        if kind == WINDOW:
            self.windows[stream_id] += length
        if flags & (FIN | RST):
            self.ended.add(stream_id)
        if kind == PING and flags & SYN:
            await self.send_frame(PING, ACK, 0, length)
        if kind == GO_AWAY:
            raise Ended
        return kind, flags, stream_id, length

    async def catch_up(self) -> None:
        """Until the victim has read all that was sent; and it hears answers to its pings."""
        self._ping += 1
        await self.send_frame(PING, SYN, 0, self._ping)
        while True:
            kind, flags, _, value = await self.receive_frame()
            if kind == PING and flags & ACK and value == self._ping:
                return

    def take_id(self) -> int:
        self._next_id += 2
        return self._next_id - 2

    async def open(self, protocol: bytes | str | None = None) -> Stream:
        """Without a protocol the stream stays unnegotiated."""
        stream = Stream(self, self.take_id())
        await self.send_frame(WINDOW, SYN, stream.id, 0)
        if protocol is not None:
            name = protocol.encode() if isinstance(protocol, str) else protocol
            await stream.send(hello(name))
            assert await receive_name(stream.receive) == MULTISTREAM
            if await receive_name(stream.receive) != name:
                raise Ended
        return stream

    async def until_ended(self) -> None:
        with suppress(Ended):
            while True:
                await self.receive_frame()


class Stream:
    def __init__(self, yamux: Yamux, stream_id: int) -> None:
        self.yamux = yamux
        self.id = stream_id

    async def send(self, data: bytes) -> None:
        """As much as the victim's window allows at a time."""
        while True:
            while (window := self.yamux.windows[self.id]) == 0:
                if self.id in self.yamux.ended:
                    raise Ended
                await self.yamux.receive_frame()
            piece, data = data[: min(window, 60_000)], data[min(window, 60_000) :]
            self.yamux.windows[self.id] -= len(piece)
            await self.yamux.send_data(self.id, piece)
            if not data:
                return

    async def receive(self, count: int) -> bytes:
        buffer = self.yamux.buffers.setdefault(self.id, bytearray())
        while len(buffer) < count:
            if self.id in self.yamux.ended:
                raise Ended
            await self.yamux.receive_frame()
        data = bytes(buffer[:count])
        del buffer[:count]
        return data

    async def finish(self) -> None:
        await self.yamux.send_frame(WINDOW, FIN, self.id, 0)

    async def reset(self) -> None:
        await self.yamux.send_frame(WINDOW, RST, self.id, 0)

    async def until_ended(self) -> None:
        with suppress(Ended):
            while True:
                await self.receive(1)


class Attacker:
    """Opens connections to one victim at any layer, and closes them all at its end."""

    def __init__(self, victim: Network, nursery: trio.Nursery) -> None:
        self.victim = victim
        self.nursery = nursery
        """Of the attack: what runs in it goes on while the victim is watched, and is cancelled at its end."""
        self.receive_buffer_bytes: int | None = None
        """Of the connections to come; a small one makes the victim's writing stop soon when we do not read."""
        self.ip = "127.0.0.1"
        """Where the connections to come are from."""
        self._tcps: list[Tcp] = []

    @property
    def port(self) -> int:
        return int(self.victim.addresses[0].split("/")[4])

    @property
    def victim_id(self) -> ID:
        return peer_of(self.victim)

    async def tcp(self) -> Tcp:
        endpoint = trio.socket.socket()
        if self.receive_buffer_bytes is not None:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)
        await endpoint.bind((self.ip, 0))
        await endpoint.connect(("127.0.0.1", self.port))
        made = Tcp(trio.SocketStream(endpoint))
        self._tcps.append(made)
        return made

    async def noise_begun(self, identity: Identity | None = None) -> Noise:
        """The handshake is to begin."""
        tcp = await self.tcp()
        await tcp.send(hello(NOISE))
        assert await receive_name(tcp.receive) == MULTISTREAM
        assert await receive_name(tcp.receive) == NOISE
        return Noise(tcp, identity or Identity())

    async def noise(self, identity: Identity | None = None) -> Noise:
        noise = await self.noise_begun(identity)
        await noise.first()
        await noise.second()
        await noise.third()
        return noise

    async def yamux(self, identity: Identity | None = None) -> Yamux:
        noise = await self.noise(identity)
        await noise.send(hello(YAMUX))
        assert await receive_name(noise.receive) == MULTISTREAM
        assert await receive_name(noise.receive) == YAMUX
        return Yamux(noise)

    async def close(self) -> None:
        for tcp in self._tcps:
            await tcp.close()
