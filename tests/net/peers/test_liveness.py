"""Who is gone is noticed, who is busy is kept, and who comes back is found again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.abc import INetConn, INetStream
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from net.hostile.attacker import PING, Attacker, Identity, Tcp
from net.loopback import assert_works, network, networks, peer_of, stranger
from net.peers.test_circuit import call, hidden, until_reserved
from net.peers.test_discovery import free_port
from net.processes import PeerProcess, peer_process
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter, frames, tcp

pytestmark = [pytest.mark.net, pytest.mark.slow]

NOTICED_S = 10.0
"""What is promised of a peer that is stopped, or whose cable is pulled."""
RECOVERED_S = 30.0
QUICK = Limits(look_s=0.02, ping_s=0.1, silent_s=0.4)


@pytest.fixture
async def scene() -> AsyncIterator[tuple[Network, PeerProcess]]:
    """A network here and one in a process of its own, connected."""
    async with network("here") as here, peer_process("there", here.addresses) as there:
        with trio.fail_after(10):
            await here.wait_connected(1)
            await there.wait_connected(1)
        yield here, there


async def lost(here: Network) -> None:
    while here.connected():
        await here._gossip.changed.wait()


async def assert_heard(here: Network, there: PeerProcess, text: str) -> None:
    with trio.fail_after(10):
        await here.publish(text.encode())
        await there.wait_heard(text)


async def test_a_stopped_peer_is_noticed_and_found_again(scene: tuple[Network, PeerProcess]) -> None:
    here, there = scene
    there.stop()
    with trio.fail_after(NOTICED_S):
        await lost(here)
    assert here.counters["connections closed as silent"] == 1
    there.go_on()
    with trio.fail_after(RECOVERED_S):
        await here.wait_connected(1)
        await there.wait_connected(1)
    await assert_heard(here, there, "again")


async def test_a_stopped_peer_is_noticed_while_much_is_being_sent_to_it(scene: tuple[Network, PeerProcess]) -> None:
    here, there = scene
    there.stop()
    for _ in range(100):  # beyond what the socket takes, so that a farewell would wait for ever
        await here.publish(bytes(Limits().message_bytes_max))
    with trio.fail_after(NOTICED_S):
        await lost(here)
    while adapter.swarm_of(here._host).connections:
        await trio.lowlevel.checkpoint()


def socket_of(connection: INetConn) -> Any:
    counted = tcp.socket_of(connection.muxed_conn)
    assert counted is not None
    return counted.stream.socket


@pytest.mark.parametrize("behind_another", [True, False])
async def test_a_goodbye_to_a_peer_that_does_not_read_is_not_waited_for(behind_another: bool) -> None:
    """It waits behind another frame, or is the one that finds no room.  As shipped, for ever."""
    async with peer_process("there") as there, stranger() as one, trio.open_nursery() as nursery:
        address = Multiaddr(there.addresses[0])
        assert await adapter.dial(one.host, ID.from_base58(address.value_for_protocol("p2p")), [address], timeout_s=5)
        [connection] = adapter.connections_of(one.host)
        there.stop()
        try:
            await fill(socket_of(connection))
            if behind_another:
                nursery.start_soon(adapter.ping, connection)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                await connection.close()
        finally:
            there.go_on()


async def test_who_takes_no_byte_off_the_wire_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_S", 0.1)
    async with peer_process("there") as there, stranger() as one:
        address = Multiaddr(there.addresses[0])
        assert await adapter.dial(one.host, ID.from_base58(address.value_for_protocol("p2p")), [address], timeout_s=5)
        [connection] = adapter.connections_of(one.host)
        there.stop()
        try:
            with suppress(OSError):  # closed already, where something of the library's own was to be written meanwhile
                await fill(socket_of(connection))
            with trio.move_on_after(5):
                await adapter.ping(connection)
                while not connection.is_closed:
                    await trio.lowlevel.checkpoint()
            assert connection.is_closed
        finally:
            there.go_on()


async def fill(socket: trio.socket.SocketType) -> None:
    """To the last byte, also after the system has made what room it can, for which it takes its time."""
    written = 1
    while written:
        written = 0
        with suppress(BlockingIOError):
            while True:
                written += os.write(socket.fileno(), bytes(1 << 12))
        await trio.testing.wait_all_tasks_blocked(0.5)


async def test_a_killed_peer_is_noticed_and_its_successor_found() -> None:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with network("here") as here:
        for _ in range(2):
            async with peer_process("there", here.addresses, listen=listen) as there:
                with trio.fail_after(RECOVERED_S):
                    await here.wait_connected(1)
                    await there.wait_connected(1)
                await assert_heard(here, there, "hello")
                await there.kill()
                with trio.fail_after(NOTICED_S):
                    await lost(here)


async def test_a_peer_that_is_busy_for_three_seconds_is_kept(scene: tuple[Network, PeerProcess]) -> None:
    here, there = scene
    there.stop()
    await trio.sleep(3)
    there.go_on()
    await assert_heard(here, there, "still there")
    assert here.counters["connections closed as silent"] == 0
    assert here.counters["dials"] <= 1


async def test_who_was_busy_itself_calls_nobody_silent() -> None:
    async with networks(2, limits=QUICK) as (one, other):
        time.sleep(2 * QUICK.silent_s)  # noqa: ASYNC251 - the loop is to stand still
        sent = one.counters["pings_sent"] + other.counters["pings_sent"]
        with trio.fail_after(5):
            while one.counters["pings_sent"] + other.counters["pings_sent"] < sent + 5:
                await trio.lowlevel.checkpoint()
        assert one.counters["connections closed as silent"] == 0
        assert other.counters["connections closed as silent"] == 0


async def test_one_ping_serves_both_sides() -> None:
    async with networks(2, limits=QUICK) as (one, other):
        begun = trio.current_time()
        with trio.fail_after(10):
            while one.counters["pings_sent"] + other.counters["pings_sent"] < 20:
                await trio.lowlevel.checkpoint()
        # each alone would send one per ping_s
        assert trio.current_time() - begun > 20 * QUICK.ping_s / 2


class ThroughRelay(Attacker):
    def __init__(self, circuit: INetStream, victim: Network, nursery: trio.Nursery) -> None:
        super().__init__(victim, nursery)
        self._circuit = circuit

    async def tcp(self) -> Tcp:
        return Through(self._circuit)


class Through(Tcp):
    def __init__(self, circuit: INetStream) -> None:
        self._circuit = circuit

    async def send(self, data: bytes) -> None:
        await self._circuit.write(data)

    async def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += await self._circuit.read(count - len(data))
        return data


async def test_whatever_comes_through_a_relay_is_a_sign_of_life_and_an_own_ping_is_none() -> None:
    """Who sends much through a slow line has pongs wait behind it; and no answer is silence."""
    patient = Limits(ping_s=100, silent_s=300)
    async with (
        network("relay", relay=True) as relay,
        hidden("one", relay, limits=patient) as one,
        stranger() as asking,
        trio.open_nursery() as nursery,
    ):
        await until_reserved(relay, one)
        await asking.dial(relay)
        circuit, _ = await call(asking, relay, one)
        name = Identity("other end")
        with trio.fail_after(10):
            other = await ThroughRelay(circuit, one, nursery).yamux(name)
            while not (found := adapter.connections_of(one._host, name.id)):
                await trio.lowlevel.checkpoint()
            [connection] = found

            async def heard(before: int) -> int:
                while (now := adapter.heard_on(connection)) == before:
                    await trio.lowlevel.checkpoint()
                return now

            before = adapter.heard_on(connection)
            await other.send_data(77, b"for no stream, but it came")
            before = await heard(before)
            await adapter.ping(connection)
            while (await other.receive_frame())[0] != PING:
                pass
            before = await heard(before)
        await adapter.ping(connection)
        assert adapter.heard_on(connection) == before


async def test_a_member_that_does_not_follow_the_topic_is_dialled_anew() -> None:
    limits = Limits(deaf_s=0.2)
    async with networks(2, limits=limits) as (one, other):
        one.admit([other.peer_id])
        one._gossip.peer_topics.clear()  # as if it had never said that it follows the topic
        one._gossip.announce_change()
        assert not one.connected()
        with trio.fail_after(10):
            await one.wait_connected(1)
        assert one.counters["connections closed as deaf"] == 1


async def test_who_comes_again_is_given_time_to_say_hello_again() -> None:
    """Each look of a member's finds another connection of a peer that never speaks long enough."""
    limits = Limits(deaf_s=0.4)
    async with networks(1, limits=limits) as (one,), stranger() as quiet:
        one.admit([quiet.id.to_base58().encode()])
        end_s = trio.current_time() + 4 * limits.deaf_s
        while trio.current_time() < end_s:
            await quiet.dial(one)
            await trio.sleep(limits.deaf_s / 2)  # as long as it stays
            for connection in adapter.connections_of(quiet.host):
                await adapter.abort(connection)
        assert one.counters["connections closed as deaf"] == 0


