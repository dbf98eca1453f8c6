"""Pulling from live holders: the digest decides, not the holder; what each kind of bad one costs is counted."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol

from net.loopback import network, networks, stranger
from p2pdfl.crypto.sha256_links import STATE_BYTES
from p2pdfl.net import Limits, Network
from p2pdfl.net.blobs.pull import CHUNK_BYTES, REQUEST_BYTES, Piece, Served, decode_request, encode_reply
from p2pdfl.net.blobs.service import PROTOCOL, Shelf
from p2pdfl.net.libp2p import adapter

pytestmark = [pytest.mark.net, pytest.mark.slow]

CHUNKS = 12
BLOB = random.Random(0).randbytes(CHUNKS * CHUNK_BYTES - 1000)
DIGEST = sha256(BLOB).digest()
SERVED = Served(BLOB)
SMALL = b"update" * 10_000
IMPATIENT = Limits(hedge_s=0.05, chunk_steal_s=0.05, chunk_s=0.5)
"""For tests in which somebody has to be given up: each waits for the event, not for a time, but the event must come."""


def holding(*blobs: bytes) -> Callable[[bytes], bytes | None]:
    by_digest = {sha256(blob).digest(): blob for blob in blobs}
    return by_digest.get


def honest(request: bytes) -> bytes:
    digest, position = decode_request(request)
    return encode_reply(SERVED.piece(position)) if digest == DIGEST else b""


def serve(holder: Network, handle: Callable[[bytes], Awaitable[bytes]]) -> None:
    """Instead of what it served before."""

    async def reply(peer: bytes, request: bytes) -> bytes:
        return await handle(request)

    holder._requests.serve(PROTOCOL, reply, request_bytes_max=REQUEST_BYTES, requests_per_stream_max=1000)


async def fetch(one: Network, holders: Sequence[Network], blob: bytes = BLOB) -> bytes | None:
    with trio.fail_after(20):
        return await one.fetch(
            sha256(blob).digest(), [holder.peer_id for holder in holders], bytes_max=len(BLOB) + CHUNK_BYTES
        )


# --- honest holders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blob", [b"", b"x", SMALL, bytes(CHUNK_BYTES)], ids=["empty", "byte", "small", "one chunk"])
async def test_a_blob_of_one_chunk_costs_one_request(blob: bytes) -> None:
    async with networks(3, blob_source=holding(blob)) as (one, *holders):
        assert await fetch(one, holders, blob) == blob
        assert one.counters["requests_sent"] == 1
        assert holders[0].counters["requests_served"] == 1
        assert holders[1].counters["requests_served"] == 0


@pytest.mark.parametrize("extra", [-1, 0, 1])
async def test_lengths_around_a_whole_number_of_chunks(extra: int) -> None:
    blob = BLOB[: 3 * CHUNK_BYTES + extra]
    async with networks(2, blob_source=holding(blob)) as (one, holder):
        assert await fetch(one, [holder], blob) == blob
        assert one.counters["requests_sent"] == (4 if extra > 0 else 3)


async def test_a_blob_that_comes_quickly_is_asked_of_the_first_holder_alone() -> None:
    async with networks(3, blob_source=holding(BLOB), limits=Limits(hedge_s=20)) as (one, *holders):
        assert await fetch(one, holders) == BLOB
        assert holders[1].counters["requests_served"] == 0
        assert one.counters["blob chunks proved"] == CHUNKS
        assert one.counters["blob chunks wasted"] == 0


async def test_several_holders_share_the_work() -> None:
    """Each holder answers a chunk only when another holder is being asked for one too."""
    async with networks(4, limits=IMPATIENT) as (one, *holders):
        asking: set[int] = set()
        both = trio.Event()

        def wait_for_company(number: int) -> Callable[[bytes], Awaitable[bytes]]:
            async def reply(request: bytes) -> bytes:
                asking.add(number)
                if len(asking) == len(holders):
                    both.set()
                if decode_request(request)[1] > 0:
                    await both.wait()
                return honest(request)

            return reply

        for number, holder in enumerate(holders):
            serve(holder, wait_for_company(number))
        assert await fetch(one, holders) == BLOB
        assert asking == {0, 1, 2}


async def test_many_blobs_at_once_from_one_holder() -> None:
    """More than the streams that a holder serves to one peer."""
    blobs = [bytes([number]) * 1000 for number in range(40)]
    async with networks(2, blob_source=holding(*blobs)) as (one, holder):
        pulled: list[bytes | None] = []

        async def pull(blob: bytes) -> None:
            pulled.append(await fetch(one, [holder], blob))

        async with trio.open_nursery() as nursery:
            for blob in blobs:
                nursery.start_soon(pull, blob)
        assert sorted(blob for blob in pulled if blob) == blobs
        assert not any(reason.startswith("refused") for reason in holder.counters)


async def test_a_chunk_costs_the_server_no_look_at_its_disk() -> None:
    looked: list[bytes] = []

    def source(digest: bytes) -> bytes | None:
        looked.append(digest)
        return BLOB if digest == DIGEST else None

    async with networks(2, blob_source=source) as (one, holder):
        assert await fetch(one, [holder]) == BLOB
        assert holder.counters["requests_served"] == CHUNKS
        assert looked == [DIGEST]


async def test_what_is_kept_for_serving_is_bounded() -> None:
    blobs = [bytes([number]) * (CHUNK_BYTES // 2) for number in range(10)]
    async with networks(2, blob_source=holding(*blobs), limits=Limits(served_blobs_bytes_max=CHUNK_BYTES)) as (
        one,
        holder,
    ):
        for blob in blobs:
            assert await fetch(one, [holder], blob) == blob
        assert len(holder._blobs._shelf._kept) == 2


async def test_a_blob_that_made_room_is_read_again_and_not_hashed_again() -> None:
    """Who asks for a chunk of one long blob and of another in turn costs the reading of them, no more."""
    one, other = BLOB, BLOB[::-1]
    shelf = Shelf(holding(one, other), bytes_max=len(one), states_bytes_max=2 * CHUNKS * STATE_BYTES)
    first = await shelf.get(DIGEST)
    await shelf.get(sha256(other).digest())
    again = await shelf.get(DIGEST)
    assert first is not None
    assert again is not None
    assert again is not first, "it was put away"
    assert again.states is first.states
    assert [again.piece(position) for position in range(CHUNKS)] == [first.piece(at) for at in range(CHUNKS)]


async def test_the_states_of_what_made_room_are_bounded() -> None:
    blobs = [bytes([number]) * (3 * CHUNK_BYTES) for number in range(10)]
    shelf = Shelf(holding(*blobs), bytes_max=1, states_bytes_max=6 * STATE_BYTES)
    for blob in blobs * 2:
        served = await shelf.get(sha256(blob).digest())
        assert served is not None
        assert served.piece(0) == Served(blob).piece(0)
        assert shelf.states_bytes <= 6 * STATE_BYTES


async def test_states_do_not_serve_a_blob_of_another_length() -> None:
    """A file that was damaged after it was hashed."""
    held = [BLOB, BLOB[::-1], BLOB[: 2 * CHUNK_BYTES]]
    shelf = Shelf(lambda digest: held.pop(0), bytes_max=1, states_bytes_max=1 << 20)
    await shelf.get(DIGEST)
    await shelf.get(bytes(32))
    served = await shelf.get(DIGEST)
    assert served is not None
    assert served.piece(1) == Served(BLOB[: 2 * CHUNK_BYTES]).piece(1)


async def test_who_is_gone_does_not_stop_a_fetch() -> None:
    async with network("gone") as gone:
        gone_id = gone.peer_id
    async with networks(2, blob_source=holding(BLOB)) as (one, holder):
        with trio.fail_after(20):
            assert await one.fetch(DIGEST, [gone_id, holder.peer_id], bytes_max=len(BLOB)) == BLOB


# --- bad holders -------------------------------------------------------------------------------------------------


def lie_about(position_lied_about: int, change: Callable[[Piece], Piece]) -> Callable[[bytes], Awaitable[bytes]]:
    async def reply(request: bytes) -> bytes:
        position = decode_request(request)[1]
        piece = SERVED.piece(position)
        return encode_reply(change(piece) if position == position_lied_about else piece)

    return reply


def with_a_bit_flipped(piece: Piece) -> Piece:
    return Piece(length=piece.length, state=piece.state, chunk=bytes([piece.chunk[0] ^ 1]) + piece.chunk[1:])


def with_another_state(piece: Piece) -> Piece:
    return Piece(length=piece.length, state=bytes(32), chunk=piece.chunk)


def one_block_longer(piece: Piece) -> Piece:
    return Piece(length=piece.length + 64, state=piece.state, chunk=piece.chunk + bytes(64))


def many_chunks_longer(piece: Piece) -> Piece:
    return Piece(length=piece.length - 5 * CHUNK_BYTES, state=piece.state, chunk=piece.chunk)


@pytest.mark.parametrize(
    ("position", "change"),
    [
        (0, with_a_bit_flipped),
        (0, with_another_state),
        (0, one_block_longer),
        (0, many_chunks_longer),
        (1, with_a_bit_flipped),
        (1, with_another_state),
        (5, with_a_bit_flipped),
        (CHUNKS - 1, with_a_bit_flipped),
    ],
)
async def test_a_lie_is_found_at_its_chunk_and_costs_no_other(position: int, change: Callable[[Piece], Piece]) -> None:
    async with networks(3, limits=Limits(hedge_s=20), blob_source=holding(BLOB)) as (one, liar, holder):
        serve(liar, lie_about(position, change))
        assert await fetch(one, [liar, holder]) == BLOB
        assert one.counters["refused: blob is not what its digest says"] == 1
        assert one.counters["blob chunks wasted"] == 1
        assert one.counters["blob chunks proved"] == CHUNKS
        # at most one more was on its way when the lie came
        assert one.counters["requests_sent"] <= CHUNKS + 2


async def test_all_lies_of_all_liars_cost_a_chunk_each() -> None:
    async with networks(6, limits=Limits(hedge_s=20), blob_source=holding(BLOB)) as (one, *liars, holder):
        for number, liar in enumerate(liars):
            serve(liar, lie_about(number, with_a_bit_flipped))
        assert await fetch(one, [*liars, holder]) == BLOB
        assert one.counters["refused: blob is not what its digest says"] == len(liars)
        assert one.counters["blob chunks wasted"] == len(liars)
        assert one.counters["blob chunks proved"] == CHUNKS


async def test_liars_among_honest_holders_all_at_once() -> None:
    async with networks(6, limits=IMPATIENT, blob_source=holding(BLOB)) as (one, *others):
        for number, liar in enumerate(others[:3]):
            serve(liar, lie_about(2 + 3 * number, with_a_bit_flipped))
        assert await fetch(one, others) == BLOB
        assert one.counters["blob chunks proved"] == CHUNKS


@pytest.mark.parametrize("reply", [b"x", bytes(40), bytes(41), bytes(8) + bytes([1] * 32), b"\xff" * 100])
async def test_a_reply_that_is_none_is_refused(reply: bytes) -> None:
    async def nonsense(request: bytes) -> bytes:
        return reply

    async with networks(3, blob_source=holding(BLOB)) as (one, liar, holder):
        serve(liar, nonsense)
        assert await fetch(one, [liar, holder]) == BLOB
        assert one.counters["refused: malformed blob reply"] == 1


async def test_a_blob_longer_than_asked_for_is_not_taken() -> None:
    async with networks(2, blob_source=holding(BLOB)) as (one, holder):
        assert await one.fetch(DIGEST, [holder.peer_id], bytes_max=len(BLOB) - 1) is None
        assert one.counters["requests_sent"] == 1


async def test_who_has_nothing_costs_a_question() -> None:
    async with networks(4, limits=Limits(hedge_s=20)) as (one, *empty, holder):
        serve(holder, as_handle(honest))
        assert await fetch(one, empty) is None
        assert one.counters["requests_sent"] == 2
        assert await fetch(one, [*empty, holder]) == BLOB


def as_handle(reply: Callable[[bytes], bytes]) -> Callable[[bytes], Awaitable[bytes]]:
    async def handle(request: bytes) -> bytes:
        return reply(request)

    return handle


# --- holders without manners -------------------------------------------------------------------------------------


LENGTH_PREFIX = 4


@asynccontextmanager
async def rogue(victim: Network, answer: Callable[[INetStream, bytes], Awaitable[None]]) -> AsyncIterator[bytes]:
    """Yields its peer id; answer is called for each request."""

    async def serve_stream(stream: INetStream) -> None:
        while request := await adapter.read_some(stream, LENGTH_PREFIX + REQUEST_BYTES):
            await answer(stream, request[LENGTH_PREFIX:])

    async with stranger("rogue") as host:
        host.host.set_stream_handler(TProtocol(PROTOCOL), serve_stream)
        assert await host.dial(victim)
        yield host.id.to_base58().encode()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_PREFIX, "big") + data


async def stall(stream: INetStream, request: bytes) -> None:
    await trio.sleep_forever()


async def stall_after_the_first(stream: INetStream, request: bytes) -> None:
    if decode_request(request)[1] > 0:
        await trio.sleep_forever()
    await stream.write(framed(honest(request)))


async def trickle(stream: INetStream, request: bytes) -> None:
    for byte in framed(honest(request)):
        await stream.write(bytes([byte]))
        await trio.sleep(1)


async def reset_in_the_middle(stream: INetStream, request: bytes) -> None:
    await stream.write(framed(honest(request))[:1000])
    await stream.reset()


async def send_too_much(stream: INetStream, request: bytes) -> None:
    await stream.write((1 << 31).to_bytes(4, "big") + bytes(1000))


async def send_what_nobody_asked_for(stream: INetStream, request: bytes) -> None:
    reply = framed(honest(request))
    while True:
        await stream.write(reply)


async def vanish(stream: INetStream, request: bytes) -> None:
    await stream.write(framed(honest(request))[:1000])
    await stream.muxed_conn.close()


@pytest.mark.parametrize(
    "answer",
    [
        stall,
        stall_after_the_first,
        trickle,
        reset_in_the_middle,
        send_too_much,
        send_what_nobody_asked_for,
        vanish,
    ],
)
async def test_a_rogue_holder_costs_at_most_the_chunks_that_it_was_asked_for(
    answer: Callable[[INetStream, bytes], Awaitable[None]],
) -> None:
    async with (
        networks(2, limits=IMPATIENT, blob_source=holding(BLOB)) as (one, holder),
        rogue(one, answer) as bad,
    ):
        with trio.fail_after(20):
            assert await one.fetch(DIGEST, [bad, holder.peer_id], bytes_max=len(BLOB)) == BLOB
        assert one.counters["blob chunks proved"] == CHUNKS
        assert one.counters["blob chunks wasted"] <= IMPATIENT.chunk_requests_per_holder_max
        assert holder.counters["requests_served"] <= CHUNKS


@pytest.mark.parametrize("answer", [stall, trickle])
async def test_a_rogue_holder_alone_is_given_up(answer: Callable[[INetStream, bytes], Awaitable[None]]) -> None:
    async with networks(2, limits=IMPATIENT) as (one, _), rogue(one, answer) as bad:
        with trio.fail_after(20):
            assert await one.fetch(DIGEST, [bad], bytes_max=len(BLOB)) is None
        assert one.counters["blob attempts failed"] == 1


async def test_an_attempt_ends_although_a_holder_goes_on_for_ever() -> None:
    """A chunk each time just before it is given up would hold up a fetch for hours."""
    limits = Limits(blob_attempt_s=0.5, blob_bytes_per_s_min=1 << 40)

    async def slowly(stream: INetStream, request: bytes) -> None:
        if decode_request(request)[1] > 2:
            await trio.sleep_forever()
        await stream.write(framed(honest(request)))

    async with networks(2, limits=limits) as (one, _), rogue(one, slowly) as bad:
        with trio.fail_after(20):
            assert await one.fetch(DIGEST, [bad], bytes_max=len(BLOB)) is None
        assert one.counters["blob chunks proved"] == 3


# --- going on ----------------------------------------------------------------------------------------------------


async def test_what_was_proved_before_a_holder_was_lost_is_not_asked_for_again() -> None:
    async def seven_chunks(request: bytes) -> bytes:
        if decode_request(request)[1] >= 7:
            raise ValueError("lost")
        return honest(request)

    async with networks(3, blob_source=holding(BLOB), limits=Limits(hedge_s=20)) as (one, lost, holder):
        serve(lost, seven_chunks)
        assert await fetch(one, [lost, holder]) == BLOB
        assert one.counters["blob chunks proved"] == CHUNKS
        assert holder.counters["requests_served"] == CHUNKS - 7


async def test_a_second_fetch_goes_on_where_the_first_ended() -> None:
    async def seven_chunks(request: bytes) -> bytes:
        if decode_request(request)[1] >= 7:
            raise ValueError("lost")
        return honest(request)

    async with networks(3, blob_source=holding(BLOB)) as (one, lost, holder):
        serve(lost, seven_chunks)
        assert await fetch(one, [lost]) is None
        assert one._blobs._partials.kept_bytes() == 7 * CHUNK_BYTES - 1000
        received = one.counters["bytes_received"]
        assert await fetch(one, [holder]) == BLOB
        assert holder.counters["requests_served"] == CHUNKS - 7
        assert one.counters["bytes_received"] - received < (CHUNKS - 7 + 0.5) * CHUNK_BYTES
        assert one._blobs._partials.kept_bytes() == 0


async def test_a_fetch_that_is_cancelled_can_go_on_later() -> None:
    async with networks(3, blob_source=holding(BLOB)) as (one, slow, holder):
        with trio.CancelScope() as scope:

            async def four_chunks(request: bytes) -> bytes:
                if decode_request(request)[1] >= 4:
                    while one.counters["blob chunks proved"] < 4:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
                    await trio.sleep_forever()
                return honest(request)

            serve(slow, four_chunks)
            await fetch(one, [slow])
        assert one._blobs._partials.kept_bytes() == 4 * CHUNK_BYTES - 1000
        assert await fetch(one, [holder]) == BLOB
        assert holder.counters["requests_served"] == CHUNKS - 4


# --- hostile pullers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [b"", b"x", bytes(REQUEST_BYTES - 1), DIGEST + b"\xff\xff\xff\xff", DIGEST + CHUNKS.to_bytes(4, "big")],
    ids=["empty", "byte", "short", "last position", "one too far"],
)
async def test_a_request_that_is_none_costs_its_stream_only(request_: bytes) -> None:
    async with networks(2, blob_source=holding(BLOB)) as (one, holder), stranger() as puller:
        await puller.dial(holder)
        stream = await puller.open(holder, PROTOCOL)
        await stream.write(framed(request_))
        with trio.fail_after(5):
            while await adapter.read_some(stream, 1000):
                pass
        assert await fetch(one, [holder]) == BLOB
        assert holder.counters["refused: handler failed"] == 1


async def test_a_puller_that_stops_reading_holds_up_nobody() -> None:
    async with networks(2, blob_source=holding(BLOB)) as (one, holder), stranger() as deaf:
        await deaf.dial(holder)
        stream = await deaf.open(holder, PROTOCOL)
        for position in range(CHUNKS):
            await stream.write(framed(DIGEST + position.to_bytes(4, "big")))
        assert await fetch(one, [holder]) == BLOB
