"""A victim and its honest friend, alive over many cases, and what a case must leave as it was."""

from __future__ import annotations

import gc
import queue
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from hashlib import sha256
from typing import Any

import trio
import trio.testing
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux import yamux

from net.loopback import assert_works, network, peer_of, seed
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.rates import Rate

from .attacker import Attacker, Identity

ECHO = "/test/echo/1"
ECHO_BYTES_MAX = 1 << 20
UNLIMITED = Rate(per_s=1e6, burst=1e6)
LIMITS = Limits(
    connections_max=60,
    strangers_max=35,
    handshake_s=1.0,
    handshakes_max=24,
    ping_s=1.5,
    silent_s=4.0,
    serve_s=1.5,
    lookup_s=0.5,
    dht_stream_s=1.0,
    offence_half_life_s=1e-6,
    seen_messages_max=256,
    recent_messages_max=256,
    gossip_messages=UNLIMITED,
    own_messages=UNLIMITED,
    streams=UNLIMITED,
    handshakes=UNLIMITED,
    handshakes_of_members=UNLIMITED,
)
"""Short: a case waits for what it holds open to be cut off.  Little is remembered of gossip: the pair talks all the
time, and what is kept until a bound is reached looks like a leak.  Forgetful: all cases come from one address;
without rates: the pair talks without a pause.  So each bound must hold by itself; rates, and that offenders are
refused, are test_limits' subject."""
TRAITOR = "traitor"
"""The name of an attacker who is an admitted member."""

BLOB = bytes(16 << 20)
BLOB_DIGEST = sha256(BLOB).digest()
"""More than all buffers on the way hold."""
BACK_S = 8.0
PASSING_TASKS = ("p2pdfl.net.peers.discovery.Discovery._lost_everybody_or",)
"""Between two lookups only."""

Attack = Callable[[Attacker], Awaitable[None]]


async def echo(peer: bytes, request: bytes) -> bytes:
    return request


def hold_one(digest: bytes) -> bytes | None:
    return BLOB if digest == BLOB_DIGEST else None


async def exchange(victim: Network, friend: Network) -> None:
    """Gossip both ways, then a request both ways."""
    await assert_works(victim, friend)
    for one, other in ((victim, friend), (friend, victim)):
        reply = await one.request(other.peer_id, ECHO, b"and now?", reply_bytes_max=8, timeout_s=5)
        assert reply == b"and now?"


