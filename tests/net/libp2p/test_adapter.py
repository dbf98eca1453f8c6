"""The adapter's own promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE
from libp2p.tools.anyio_service import Service
from multiaddr import Multiaddr
from trio.testing import MockClock

from net.loopback import assert_works, network, networks, peer_of, seed, stranger
from net.peers.test_address_book import peer
from net.peers.test_discovery import free_port
from p2pdfl.net import Limits, Network
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import STREAMS_PER_CONNECTION_MAX


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LIBP2P_VERSION", "0.8.2")
    with pytest.raises(adapter.UnsupportedLibp2p, match="is installed"):
        adapter.create_host(seed("one"), limits=Limits(), counters=Counter(), announce=[])


def test_the_installed_version_is_the_one_the_repairs_are_for() -> None:
    adapter.check_version()


class Failing(Service):
    """One task that fails once, and one that the service cannot do without, which fails at first."""

    def __init__(self) -> None:
        self.attempts = 0
        self.recovered = trio.Event()

    async def run(self) -> None:
        self.manager.run_task(self.fail)
        self.manager.run_daemon_task(self.fail_at_first)
        await self.manager.wait_finished()

    async def fail(self) -> None:
        raise RuntimeError("remote-triggered")

    async def fail_at_first(self) -> None:
        self.attempts += 1
        if self.attempts == 1:
            raise RuntimeError("remote-triggered")
        self.recovered.set()
        await trio.sleep_forever()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_a_failing_task_ends_itself_and_not_its_service() -> None:
    service, counters = Failing(), Counter[str]()
    async with adapter.running(service, counters):
        with trio.fail_after(5):
            await service.recovered.wait()
        assert service.manager.is_running
    assert counters["contained: task"] == 2


class Relapsing(Service):
    """A task that fails often, runs well for long, and fails again."""

    def __init__(self) -> None:
        self.began_s: list[float] = []
        self.recovered = trio.Event()

    async def run(self) -> None:
        self.manager.run_daemon_task(self.fail)
        await self.manager.wait_finished()

    async def fail(self) -> None:
        self.began_s.append(trio.current_time())
        if len(self.began_s) == 11:
            self.recovered.set()
            await trio.sleep_forever()
        if len(self.began_s) == 10:
            await trio.sleep(adapter.HEALTHY_S)
        raise RuntimeError("remote-triggered")


async def test_a_task_that_ran_well_for_long_is_started_again_soon(autojump_clock: MockClock) -> None:
    service = Relapsing()
    async with adapter.running(service, Counter[str]()):
        await service.recovered.wait()
    pauses_s = [later - earlier for earlier, later in pairwise(service.began_s)]
    assert pauses_s[-2] == pytest.approx(5.0)
    assert pauses_s[-1] == pytest.approx(adapter.HEALTHY_S + 0.1)


@pytest.mark.net
@pytest.mark.slow
async def test_nobody_is_dialled_for_having_an_address() -> None:
    async with network("one") as one, network("other") as other:
        one._host.get_peerstore().add_addrs(peer_of(other), [Multiaddr(other.addresses[0])], 60)
        await adapter.swarm_of(one._host).auto_connector.maybe_connect()
        assert not one._host.get_connected_peers()


@pytest.mark.net
@pytest.mark.slow
async def test_an_address_that_fails_is_dialled_once() -> None:
    """As shipped four times."""
    accepted = 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1

    async with network("one") as one, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}")
        assert not await adapter.dial(one._host, peer(0), [address], timeout_s=5)
        nursery.cancel_scope.cancel()
    assert accepted == 1


@pytest.mark.net
@pytest.mark.slow
async def test_all_addresses_are_tried_in_turn() -> None:
    async with network("one") as one, network("other") as other:
        addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{free_port()}"), Multiaddr(other.addresses[0])]
        assert await adapter.dial(one._host, peer_of(other), addresses, timeout_s=5)


@pytest.mark.net
@pytest.mark.slow
async def test_nobody_is_asked_who_he_is(pair: tuple[Network, Network]) -> None:
    """As shipped everybody at once, and the answer is believed."""
    await assert_works(*pair)
    for one in pair:
        assert not one._host._identify_inflight
        assert not one._host._identified_peers


@pytest.mark.net
@pytest.mark.slow
async def test_only_noise_and_yamux_over_tcp_are_on_offer() -> None:
    async with network("one") as one:
        upgrader = adapter.swarm_of(one._host).upgrader
        assert list(upgrader.security_multistream.transports) == ["/noise"]
        assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


@pytest.mark.net
@pytest.mark.slow
async def test_a_write_that_is_cancelled_leaves_the_connection_as_it_was(pair: tuple[Network, Network]) -> None:
    """As shipped, Noise had counted the frame, the other side never saw it, and could decrypt nothing any more."""

    async def echo(peer: bytes, request: bytes) -> bytes:
        return request

    one, other = pair
    other.serve("/test/echo/1", echo, request_bytes_max=32)
    for steps in range(12):  # so that some cancellation falls between Noise's count and the socket
        stream = await adapter.open_stream(one._host, peer_of(other), "/test/echo/1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"\0\0\0\x15cut off in the middle")
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await adapter.reset_quietly(stream)
        assert await one.request(other.peer_id, "/test/echo/1", b"still there", reply_bytes_max=32, timeout_s=5)


@pytest.mark.net
@pytest.mark.slow
async def test_a_connection_that_cannot_be_written_to_is_still_read(pair: tuple[Network, Network]) -> None:
    """Else two that send each other much, and open streams meanwhile, wait for each other to read."""
    one, other = pair
    [to_other] = adapter.connections_of(one._host, peer_of(other))
    [to_one] = adapter.connections_of(other._host, peer_of(one))
    data = bytes(200_000)
    async with to_one.muxed_conn._write_lock:  # type: ignore[attr-defined]
        before = adapter.heard_on(to_one)
        stream = await to_other.muxed_conn.open_stream()
        await adapter.ping(to_other)
        await stream.write(data)
        with trio.fail_after(2):
            while adapter.heard_on(to_one) < before + len(data):
                await trio.lowlevel.checkpoint()
        heard = adapter.heard_on(to_other)
    with trio.fail_after(2):  # what was owed is sent then
        while adapter.heard_on(to_other) < heard + 2 * HEADER_SIZE:
            await trio.lowlevel.checkpoint()
        await assert_works(one, other)


@pytest.mark.net
@pytest.mark.slow
async def test_a_connection_has_only_so_many_streams_also_while_none_can_be_reset() -> None:
    """Each may hold a window of unread bytes, and the gate's resets wait for a peer that does not read."""
    forgetful = Limits(offence_half_life_s=1e-6)
    async with networks(2, limits=forgetful) as (one, other):
        [to_other] = adapter.connections_of(one._host, peer_of(other))
        [to_one] = adapter.connections_of(other._host, peer_of(one))
        muxed: Any = to_one.muxed_conn
        async with muxed._write_lock:
            before = muxed.headers_received
            for _ in range(2 * STREAMS_PER_CONNECTION_MAX):
                await to_other.muxed_conn.open_stream()
            await until(lambda: muxed.headers_received >= before + 2 * STREAMS_PER_CONNECTION_MAX)
            theirs = [stream for stream in muxed.streams.values() if not stream.is_initiator]
            assert len(theirs) == STREAMS_PER_CONNECTION_MAX


