"""What gossip costs, with py-libp2p's router as shipped and with ours: every peer a process, all on loopback.

In a phase everybody publishes one message and the phase is over when everybody has heard everybody, or after 20 s.
Processor time is summed over all processes, from before the first phase until 2 s after the last, so what a router
sends afterwards is in it; with --pause, so is all that it does between phases.

Then the reveal: everybody announces a blob at once and fetches everybody else's by digest.

python benchmarks/network.py                     8 peers, a few phases of each size; under a minute on two cores
python benchmarks/network.py --full              8, 16 and 32 peers, 10 phases each; the reveal of 16 x 1 MB; 15 minutes
python benchmarks/network.py --peers 32 --sizes 1024 --phases 5 --ours
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import multiprocessing
import resource
import secrets
import statistics
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import libp2p.pubsub.pubsub as library
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from rich.console import Console
from rich.table import Table

from p2pdfl.net import Network, open_network

TOPIC = "benchmark"
LISTEN = "/ip4/127.0.0.1/tcp/0"
HEADER = struct.Struct("!BIH")
"""What a message is, its phase, its author's number."""
PHASE, REVEAL = 0, 1
PHASE_S_MAX = 20.0
REVEAL_S_MAX = 120.0
CONNECT_S_MAX = 120.0
SETTLE_S = 2.0
"""After connecting, before the first phase and after the last: two heartbeats of the library's router, and the three in
which ours announces a message."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="8, 16 and 32 peers, 10 phases, the reveal of 16 x 1 MB")
    parser.add_argument("--peers", type=int, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 64 << 10], help="bytes of one message")
    parser.add_argument("--phases", type=int)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between phases; 0: as fast as they go")
    parser.add_argument("--ours", action="store_true", help="without the library's router")
    parser.add_argument("--reveal", type=int, metavar="PEERS", help="how many reveal at once; 0: none")
    parser.add_argument("--blob", type=int, default=1 << 20, help="bytes that each reveals")
    options = parser.parse_args()
    peers = options.peers or ([8, 16, 32] if options.full else [8])
    phases = options.phases or (10 if options.full else 5)
    revealing = options.reveal if options.reveal is not None else (16 if options.full else 8)
    console = Console()
    for count in peers:
        table = gossip_table(count)
        measured: dict[str, list[Measured]] = {}
        for name in ["ours"] if options.ours else ["library", "ours"]:
            with network_of(count, name) as fleet:
                measured[name] = [measure(fleet, size, phases, options.pause) for size in options.sizes]
        add_rows(table, options.sizes, measured)
        console.print(table)
    if revealing:
        with network_of(revealing, "ours") as fleet:
            console.print(reveal_table(fleet, options.blob))


# --- the tables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    delivered: float
    """Of all messages to all others, within PHASE_S_MAX."""
    wall_ms: float
    cpu_ms: float
    """Of all processes, per phase."""
    copies: float
    """Received, per delivery."""
    bytes_over_floor: float
    """Sent at the socket by one peer in one phase, over (n-1) messages."""


def gossip_table(count: int) -> Table:
    table = Table(title=f"{count} peers, a process each: one phase, medians", title_justify="left")
    for column in ("message", "router"):
        table.add_column(column)
    for column in ("delivered", "wall, ms", "CPU of all, ms", "copies per delivery", "bytes / floor"):
        table.add_column(column, justify="right")
    return table


def add_rows(table: Table, sizes: list[int], measured: dict[str, list[Measured]]) -> None:
    for at, size in enumerate(sizes):
        for name, results in measured.items():
            one = results[at]
            table.add_row(
                f"{size} B" if name == next(iter(measured)) else "",
                name,
                f"{one.delivered:.1%}",
                f"{one.wall_ms:.0f}",
                f"{one.cpu_ms:.0f}",
                f"{one.copies:.2f}",
                f"{one.bytes_over_floor:.2f}",
            )
        if len(measured) == 2:
            before, after = (results[at] for results in measured.values())
            table.add_row(
                "",
                "[bold]ratio",
                "",
                f"[bold]{before.wall_ms / after.wall_ms:.1f}x",
                f"[bold]{before.cpu_ms / after.cpu_ms:.1f}x",
                f"[bold]{before.copies / after.copies:.1f}x",
                f"[bold]{before.bytes_over_floor / after.bytes_over_floor:.1f}x",
                end_section=True,
            )


def measure(fleet: Fleet, size: int, phases: int, pause_s: float) -> Measured:
    fleet.phase(size)  # not counted: what happens once
    time.sleep(SETTLE_S)
    before = fleet.spent()
    heard: list[int] = []
    walls_s: list[float] = []
    for _ in range(phases):
        start_s = time.perf_counter()
        heard += fleet.phase(size)
        walls_s.append(time.perf_counter() - start_s)
        time.sleep(pause_s)
    time.sleep(SETTLE_S)
    after = fleet.spent()
    count = len(fleet.pipes)
    deliveries = phases * count * (count - 1)
    return Measured(
        delivered=sum(heard) / deliveries,
        wall_ms=statistics.median(walls_s) * 1000,
        cpu_ms=(after.cpu_s - before.cpu_s) / phases * 1000,
        copies=(after.copies - before.copies) / deliveries,
        bytes_over_floor=(after.bytes_sent - before.bytes_sent) / (deliveries * size),
    )


def reveal_table(fleet: Fleet, size: int) -> Table:
    count = len(fleet.pipes)
    before = fleet.spent()
    start_s = time.perf_counter()
    fetched = fleet.reveal(size)
    wall_s = time.perf_counter() - start_s
    after = fleet.spent()
    table = Table(title=f"{count} peers reveal {size / (1 << 20):g} MB each at once", title_justify="left")
    for column in ("fetched", "wall, s", "CPU of all, s", "bytes / floor", "peak RSS before, MB", "peak RSS, MB"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{sum(fetched) / (count * (count - 1)):.1%}",
        f"{wall_s:.1f}",
        f"{after.cpu_s - before.cpu_s:.1f}",
        f"{(after.bytes_sent - before.bytes_sent) / (count * (count - 1) * size):.2f}",
        f"{before.rss_max / (1 << 20):.0f}",
        f"{after.rss_max / (1 << 20):.0f}",
    )
    return table


# --- the processes, seen from the one that measures ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spent:
    cpu_s: float
    copies: int
    bytes_sent: int
    rss_max: int
    """The largest that any one process ever held."""


@dataclass
class Fleet:
    pipes: list[Connection]
    number: int = 0

    def phase(self, size: int) -> list[int]:
        """How many of the others each heard."""
        self.number += 1
        return self._ask("phase", self.number, size)

    def reveal(self, size: int) -> list[int]:
        """How many blobs of others each fetched."""
        return self._ask("reveal", size)

    def spent(self) -> Spent:
        each: list[Spent] = self._ask("spent")
        return Spent(
            cpu_s=sum(one.cpu_s for one in each),
            copies=sum(one.copies for one in each),
            bytes_sent=sum(one.bytes_sent for one in each),
            rss_max=max(one.rss_max for one in each),
        )

    def _ask(self, *question: object) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(question)
        return [pipe.recv() for pipe in self.pipes]


@contextmanager
def network_of(count: int, router: str) -> Iterator[Fleet]:
    """Processes that are all connected to all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["p2pdfl.net", "libp2p.pubsub.gossipsub"])  # else each spends 0.6 s on imports
    pipes, processes = [], []
    addresses: list[str] = []
    try:
        for number in range(count):
            pipe, far = context.Pipe()
            process = context.Process(target=run_peer, args=(far, router, number, count, addresses), daemon=True)
            process.start()
            far.close()
            pipes.append(pipe)
            processes.append(process)
            addresses = [*addresses, pipe.recv()]
        connected = {number: pipe.recv() for number, pipe in enumerate(pipes)}
        lonely = {number: others for number, others in connected.items() if others < count - 1}
        if lonely:
            raise SystemExit(f"not connected to all {count - 1} after {CONNECT_S_MAX:.0f} s: peer -> others {lonely}")
        time.sleep(SETTLE_S)
        yield Fleet(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


# --- one process ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Peer:
    address: str
    connect: Callable[[list[str]], Awaitable[None]]
    connected: Callable[[], int]
    publish: Callable[[bytes], Awaitable[None]]
    receive: Callable[[], Awaitable[bytes]]
    copies: Callable[[], int]
    bytes_sent: Callable[[], int]
    network: Network | None = None


def run_peer(pipe: Connection, router: str, number: int, count: int, addresses: list[str]) -> None:
    blobs: dict[bytes, bytes] = {}
    open_peer = library_peer if router == "library" else functools.partial(our_peer, blobs=blobs)
    trio.run(Session(pipe, number, count, addresses, blobs).run, open_peer)


@dataclass
class Session:
    pipe: Connection
    number: int
    count: int
    addresses: list[str]
    blobs: dict[bytes, bytes]
    _heard: dict[int, set[int]] = field(default_factory=dict)
    """Phase -> whose message of it came."""
    _fetched: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)

    async def run(self, open_peer: Callable[[int, list[str]], AbstractAsyncContextManager[Peer]]) -> None:
        async with open_peer(self.number, self.addresses) as peer, trio.open_nursery() as nursery:
            await self._obey(peer, nursery)

    async def _obey(self, peer: Peer, nursery: trio.Nursery) -> None:
        with suppress(EOFError, OSError):  # the parent has gone
            self.pipe.send(peer.address)
            nursery.start_soon(self._listen, peer, nursery)
            await peer.connect(self.addresses)
            with trio.move_on_after(CONNECT_S_MAX):
                while peer.connected() < self.count - 1:  # noqa: ASYNC110 - the library has no event for it
                    await trio.sleep(0.1)
            self.pipe.send(peer.connected())
            while True:
                await trio.lowlevel.wait_readable(self.pipe.fileno())
                match self.pipe.recv():
                    case ("phase", phase, size):
                        self.pipe.send(await self._phase(peer, phase, size))
                    case ("reveal", size):
                        self.pipe.send(await self._reveal(peer, size))
                    case ("spent",):
                        self.pipe.send(spent(peer))
        nursery.cancel_scope.cancel()

    async def _phase(self, peer: Peer, phase: int, size: int) -> int:
        await peer.publish(HEADER.pack(PHASE, phase, self.number) + secrets.token_bytes(size - HEADER.size))
        with trio.move_on_after(PHASE_S_MAX):
            while len(self._heard.get(phase, ())) < self.count - 1:
                await self._changed.wait()
        return len(self._heard.pop(phase, ()))

    async def _reveal(self, peer: Peer, size: int) -> int:
        blob = secrets.token_bytes(size)
        digest = hashlib.sha256(blob).digest()
        self.blobs[digest] = blob
        assert peer.network is not None
        author = peer.network.peer_id
        await peer.publish(HEADER.pack(REVEAL, size, self.number) + digest + author)
        with trio.move_on_after(REVEAL_S_MAX):
            while self._fetched < self.count - 1:
                await self._changed.wait()
        return self._fetched

    async def _listen(self, peer: Peer, nursery: trio.Nursery) -> None:
        while True:
            data = await peer.receive()
            kind, value, author = HEADER.unpack_from(data)
            if kind == REVEAL:
                digest, holder = data[HEADER.size : HEADER.size + 32], data[HEADER.size + 32 :]
                nursery.start_soon(self._fetch, peer, digest, holder, value)
            else:
                self._heard.setdefault(value, set()).add(author)
            self._change()

    async def _fetch(self, peer: Peer, digest: bytes, author: bytes, size: int) -> None:
        """As a node does: from the author first, then from anybody, and at once for whoever asks next."""
        assert peer.network is not None
        others = sorted(peer.network.connected() - {author}, key=lambda _: secrets.token_bytes(8))
        blob = await peer.network.fetch(digest, [author, *others], bytes_max=size)
        if blob is not None:
            self.blobs[digest] = blob
            self._fetched += 1
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def spent(peer: Peer) -> Spent:
    rss_max = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Spent(cpu_s=time.process_time(), copies=peer.copies(), bytes_sent=peer.bytes_sent(), rss_max=rss_max)


