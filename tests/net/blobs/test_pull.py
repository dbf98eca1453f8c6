"""The pull protocol without a network: its wire format, and an assembly among holders of every kind.

Chunks are cut to 64 bytes here, so that a few hundred bytes make many.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base.codec import Malformed
from p2pdfl.net.blobs import pull
from p2pdfl.net.blobs.pull import (
    Assembly,
    NotHeld,
    Partials,
    Patience,
    Piece,
    Served,
    chunk_count,
    chunk_range,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

CHUNK = 64
PATIENCE = Patience(requests_per_holder_max=2, steal_s=1.0)


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pull, "CHUNK_BYTES", CHUNK)
        yield


def assembly(blob: bytes, bytes_max: int = 10_000) -> Assembly[int]:
    return Assembly(sha256(blob).digest(), bytes_max=bytes_max, patience=PATIENCE)


def reply(blob: bytes, position: int) -> bytes:
    return encode_reply(Served(blob).piece(position))


def number(position: int | None) -> int:
    assert position is not None
    return position


# --- the wire ----------------------------------------------------------------------------------------------------


@given(digest=st.binary(min_size=32, max_size=32), position=st.integers(0, 2**32 - 1))
def test_requests_round_trip(digest: bytes, position: int) -> None:
    assert decode_request(encode_request(digest, position)) == (digest, position)


@given(data=st.binary(max_size=40))
def test_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        digest, position = decode_request(data)
    except Malformed:
        assert len(data) != 36
    else:
        assert encode_request(digest, position) == data


@given(blob=st.binary(max_size=300), data=st.data())
def test_replies_round_trip(blob: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, chunk_count(len(blob)) - 1))
    piece = Served(blob).piece(position)
    assert decode_reply(encode_reply(piece), position) == piece


@given(data=st.binary(max_size=200), position=st.integers(0, 2**32 - 1))
def test_bytes_are_a_reply_or_malformed(data: bytes, position: int) -> None:
    try:
        piece = decode_reply(data, position)
    except Malformed:
        return
    assert (b"" if piece is None else encode_reply(piece)) == data


@given(length=st.integers(0, 1000))
def test_chunks_cover_a_blob_once(length: int) -> None:
    ranges = [chunk_range(length, position) for position in reversed(range(chunk_count(length)))]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == length
    assert all(end == start for (_, end), (start, _) in pairwise(ranges))
    assert all(end - start == CHUNK for start, end in ranges[:-1])


@pytest.mark.parametrize("length", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_a_position_that_a_blob_lacks_is_refused(length: int) -> None:
    with pytest.raises(Malformed, match="no such chunk"):
        Served(bytes(length)).piece(chunk_count(length))


# --- an assembly -------------------------------------------------------------------------------------------------


class Holder:
    """Keeps what it was asked until it is its turn."""

    def __init__(self, blob: bytes, kind: str, lie_at: int) -> None:
        self.blob = blob
        self.kind = kind
        self.lie_at = lie_at
        self.asked: list[int] = []
        self.lies = 0

    def answer(self, rng: random.Random) -> bytes:
        position = self.asked[0]
        if self.kind == "empty" and position >= self.lie_at:
            return b""
        if self.kind == "liar" and position >= self.lie_at:
            self.lies += 1
            true = bytearray(reply(self.blob, position))
            true[rng.randrange(8, len(true)) if len(true) > 8 else 0] ^= 1 << rng.randrange(8)
            return bytes(true)
        return reply(self.blob, position)


kinds = st.sampled_from(["honest", "liar", "empty", "silent"])


@settings(max_examples=300)
@given(
    blob=st.binary(max_size=700),
    others=st.lists(st.tuples(kinds, st.integers(0, 8)), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_one_honest_holder_is_enough_and_each_lie_costs_what_is_promised(
    blob: bytes, others: list[tuple[str, int]], seed: int
) -> None:
    rng = random.Random(seed)
    holders = dict(enumerate(Holder(blob, kind, lie_at) for kind, lie_at in [*others, ("honest", 0)]))
    liars = {name for name, holder in holders.items() if holder.kind == "liar"}
    one = assembly(blob)
    now_s = 0.0
    caught: set[int] = set()
    for _ in range(2000):
        if one.is_complete:
            break
        now_s += 0.3
        name = rng.choice(sorted(holders))
        holder = holders[name]
        position = one.ask(name, now_s)
        if position is not None:
            assert position not in holder.asked
            holder.asked.append(position)
        elif holder.asked and holder.kind != "silent":
            try:
                gone = one.receive(name, holder.asked[0], holder.answer(rng), now_s)
            except (NotHeld, Malformed):
                gone = {name}
            else:
                caught |= gone
            holder.asked.pop(0)
            for other in gone:
                one.drop(other)
                holders.pop(other, None)
    assert one.is_complete
    assert one.blob() == blob
    assert caught <= liars, "only liars are blamed"
    # a lie, and what was already on its way from that liar; and honest chunks that came twice
    room = PATIENCE.requests_per_holder_max
    assert all(holder.lies <= room + 1 for holder in holders.values())


@given(blob=st.binary(max_size=500), replies=st.lists(st.binary(max_size=150), max_size=20))
def test_whatever_comes_nothing_false_comes_out(blob: bytes, replies: list[bytes]) -> None:
    one = assembly(blob)
    for data in replies:
        position = one.ask(0, 0.0)
        if position is None:
            break
        try:
            lied = one.receive(0, position, data, 0.0)
        except (NotHeld, Malformed):
            lied = {0}
        if lied:
            one.drop(0)
    assert b"".join(reversed(one.chunks)) == (blob[-one.proved_bytes :] if one.proved_bytes else b"")


def test_a_holder_that_has_proved_nothing_has_one_chunk_under_way() -> None:
    blob = bytes(10 * CHUNK)
    one = assembly(blob)
    assert one.ask(0, 0.0) == 0
    assert one.ask(0, 0.0) is None
    assert one.receive(0, 0, reply(blob, 0), 0.0) == set()
    assert [one.ask(0, 0.0), one.ask(0, 0.0), one.ask(0, 0.0)] == [1, 2, None]
    assert [one.ask(1, 0.0), one.ask(1, 0.0)] == [3, None]


def test_what_comes_before_its_turn_waits_and_counts() -> None:
    blob = random.Random(0).randbytes(10 * CHUNK)
    one = assembly(blob)
    for name in (0, 1):
        one.ask(name, 0.0)
        one.receive(name, 0, reply(blob, 0), 0.0) if name == 0 else one.drop(name)
    assert [one.ask(0, 0.0), one.ask(1, 0.0)] == [1, 2]
    one.receive(1, 2, reply(blob, 2), 0.0)
    assert len(one.chunks) == 1
    assert one.ask(1, 0.0) is None, "one unproved piece is all that a newcomer may have"
    one.receive(0, 1, reply(blob, 1), 0.0)
    assert len(one.chunks) == 3


def test_a_lie_that_waited_is_its_senders_and_not_whose_chunk_brought_it_to_light() -> None:
    blob = random.Random(0).randbytes(10 * CHUNK)
    one = assembly(blob)
    one.ask(0, 0.0)
    one.receive(0, 0, reply(blob, 0), 0.0)
    assert [one.ask(0, 0.0), one.ask(1, 0.0)] == [1, 2]
    lie = Piece(length=len(blob), state=bytes(32), chunk=bytes(CHUNK))
    assert one.receive(1, 2, encode_reply(lie), 0.0) == set()
    assert one.receive(0, 1, reply(blob, 1), 0.0) == {1}
    one.drop(1)
    assert one.ask(0, 0.0) == 2


def test_who_has_all_that_it_may_have_still_gets_the_chunk_that_all_wait_for() -> None:
    """Found by fuzzing: its two pieces waited behind a chunk that nobody was asked for any more."""
    blob = random.Random(0).randbytes(10 * CHUNK)
    one = assembly(blob)
    one.ask(0, 0.0)
    one.receive(0, 0, reply(blob, 0), 0.0)
    assert [one.ask(1, 0.0), one.ask(0, 0.0), one.ask(0, 0.0)] == [1, 2, 3]
    one.receive(0, 2, reply(blob, 2), 0.0)
    one.receive(0, 3, reply(blob, 3), 0.0)
    assert one.ask(0, 0.0) is None
    one.drop(1)
    assert one.ask(0, 0.0) == 1
    one.receive(0, 1, reply(blob, 1), 0.0)
    assert len(one.chunks) == 4


def test_a_chunk_that_is_late_is_asked_of_who_is_idle_and_not_before() -> None:
    blob = bytes(2 * CHUNK)
    one = assembly(blob)
    one.ask(0, 0.0)
    assert one.ask(1, 0.9) is None
    assert one.next_steal_s(1, 0.9) == 1.0
    assert one.ask(1, 1.0) == 0
    assert one.ask(2, 1.9) is None
    assert one.ask(2, 2.0) == 0


def test_who_is_slow_itself_takes_nothing_over_early() -> None:
    blob = bytes(3 * CHUNK)
    one = assembly(blob)
    one.ask(0, 0.0)
    one.receive(0, 0, reply(blob, 0), 5.0)
    one.ask(1, 5.0)
    one.ask(0, 5.0)
    one.receive(0, 2, reply(blob, 2), 10.0)
    assert one.ask(0, 14.9) is None
    assert one.ask(0, 15.0) == 1


def test_a_chunk_that_comes_twice_is_counted_as_wasted() -> None:
    blob = bytes(2 * CHUNK)
    one = assembly(blob)
    one.ask(0, 0.0)
    one.ask(1, 1.0)
    one.receive(1, 0, reply(blob, 0), 1.0)
    one.receive(0, 0, reply(blob, 0), 1.0)
    assert one.wasted_chunks == 1
    assert len(one.chunks) == 1


# --- what is kept ------------------------------------------------------------------------------------------------


def started(blob: bytes, chunks: int) -> Assembly[int]:
    one = assembly(blob)
    for _ in range(chunks):
        position = number(one.ask(0, 0.0))
        one.receive(0, position, reply(blob, position), 0.0)
    return one


def test_partials_keep_the_youngest_within_their_bound() -> None:
    blobs = [bytes([value]) * (4 * CHUNK) for value in range(5)]
    partials: Partials[int] = Partials(2 * 3 * CHUNK)
    for blob in blobs:
        partials.keep(started(blob, 3))
    assert partials.kept_bytes() == 2 * 3 * CHUNK
    taken = [partials.take(sha256(blob).digest(), bytes_max=1000) for blob in blobs]
    assert [one is not None for one in taken] == [False, False, False, True, True]
    assert partials.kept_bytes() == 0


def test_a_partial_goes_on_without_its_old_holders() -> None:
    blob = random.Random(1).randbytes(4 * CHUNK)
    partials: Partials[int] = Partials(1000)
    one = started(blob, 2)
    one.ask(0, 0.0)
    partials.keep(one)
    again = partials.take(one.digest, bytes_max=1000)
    assert again is not None
    for expected in (2, 3):
        assert again.ask(7, 0.0) == expected
        again.receive(7, expected, reply(blob, expected), 0.0)
    assert again.blob() == blob


def test_a_partial_of_a_blob_that_is_too_long_now_is_dropped() -> None:
    blob = bytes(4 * CHUNK)
    partials: Partials[int] = Partials(1000)
    partials.keep(started(blob, 2))
    assert partials.take(sha256(blob).digest(), bytes_max=len(blob) - 1) is None


def test_nothing_is_kept_of_what_has_proved_nothing() -> None:
    partials: Partials[int] = Partials(1000)
    partials.keep(started(bytes(4 * CHUNK), 0))
    assert not partials._kept