async def test_gossip_survives_the_end_of_one_of_two_connections() -> None:
    """As shipped its streams stay on the one that ended, and what is said next is lost."""
    async with networks(2) as (one, other):
        [first] = adapter.connections_of(one._host, peer_of(other))
        await adapter.swarm_of(one._host).dial_addr(Multiaddr(other.addresses[0]), peer_of(other))
        await adapter.abort(first)
        with trio.fail_after(10):
            while len(adapter.connections_of(other._host)) > 1:
                await trio.lowlevel.checkpoint()
            for here, there in ((one, other), (other, one)):
                while (stream := here._gossip.peers.get(peer_of(there))) is None or stream.muxed_conn.is_closed:
                    await here._gossip.changed.wait()
            await one.wait_connected(1)
            await other.wait_connected(1)
        await assert_works(one, other)
        assert one.counters["connections closed as deaf"] == 0


def has_namespaces() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None and run("ip netns list").returncode == 0


def run(command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command.split(), capture_output=True, check=False)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    left, right = f"p2pdfl{os.getpid()}l", f"p2pdfl{os.getpid()}r"
    commands = [
        f"ip netns add {left}",
        f"ip netns add {right}",
        f"ip -n {left} link add eth0 type veth peer name eth0 netns {right}",
        *(f"ip -n {name} addr add 10.9.8.{number}/24 dev eth0" for number, name in ((1, left), (2, right))),
        *(f"ip -n {name} link set {device} up" for name in (left, right) for device in ("lo", "eth0")),
    ]
    try:
        for command in commands:
            done = run(command)
            if done.returncode:
                pytest.skip(f"{command}: {done.stderr.decode().strip()}")
        yield left, right
    finally:
        for name in (left, right):
            run(f"ip netns del {name}")


@pytest.mark.skipif(not has_namespaces(), reason="needs root and ip: the peers live in network namespaces")
@pytest.mark.long
async def test_a_pulled_cable_is_noticed_on_both_sides_and_healed_when_it_is_back(cable: tuple[str, str]) -> None:
    left, right = cable
    async with (
        peer_process("left", listen="/ip4/10.9.8.1/tcp/4001", namespace=left) as one,
        peer_process("right", one.addresses, listen="/ip4/10.9.8.2/tcp/4001", namespace=right) as other,
    ):
        with trio.fail_after(10):
            await one.wait_connected(1)
            await other.wait_connected(1)
        for _ in range(2):
            run(f"ip -n {left} link set eth0 down")
            with trio.fail_after(NOTICED_S):
                await one.wait_connected(0)
                await other.wait_connected(0)
            run(f"ip -n {left} link set eth0 up")
            with trio.fail_after(RECOVERED_S):
                await one.wait_connected(1)
                await other.wait_connected(1)
        await one.publish("healed")
        with trio.fail_after(10):
            await other.wait_heard("healed")