class Scene:
    """Runs in a thread of its own, so that one pair serves the cases of a whole module."""

    def __init__(self) -> None:
        self.is_whole = True
        """Every case so far left it as it was."""
        self.victim: Network
        self.friend: Network
        self._token: trio.lowlevel.TrioToken
        self._closing: trio.Event
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self, attack: Attack) -> None:
        """The attack, the honest pair at work meanwhile and afterwards, and everything back."""
        self.is_whole = False
        trio.from_thread.run(self._run, attack, trio_token=self._token)
        self.is_whole = True

    async def _run(self, attack: Attack) -> None:
        counters = self.victim.counters.copy()
        try:
            await self._carry_out(attack)
        except BaseException as error:
            error.add_note(f"what the victim counted: {dict(self.victim.counters - counters)}")
            raise

    async def _carry_out(self, attack: Attack) -> None:
        with trio.fail_after(20):
            before = await self._settled()
            async with trio.open_nursery() as nursery:
                attacker = Attacker(self.victim, nursery)
                try:
                    await self._watched(attack, attacker)
                finally:
                    nursery.cancel_scope.cancel()
                    await attacker.close()
            await self._is_back_to(before)
            assert self.victim.counters["contained: task"] == 0

    async def _watched(self, attack: Attack, attacker: Attacker) -> None:
        """The pair works before the attack ends, not only after it."""
        over = trio.Event()

        async def go() -> None:
            await attack(attacker)
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            while not over.is_set():
                await exchange(self.victim, self.friend)
        await exchange(self.victim, self.friend)

    async def _settled(self) -> Counter[str]:
        """Once the pair is connected and nothing moves."""
        await self.victim.wait_connected(1)
        await self.friend.wait_connected(1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        return census(self.victim)

    async def _is_back_to(self, before: Counter[str]) -> None:
        deadline = trio.current_time() + BACK_S
        while more := census(self.victim) - before:
            if trio.current_time() > deadline:
                break
            await trio.sleep(0.02)
        else:
            return
        raise AssertionError(f"not given back: {dict(more)}")

    async def _hold(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._closing = trio.Event()
        async with AsyncExitStack() as stack:
            self.victim = await stack.enter_async_context(network("victim", limits=LIMITS, blob_source=hold_one))
            self.friend = await stack.enter_async_context(network("friend", self.victim.addresses, limits=LIMITS))
            for one in (self.victim, self.friend):
                one.admit([self.victim.peer_id, self.friend.peer_id, Identity(TRAITOR).id.to_base58().encode()])
                one.serve(ECHO, echo, request_bytes_max=ECHO_BYTES_MAX)
            with trio.fail_after(10):
                await self.victim.wait_connected(1)
                await self.friend.wait_connected(1)
            gc.collect()
            gc.freeze()  # what is there now need not be looked through in every case
            self._started.put(None)
            await self._closing.wait()
            gc.unfreeze()

    def _thread(self) -> None:
        try:
            trio.run(self._hold)
        except BaseException as error:
            self._started.put(error)
            raise

    @contextmanager
    def open(self) -> Iterator[Scene]:
        thread = threading.Thread(target=self._thread, name="scene")
        thread.start()
        failure = self._started.get()
        if failure is not None:
            thread.join()
            raise failure
        try:
            yield self
        finally:
            self._token.run_sync_soon(self._closing.set)
            thread.join()


def census(victim: Network) -> Counter[str]:
    """What must be back after an attack: what is open, tasks, and what the node keeps per peer.

    Closed connections are not counted: Pubsub's loop over peers that left holds on to the last one's.
    """
    gc.collect()
    counts: Counter[str] = Counter()
    for thing in gc.get_objects():
        match thing:
            case trio.SocketStream():
                counts["sockets"] += thing.socket.fileno() >= 0
            case SwarmConn() | yamux.Yamux():
                counts[type(thing).__name__] += not thing.is_closed
            case yamux.YamuxStream():
                counts["streams"] += not thing.closed and not thing.conn.is_closed
    counts += tasks()
    counts |= kept_per_peer(victim)
    return counts


def tasks() -> Counter[str]:
    """By name, without what comes and goes by itself."""
    names: Counter[str] = Counter()
    found = [task for task in [trio.lowlevel.current_root_task()] if task is not None]
    while found:
        task = found.pop()
        names[f"task {task.name}"] += not task.name.startswith(PASSING_TASKS)
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


def kept_per_peer(victim: Network) -> Counter[str]:
    gossip, mesh = victim._gossip, victim._gossip.mesh
    swarm = adapter.swarm_of(victim._host)
    tables: dict[str, Any] = {
        "connections": swarm.connections,
        "tags": swarm.tag_store._tags,
        "disconnects": swarm.auto_connector._recent_disconnects,
        "gossip peers": gossip.peers,
        "gossip queues": gossip.peer_queues,
        "gossip streams": gossip._streams,
        "gossip subscriptions": gossip._peer_subscription_count,
        "topics": gossip.peer_topics,
        "mesh protocols": mesh.peer_protocol,
        "mesh backoff": mesh.back_off,
        "served": victim._requests._served,
        "dht streams": victim._discovery.dht_guard._open,
    }
    return Counter({name: len(table) for name, table in tables.items()})


def blocks_and_bytes() -> tuple[int, int]:
    """Python's small objects alive, and the process's resident bytes."""
    gc.collect()
    with open("/proc/self/statm") as status:
        return sys.getallocatedblocks(), int(status.read().split()[1]) * 4096


def containers_of(peer: ID) -> list[str]:
    """What still knows this peer, by the type and size of the container."""
    gc.collect()
    return [
        f"{type(thing).__name__} of {len(thing)}"
        for thing in gc.get_objects()
        if isinstance(thing, dict | set) and peer in thing
    ]


__all__ = [
    "ECHO",
    "LIMITS",
    "TRAITOR",
    "Attack",
    "Scene",
    "blocks_and_bytes",
    "census",
    "containers_of",
    "exchange",
    "peer_of",
    "seed",
]