@asynccontextmanager
async def our_peer(number: int, addresses: list[str], *, blobs: dict[bytes, bytes]) -> AsyncIterator[Peer]:
    """The first is the others' only bootstrap."""
    async with open_network(
        key_seed=hashlib.sha256(b"%d" % number).digest(),
        listen=[LISTEN],
        bootstrap=addresses[:1],
        topic=TOPIC,
        blob_source=blobs.get,
    ) as network:

        async def receive() -> bytes:
            return (await network.incoming.receive()).data

        async def connect(addresses: list[str]) -> None:
            pass

        yield Peer(
            address=network.addresses[0],
            connect=connect,
            connected=lambda: len(network.connected()),
            publish=network.publish,
            receive=receive,
            copies=lambda: network.counters["copies_received"],
            bytes_sent=lambda: network.counters["bytes_sent"],
            network=network,
        )


@asynccontextmanager
async def library_peer(number: int, addresses: list[str]) -> AsyncIterator[Peer]:
    """GossipSub 1.1, D = 6, strict signatures, over Noise and Yamux; every limit raised out of the way."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    library.RpcQueue = functools.partial(RpcQueue, max_size=1024, max_message_size=8 << 20)
    library.SUBSCRIPTION_CHANNEL_SIZE = 1024
    copies, bytes_sent = 0, count_bytes_sent()
    key_pair = create_new_key_pair(hashlib.sha256(b"%d" % number).digest())
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE_ID: NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX_ID): Yamux},
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )
    router = GossipSub(
        protocols=[PROTOCOL_ID_V11],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )
    pubsub = library.Pubsub(host, router, strict_signing=True, max_inbound_rpc_size=8 << 20)
    push = pubsub.push_msg

    async def counted(forwarder: ID, message: rpc_pb2.Message) -> None:
        nonlocal copies
        copies += forwarder != host.get_id()
        await push(forwarder, message)

    pubsub.push_msg = counted
    async with (
        host.run([Multiaddr(LISTEN)]),
        background_trio_service(pubsub),
        background_trio_service(router),
    ):
        await pubsub.wait_until_ready()
        subscription = await pubsub.subscribe(TOPIC)

        async def receive() -> bytes:
            while True:
                message = await subscription.get()
                if message.from_id != host.get_id().to_bytes():  # it delivers one's own as well
                    return bytes(message.data)

        async def connect(addresses: list[str]) -> None:
            for address in addresses:
                await host.connect(info_from_p2p_addr(Multiaddr(address)))

        async def publish(data: bytes) -> None:
            await pubsub.publish(TOPIC, data)

        yield Peer(
            address=str(host.get_addrs()[0]),
            connect=connect,
            connected=lambda: len(pubsub.peer_topics.get(TOPIC, ())),
            publish=publish,
            receive=receive,
            copies=lambda: copies,
            bytes_sent=bytes_sent,
        )


def count_bytes_sent() -> Callable[[], int]:
    write = TrioTCPStream.write
    count = 0

    async def counted(stream: TrioTCPStream, data: bytes) -> None:
        nonlocal count
        count += len(data)
        await write(stream, data)

    TrioTCPStream.write = counted
    return lambda: count


if __name__ == "__main__":
    main()
