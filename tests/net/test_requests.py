"""Requests: what each side of one may do wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from libp2p.host.exceptions import StreamFailure

from p2pdfl.net import Limits, Network, Refused, Unreachable
from p2pdfl.net.requests import TooLong

from .loopback import network, networks, peer_of, stranger, until_ended

pytestmark = [pytest.mark.net, pytest.mark.slow]

ECHO = "/test/echo/1"


async def echo(peer: bytes, request: bytes) -> bytes:
    return request


async def ask(
    one: Network, other: Network, request: bytes, *, reply_bytes_max: int = 1 << 20, timeout_s: float = 5
) -> bytes:
    return await one.request(other.peer_id, ECHO, request, reply_bytes_max=reply_bytes_max, timeout_s=timeout_s)


@pytest.mark.parametrize("size", [0, 1, 600_000])
async def test_a_request_gets_its_reply(pair: tuple[Network, Network], size: int) -> None:
    one, other = pair
    other.serve(ECHO, echo, request_bytes_max=1 << 20)
    assert await ask(one, other, bytes(size)) == bytes(size)


async def test_the_handler_is_told_who_asks(pair: tuple[Network, Network]) -> None:
    async def who(peer: bytes, request: bytes) -> bytes:
        return peer

    one, other = pair
    other.serve(ECHO, who, request_bytes_max=0)
    assert await ask(one, other, b"") == one.peer_id


async def test_a_request_longer_than_served_is_refused(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo, request_bytes_max=9)
    with pytest.raises(Refused):
        await ask(one, other, bytes(10))
    assert await ask(one, other, bytes(9)) == bytes(9)


async def test_a_reply_longer_than_asked_for_is_refused(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other.serve(ECHO, echo, request_bytes_max=10)
    with pytest.raises(Refused, match="longer than allowed"):
        await ask(one, other, bytes(10), reply_bytes_max=9)


async def test_a_handler_that_raises_costs_its_stream_only(pair: tuple[Network, Network]) -> None:
    async def fail(peer: bytes, request: bytes) -> bytes:
        if request:
            raise RuntimeError("a bug")
        return b"fine"

    one, other = pair
    other.serve(ECHO, fail, request_bytes_max=10)
    with pytest.raises(Refused):
        await ask(one, other, b"x")
    assert other.counters["refused: handler failed"] == 1
    assert await ask(one, other, b"") == b"fine"


async def test_a_reply_that_does_not_come_in_time_is_given_up(pair: tuple[Network, Network]) -> None:
    async def never(peer: bytes, request: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    one, other = pair
    other.serve(ECHO, never, request_bytes_max=10)
    with pytest.raises(Unreachable, match="in time"):
        await ask(one, other, b"", timeout_s=0.1)


async def test_a_request_that_does_not_come_in_time_is_given_up() -> None:
    async with network("server", limits=Limits(serve_s=0.1)) as server, stranger() as slow:
        server.serve(ECHO, echo, request_bytes_max=10)
        await slow.dial(server)
        stream = await slow.open(server, ECHO)
        await stream.write(b"\0")
        await until_ended(stream)
        assert server.counters["refused: request broken off"] == 1


async def test_what_nobody_serves_is_refused(pair: tuple[Network, Network]) -> None:
    one, other = pair
    with pytest.raises(Refused):
        await ask(one, other, b"")


async def test_a_peer_that_is_not_connected_is_unreachable(pair: tuple[Network, Network]) -> None:
    one, _ = pair
    async with network("far away") as far:
        with pytest.raises(Unreachable, match="not connected"):
            await ask(one, far, b"")


async def test_a_stranger_is_refused_once_members_are_admitted() -> None:
    async with networks(3) as (one, member, outsider):
        one.serve(ECHO, echo, request_bytes_max=10)
        assert await ask(outsider, one, b"hello") == b"hello"
        one.admit([member.peer_id])
        assert await ask(member, one, b"hello") == b"hello"
        with pytest.raises(Refused):
            await ask(outsider, one, b"hello")
        assert one.counters["refused: stranger's request"] == 1


async def test_one_peer_cannot_take_all_streams() -> None:
    async with network("server", limits=Limits(served_streams_per_peer_max=2)) as server, stranger() as greedy:
        server.serve(ECHO, echo, request_bytes_max=10)
        await greedy.dial(server)
        held = [await greedy.open(server, ECHO) for _ in range(2)]
        with suppress(StreamFailure):  # the reset may overtake the end of the negotiation
            await until_ended(await greedy.open(server, ECHO))
        assert server.counters["refused: too many requests of a peer"] == 1
        await held[0].write(b"\0\0\0\0")
        await until_ended(held[0])
        third = await greedy.open(server, ECHO)
        await third.write(b"\0\0\0\1x")
        assert await third.read(5) == b"\0\0\0\1x"


async def test_a_conversation_is_answered_in_order_until_it_is_long_enough(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other._requests.serve(ECHO, echo, request_bytes_max=10, requests_per_stream_max=3)
    async with one._requests.conversation(peer_of(other), ECHO, timeout_s=5) as conversation:
        for text in (b"one", b"two"):
            await conversation.ask(text)
        assert await conversation.answer(reply_bytes_max=10) == b"one"
        await conversation.ask(b"three")
        assert await conversation.answer(reply_bytes_max=10) == b"two"
        assert await conversation.answer(reply_bytes_max=10) == b"three"
        with pytest.raises(Refused):
            await conversation.answer(reply_bytes_max=10)
    assert other.counters["requests_served"] == 3


async def test_who_ends_a_conversation_has_done_nothing_wrong(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other._requests.serve(ECHO, echo, request_bytes_max=10, requests_per_stream_max=3)
    async with one._requests.conversation(peer_of(other), ECHO, timeout_s=5) as conversation:
        await conversation.ask(b"one")
        await conversation.answer(reply_bytes_max=10)
    with trio.fail_after(5):
        while other._requests._served:
            await trio.lowlevel.checkpoint()
    assert not [reason for reason in other.counters if reason.startswith("refused")]


async def test_an_answer_longer_than_asked_for_is_told_from_a_broken_stream(pair: tuple[Network, Network]) -> None:
    one, other = pair
    other._requests.serve(ECHO, echo, request_bytes_max=10, requests_per_stream_max=3)
    async with one._requests.conversation(peer_of(other), ECHO, timeout_s=5) as conversation:
        await conversation.ask(b"ten bytes.")
        with pytest.raises(TooLong):
            await conversation.answer(reply_bytes_max=9)


async def test_what_is_not_a_peer_id_is_an_error(pair: tuple[Network, Network]) -> None:
    one, other = pair
    for text in (b"", b"0OIl", b"\xff", peer_of(other).to_bytes()):
        with pytest.raises(ValueError, match="not a peer id"):
            await one.request(text, ECHO, b"", reply_bytes_max=0, timeout_s=1)
        with pytest.raises(ValueError, match="not a peer id"):
            one.admit([text])
