"""Whether others can dial this peer, asked for real; and that the question is no weapon."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import trio
from multiaddr import Multiaddr

from net.loopback import assert_works, network, networks
from net.peers.test_discovery import free_port
from p2pdfl.base.codec import decode, encode
from p2pdfl.net import Limits, Network
from p2pdfl.net.peers.probe import Failure, probe
from p2pdfl.net.peers.reachability import (
    DIAL_BACK_PROTOCOL,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    DialBackReply,
    DialBackRequest,
    DialBackResult,
    Reachability,
    ask,
    ask_about,
    watched,
)
from p2pdfl.net.requests import Refused

pytestmark = [pytest.mark.net, pytest.mark.slow]

EAGER = Limits(dial_back_pause_s=0.0, dial_back_s=1.0)


async def test_a_peer_on_the_same_machine_is_reached(pair: tuple[Network, Network]) -> None:
    one, other = pair
    found = await ask(one, [other.peer_id], limits=EAGER)
    assert found.reached == tuple(address.rpartition("/p2p/")[0] for address in one.addresses)
    assert (found.failed, found.seen_as, found.asked) == ((), ("127.0.0.1",), 1)
    assert found.words() == [f"others reach this peer at {found.reached[0]}"]
    await assert_works(one, other)


async def test_a_port_that_nobody_listens_on() -> None:
    async with announcing(f"/ip4/127.0.0.1/tcp/{free_port()}") as (one, other):
        found = await ask(one, [other.peer_id], limits=EAGER)
        assert [failure for _, failure in found.failed] == [Failure.REFUSED]
        assert "connection refused" in found.words()[0]
        assert "--announce" in found.words()[1]


async def test_a_port_that_leads_to_another_program() -> None:
    with http_server() as port:
        async with announcing(f"/ip4/127.0.0.1/tcp/{port}") as (one, other):
            found = await ask(one, [other.peer_id], limits=EAGER)
    assert [failure for _, failure in found.failed] == [Failure.NO_PEER]
    assert "another program" in found.words()[1]


async def test_a_port_that_leads_to_another_peer() -> None:
    async with network("third") as third:
        address = third.addresses[0].rpartition("/p2p/")[0]
        async with announcing(address) as (one, other):
            found = await ask(one, [other.peer_id], limits=EAGER)
            assert found.failed == ((address, Failure.NO_PEER),)


async def test_a_port_that_swallows_everything() -> None:
    with silent_server() as port:
        async with announcing(f"/ip4/127.0.0.1/tcp/{port}") as (one, other):
            found = await ask(one, [other.peer_id], limits=EAGER)
            assert [failure for _, failure in found.failed] == [Failure.TIMED_OUT]
            assert "firewall" in found.words()[1]
            await assert_works(one, other)


async def test_a_name() -> None:
    port = free_port()
    async with announcing(f"/dns4/localhost/tcp/{port}", listen=f"/ip4/127.0.0.1/tcp/{port}") as (one, other):
        assert (await ask(one, [other.peer_id], limits=EAGER)).reached == (f"/dns4/localhost/tcp/{port}",)


async def test_a_name_without_an_address() -> None:
    async with announcing("/dns4/nowhere.invalid/tcp/9000") as (one, other):
        found = await ask(one, [other.peer_id], limits=EAGER)
        assert [failure for _, failure in found.failed] == [Failure.NO_NAME]


async def test_nobody_dials_where_the_asker_does_not_come_from() -> None:
    """It comes from 127.0.0.1."""
    with socket.create_server(("127.0.0.2", 0)) as third:
        third.settimeout(0.2)
        async with announcing(f"/ip4/127.0.0.2/tcp/{third.getsockname()[1]}") as (one, other):
            found = await ask(one, [other.peer_id], limits=EAGER)
            assert [failure for _, failure in found.failed] == [Failure.NOT_TRIED]
            assert other.counters["dial-backs"] == 0
            assert found.seen_as == ("127.0.0.1",)
            assert "forward a port" in found.words()[1]
            assert "--announce /ip4/127.0.0.1/tcp/" in found.words()[1]
        with pytest.raises(TimeoutError):
            third.accept()


async def test_who_asks_too_often_gets_no_answer() -> None:
    async with networks(2) as (one, other):
        assert (await ask(one, [other.peer_id], limits=EAGER)).asked == 1
        assert (await ask(one, [other.peer_id], limits=EAGER)).asked == 0
        assert other.counters["refused: dial-back too soon"] == 1
        assert (await ask(other, [one.peer_id], limits=EAGER)).asked == 1


async def test_who_is_not_admitted_gets_no_answer(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.admit([])
    assert (await ask(one, [other.peer_id], limits=EAGER)).asked == 0
    assert other.counters["dial-backs"] == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\xc1" * 100,
        b"\x91\x90",
        encode(DialBackRequest.model_construct(addresses=(b"/ip4/127.0.0.1/tcp/1",) * 9)),
        encode(DialBackRequest.model_construct(addresses=(b"x" * 300,))),
    ],
    ids=["empty", "garbage", "no address", "too many", "too long"],
)
async def test_a_malformed_question_costs_its_sender_a_stream(
    pair: tuple[Network, Network], request_bytes: bytes
) -> None:
    one, other = pair
    with pytest.raises(Refused):
        await one.request(
            other.peer_id, DIAL_BACK_PROTOCOL, request_bytes, reply_bytes_max=REPLY_BYTES_MAX, timeout_s=5
        )
    await assert_works(one, other)


async def test_an_address_that_is_none_is_not_tried(pair: tuple[Network, Network]) -> None:
    one, other = pair
    found = await ask_about(one, [other.peer_id], one.peer_id, ["\x00\xff", "/unix/etc", ""], limits=EAGER)
    assert [failure for _, failure in found.failed] == [Failure.NOT_TRIED] * 3


async def test_one_that_lies_is_outvoted_by_one_that_reached_us() -> None:
    async with networks(3, limits=EAGER) as (one, liar, honest):
        liar.serve(DIAL_BACK_PROTOCOL, say_unreachable, request_bytes_max=4096)
        found = await ask(one, [liar.peer_id, honest.peer_id], limits=EAGER)
        assert len(found.reached) == 1
        assert found.asked == 2


async def test_an_answer_of_the_wrong_shape_is_no_answer() -> None:
    async with networks(2) as (one, other):

        async def shout(peer: bytes, data: bytes) -> bytes:
            return b"\x92\xc4\x03\x1b[2J\x90"

        other.serve(DIAL_BACK_PROTOCOL, shout, request_bytes_max=4096)
        assert (await ask(one, [other.peer_id], limits=EAGER)).asked == 0


async def test_it_is_told_once_and_again_when_it_changes() -> None:
    limits = Limits(dial_back_pause_s=0.01, reachability_s=0.01)
    told: list[Reachability] = []
    heard = trio.Event()

    def tell(found: Reachability) -> None:
        nonlocal heard
        told.append(found)
        heard.set()

    async with networks(2, limits=limits) as (one, other), watched(one, tell, entropy=bytes):
        with trio.fail_after(5):
            await heard.wait()
        heard = trio.Event()
        other.serve(DIAL_BACK_PROTOCOL, say_unreachable, request_bytes_max=4096)
        with trio.fail_after(5):
            await heard.wait()
        asked = other.counters["requests_served"]
        with trio.fail_after(5):
            while other.counters["requests_served"] < asked + 3:
                await trio.lowlevel.checkpoint()
    assert [len(found.reached) for found in told] == [1, 0]


async def test_a_probe_says_who_answers() -> None:
    async with network("someone") as one:
        address = Multiaddr(one.addresses[0])
        assert await probe(address, timeout_s=5) == await probe(address, timeout_s=5)
        assert (await probe(address, timeout_s=5)).peer_id == one.peer_id


async def say_unreachable(peer: bytes, data: bytes) -> bytes:
    request = decode(DialBackRequest, data, bytes_max=REQUEST_BYTES_MAX)
    lie = DialBackResult(failure=Failure.TIMED_OUT, peer_id=b"")
    return encode(DialBackReply(seen_as=b"203.0.113.9", results=(lie,) * len(request.addresses)))


@asynccontextmanager
async def announcing(address: str, listen: str = "/ip4/127.0.0.1/tcp/0") -> AsyncIterator[tuple[Network, Network]]:
    async with (
        network("other", limits=EAGER) as other,
        network("one", other.addresses, announce=[address], listen=listen, limits=EAGER) as one,
    ):
        with trio.fail_after(5):
            await one.wait_connected(1)
            await other.wait_connected(1)
        yield one, other


class http_server:
    def __enter__(self) -> int:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        self._server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[attr-defined]
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class silent_server:
    """Accepts, in the kernel, and says nothing."""

    def __enter__(self) -> int:
        self._socket = socket.create_server(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()
