"""Peers that nobody can dial, reached through one that relays.  They listen nowhere, which is what a NAT comes to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg

from net.loopback import TOPIC, Stranger, assert_works, network, networks, peer_of, seed, stranger
from p2pdfl.net import Limits, Network, open_network
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.rates import Rate
from p2pdfl.net.peers.circuit import HOP, STOP
from p2pdfl.net.peers.reachability import ask

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]

QUICK = Limits(redial_s=0.1, redial_s_max=0.3, lookup_s=0.3, defer_dial_s=0.1)
Status = circuit_pb2.Status


@asynccontextmanager
async def hidden(name: str, relay: Network, bootstrap: Sequence[str] = (), **options: Any) -> AsyncIterator[Network]:
    fields: dict[str, Any] = {"listen": [], "limits": QUICK} | options
    async with open_network(
        key_seed=seed(name), bootstrap=bootstrap, topic=TOPIC, via=relay.addresses[:1], **fields
    ) as one:
        yield one


async def until_reserved(relay: Network, *peers: Network) -> None:
    with trio.fail_after(10):
        for peer in peers:
            while (await hop(relay, peer.peer_id, peer)) == Status.NO_RESERVATION:
                await trio.lowlevel.checkpoint()


async def hop(relay: Network, target: bytes, name: object = "asker", kind: Any = circuit_pb2.HopMessage.CONNECT) -> int:
    """What the relay answers a stranger who wants the target."""
    async with stranger(f"hop {name}") as asking:
        await asking.dial(relay)
        stream = await asking.open(relay, HOP)
        peer = circuit_pb2.PeerId(id=ID.from_base58(target.decode()).to_bytes())
        await write_delimited_msg(stream, circuit_pb2.HopMessage(type=kind, peer=peer))
        answer = await read_delimited_msg(stream, circuit_pb2.HopMessage)
        return int(answer.status)


async def test_two_that_nobody_can_dial_meet_through_a_relay() -> None:
    async with (
        network("relay", relay=True, limits=QUICK) as relay,
        hidden("one", relay) as one,
        hidden("other", relay) as other,
    ):
        assert one.addresses == [f"{relay.addresses[0]}/p2p-circuit/p2p/{one.peer_id.decode()}"]
        with trio.fail_after(15):
            await one.wait_connected(2)
            await other.wait_connected(2)
        await assert_works(one, other)
        assert relay.counters["circuits relayed"] >= 1
        assert relay.counters["bytes_relayed"] > 0
        assert one.remote_ips(other.peer_id) == other.remote_ips(one.peer_id) == set()
        # a member behind a relay cannot have others dial the relay's own address
        assert (await ask(one, [other.peer_id], limits=QUICK)).asked == 0


async def test_a_member_that_can_be_dialled_reaches_one_that_cannot_and_moves_a_megabyte() -> None:
    blob = bytes(range(256)) * 4096
    async with (
        network("relay", relay=True, limits=QUICK) as relay,
        hidden("one", relay) as one,
        network("open", relay.addresses, limits=QUICK, blob_source=lambda _: blob) as other,
    ):
        with trio.fail_after(15):
            await one.wait_connected(2)
            await other.wait_connected(2)
        await assert_works(one, other)

        async def echo(peer: bytes, data: bytes) -> bytes:
            return data

        other.serve("/echo", echo, request_bytes_max=len(blob))
        assert await one.request(other.peer_id, "/echo", blob, reply_bytes_max=len(blob), timeout_s=20) == blob


async def test_a_bootstrap_behind_a_relay() -> None:
    async with (
        network("relay", relay=True, limits=QUICK) as relay,
        hidden("one", relay) as one,
        network("other", one.addresses, limits=QUICK) as other,
    ):
        with trio.fail_after(15):
            while one.peer_id not in other.connected():
                await trio.lowlevel.checkpoint()
        await assert_works(one, other)


async def test_the_end_of_one_circuit_leaves_the_others_alone() -> None:
    """As shipped, it ends all circuits to that peer."""
    async with (
        network("relay", relay=True, limits=QUICK) as relay,
        hidden("one", relay) as one,
        hidden("stays", relay) as stays,
    ):
        async with hidden("leaves", relay) as leaves:
            with trio.fail_after(15):
                await one.wait_connected(3)
                await stays.wait_connected(3)
            circuit = adapter.swarm_of(stays._host).connections[peer_of(one)][0]
            assert leaves.peer_id in one.connected()
        with trio.fail_after(10):
            while leaves.peer_id in one.connected():
                await trio.lowlevel.checkpoint()
        assert not circuit.is_closed
        await assert_works(one, stays)


async def test_a_lost_relay_is_used_again_when_it_is_back() -> None:
    async with network("relay", relay=True) as first:
        address = first.addresses[0].rpartition("/p2p/")[0]
    async with AsyncNetworks() as opened:
        relay = await opened.enter("relay", network("relay", listen=address, relay=True, limits=QUICK))
        one = await opened.enter("one", hidden("one", relay))
        other = await opened.enter("other", hidden("other", relay))
        with trio.fail_after(15):
            await one.wait_connected(2)
        await opened.leave("relay")
        with trio.fail_after(15):
            while one.connected() or other.connected():
                await trio.lowlevel.checkpoint()
        await opened.enter("relay", network("relay", listen=address, relay=True, limits=QUICK))
        with trio.fail_after(20):
            await one.wait_connected(2)
            await other.wait_connected(2)


async def call(asking: Stranger, relay: Network, target: Network) -> tuple[INetStream, int]:
    """The circuit, which stays open, and what the relay answered."""
    stream = await asking.open(relay, HOP)
    peer = circuit_pb2.PeerId(id=peer_of(target).to_bytes())
    await write_delimited_msg(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.CONNECT, peer=peer))
    return stream, int((await read_delimited_msg(stream, circuit_pb2.HopMessage)).status)


async def test_one_peer_leaves_the_others_their_circuits() -> None:
    patient = replace(QUICK, handshake_s=60.0)
    async with (
        network("relay", relay=True, limits=patient) as relay,
        hidden("one", relay, limits=patient) as one,
        stranger("greedy") as greedy,
        stranger("modest") as modest,
    ):
        await until_reserved(relay, one)
        await greedy.dial(relay)
        await modest.dial(relay)
        most = patient.connections_per_peer_max
        answers = [(await call(greedy, relay, one))[1] for _ in range(most + 2)]
        assert answers == [Status.OK] * most + [Status.RESOURCE_LIMIT_EXCEEDED] * 2
        assert (await call(modest, relay, one))[1] == Status.OK


async def test_circuits_that_are_opened_and_dropped_have_a_rate() -> None:
    """Each costs the peer behind the relay a handshake."""
    limits = replace(QUICK, relay_connects=Rate(per_s=1e-3, burst=2))
    async with (
        network("relay", relay=True, limits=limits) as relay,
        hidden("one", relay) as one,
        stranger("restless") as restless,
        stranger("other") as other,
    ):
        await until_reserved(relay, one)
        await restless.dial(relay)
        await other.dial(relay)
        answers = []
        for _ in range(3):
            stream, answer = await call(restless, relay, one)
            await adapter.reset_quietly(stream)
            answers.append(answer)
        assert answers == [Status.OK, Status.OK, Status.RESOURCE_LIMIT_EXCEEDED]
        assert (await call(other, relay, one))[1] == Status.OK


async def test_a_relay_is_not_blamed_for_circuits_opened_and_dropped_by_many() -> None:
    """Each below what a peer may open, and together above it."""
    limits = replace(QUICK, streams=Rate(per_s=1e-3, burst=40))
    async with (
        network("relay", relay=True, limits=limits) as relay,
        hidden("one", relay, limits=limits) as one,
        AsyncExitStack() as strangers,
    ):
        await until_reserved(relay, one)
        for number in range(5):
            asking = await strangers.enter_async_context(stranger(f"stranger {number}"))
            await asking.dial(relay)
            for _ in range(10):
                await adapter.reset_quietly((await call(asking, relay, one))[0])
        assert relay.counters["circuits relayed"] > 10
        assert not [name for name in one.counters if name.startswith("offence")]
        await assert_works(relay, one)


async def test_a_relay_is_not_blamed_for_many_who_dial_at_once() -> None:
    limits = replace(QUICK, negotiations_per_peer_max=4)
    async with (
        network("relay", relay=True, limits=limits) as relay,
        hidden("one", relay, limits=limits) as one,
        AsyncExitStack() as strangers,
    ):
        await until_reserved(relay, one)
        asking = [await strangers.enter_async_context(stranger(f"stranger {number}")) for number in range(4)]
        answers: list[int] = []

        async def ask_once(one_asking: Stranger) -> None:
            answers.append((await call(one_asking, relay, one))[1])

        for each in asking:
            await each.dial(relay)
        async with trio.open_nursery() as nursery:
            for each in asking * 3:
                nursery.start_soon(ask_once, each)
        assert answers == [Status.OK] * 12
        assert not [name for name in one.counters if name.startswith("offence")]


async def test_who_does_not_relay_says_so() -> None:
    async with network("plain") as plain, stranger() as asking:
        await asking.dial(plain)
        with pytest.raises(StreamFailure):
            await asking.open(plain, HOP)


async def test_a_relay_serves_members_only_once_they_are_known() -> None:
    async with network("relay", relay=True) as relay:
        me = relay.peer_id
        assert await hop(relay, me, kind=circuit_pb2.HopMessage.RESERVE) == Status.OK
        relay.admit([])
        assert await hop(relay, me, kind=circuit_pb2.HopMessage.RESERVE) == Status.PERMISSION_DENIED
        assert await hop(relay, me) == Status.PERMISSION_DENIED


async def test_a_reservation_is_for_who_asks_whoever_is_named() -> None:
    """As shipped, one stranger reserves for as many peers as he can name."""
    async with network("relay", relay=True, limits=Limits(relay_reservations_max=1)) as relay, network("v") as victim:
        for _ in range(3):
            assert await hop(relay, victim.peer_id, "same", circuit_pb2.HopMessage.RESERVE) == Status.OK
        assert await hop(relay, victim.peer_id, "other") == Status.NO_RESERVATION
        assert await hop(relay, victim.peer_id, "other", circuit_pb2.HopMessage.RESERVE) == Status.RESERVATION_REFUSED


async def test_circuits_are_bounded_in_number() -> None:
    limits = Limits(relay_circuits_per_peer_max=0)
    async with network("relay", relay=True, limits=limits) as relay, hidden("one", relay) as one:
        await until_reserved(relay, one)
        assert await hop(relay, one.peer_id, "other") == Status.RESOURCE_LIMIT_EXCEEDED


@pytest.mark.parametrize("limits", [Limits(relay_circuit_s=0.3), Limits(relay_circuit_bytes_max=2_000)])
async def test_circuits_are_bounded_in_time_and_bytes(limits: Limits) -> None:
    """An idle one too; as shipped, only one that is read from ever ends."""
    async with network("relay", relay=True, limits=limits) as relay, hidden("one", relay) as one, stranger() as asking:
        await until_reserved(relay, one)
        await asking.dial(relay)
        stream, answer = await call(asking, relay, one)
        assert answer == Status.OK
        with trio.fail_after(10):
            if limits.relay_circuit_bytes_max < 1 << 30:
                await stream.write(bytes(2_001))
            while await adapter.read_some(stream, 1 << 16):
                pass
        assert relay.counters["bytes_relayed"] < 2_000


async def test_circuits_come_from_chosen_relays_only() -> None:
    async with (
        network("relay", relay=True) as relay,
        hidden("one", relay, listen=["/ip4/127.0.0.1/tcp/0"]) as one,
        stranger() as asking,
    ):
        await asking.dial(one)
        # it may be gone before or after both have agreed on the protocol
        with trio.fail_after(5), suppress(StreamFailure):
            assert await adapter.read_some(await asking.open(one, STOP), 100) == b""


async def test_streams_that_ask_a_relay_for_nothing_are_bounded() -> None:
    limits = Limits(relay_circuits_per_peer_max=1, relay_asks_per_peer_max=1)
    async with networks(2, relay=True, limits=limits) as (relay, friend), stranger() as asking:
        await asking.dial(relay)
        with trio.fail_after(10):
            for _ in range(8):
                with suppress(StreamFailure):
                    await asking.open(relay, HOP)
            while relay.counters["refused: too many relay requests of a peer"] < 6:
                await trio.lowlevel.checkpoint()
        await assert_works(relay, friend)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 20, b"\x05\x08\x07\x12\x01\x00", b"\x02\x08\x02", b"\xff\xff\xff\xff\x0f"]
)
async def test_a_relay_takes_nonsense_for_what_it_is(data: bytes) -> None:
    async with networks(2, relay=True, limits=Limits(relay_ask_s=0.3)) as (relay, friend), stranger() as asking:
        await asking.dial(relay)
        stream = await asking.open(relay, HOP)
        if data:
            await stream.write(data)
        with trio.fail_after(5):
            while await adapter.read_some(stream, 1 << 16):
                pass
        await assert_works(relay, friend)


class AsyncNetworks:
    """Opened and closed in any order."""

    async def __aenter__(self) -> AsyncNetworks:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._leaving: dict[str, tuple[trio.Event, trio.Event]] = {}
        return self

    async def enter(self, name: str, opening: Any) -> Network:
        async def hold(*, task_status: Any) -> None:
            async with opening as one:
                task_status.started(one)
                await leaving.wait()
            left.set()

        leaving, left = self._leaving[name] = trio.Event(), trio.Event()
        found: Network = await self._nursery.start(hold)
        return found

    async def leave(self, name: str) -> None:
        leaving, left = self._leaving[name]
        leaving.set()
        await left.wait()

    async def __aexit__(self, *error: Any) -> bool | None:
        for leaving, _ in self._leaving.values():
            leaving.set()
        return await self._manager.__aexit__(*error)