@pytest.mark.net
@pytest.mark.slow
async def test_a_message_is_read_at_once(pair: tuple[Network, Network]) -> None:
    """As shipped in two pieces, the length that Noise gives it and what it is."""
    one, other = pair
    reads = []
    for number in range(50):
        before = other.counters["reads"]
        await one.publish(b"%d" % number)
        await other.incoming.receive()
        reads.append(other.counters["reads"] - before)
    assert median(reads) < 2  # pings and beats that come in between are read as well


@pytest.mark.net
@pytest.mark.slow
async def test_a_connection_that_is_aborted_ends_without_a_word(pair: tuple[Network, Network]) -> None:
    one, other = pair
    [connection], [others] = adapter.connections_of(one._host), adapter.connections_of(other._host)
    await trio.testing.wait_all_tasks_blocked(0.05)
    heard = adapter.heard_on(others)
    await adapter.abort(connection)
    with trio.fail_after(5):
        while not others.is_closed:
            await trio.lowlevel.checkpoint()
    assert adapter.heard_on(others) == heard


@pytest.mark.net
@pytest.mark.slow
async def test_all_connections_close_side_by_side() -> None:
    """As shipped one after the other, and each waits for itself."""
    async with networks(3) as peers, stranger() as one, trio.open_nursery() as nursery:
        for other in peers:
            assert await one.dial(other)
        connections = adapter.connections_of(one.host)
        nursery.start_soon(adapter.close, one.host)
        while not any(connection.is_closed for connection in connections):
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert [connection.is_closed for connection in connections] == [True] * 3


@pytest.mark.net
@pytest.mark.slow
async def test_a_goodbye_that_waits_behind_a_frame_is_said_by_either_end() -> None:
    """The end that accepted the connection closes its socket as soon as it can."""
    async with network("one") as one, stranger() as other:
        assert await other.dial(one)
        await until(lambda: one.counters["gossip streams failed"] > 0)  # so it is no longer being added
        [accepted], [dialled] = adapter.connections_of(one._host), adapter.connections_of(other.host)
        async with trio.open_nursery() as nursery:
            async with accepted.muxed_conn._write_lock:  # type: ignore[attr-defined]
                nursery.start_soon(accepted.close)
                await until(accepted.muxed_conn.event_shutting_down.is_set)  # type: ignore[attr-defined]
                for _ in range(20):  # time to close the socket, and not so long that the goodbye is given up
                    await trio.lowlevel.checkpoint()
                heard = dialled.muxed_conn.headers_received  # type: ignore[attr-defined]
            await until(lambda: dialled.is_closed)
        assert dialled.muxed_conn.headers_received > heard  # type: ignore[attr-defined]


@pytest.mark.net
@pytest.mark.slow
async def test_an_answered_ping_tells_windows_how_long_a_round_trip_takes(pair: tuple[Network, Network]) -> None:
    """Who does not know takes it for a millisecond, and then a window never grows on a long path."""
    one, other = pair
    [connection] = adapter.connections_of(one._host, peer_of(other))
    await adapter.ping(connection)
    await until(lambda: connection.muxed_conn.rtt() > 0)  # type: ignore[attr-defined]
