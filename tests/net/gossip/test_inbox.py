"""The inbox: bounded, and shared."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.net.gossip.inbox import Inbox


def fill(inbox: Inbox[int], author: bytes, size: int = 1) -> int:
    count = 0
    while inbox.put(count, author=author, size=size):
        count += 1
    return count


def test_one_who_floods_gets_half_and_leaves_room_for_the_others() -> None:
    inbox = Inbox[int](messages_max=64, bytes_max=1000)
    assert fill(inbox, b"flooder") == 32
    assert fill(inbox, b"second") == 16
    assert fill(inbox, b"third") == 8


def test_the_share_is_one_of_bytes_too() -> None:
    inbox = Inbox[int](messages_max=1000, bytes_max=64)
    assert fill(inbox, b"flooder", size=8) == 4
    assert inbox.put(0, author=b"honest", size=32)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 20), st.booleans()), max_size=200))
def test_it_is_never_over_its_bounds_and_forgets_what_is_taken(steps: list[tuple[bytes, int, bool]]) -> None:
    inbox = Inbox[int](messages_max=8, bytes_max=50)
    for author, size, takes in steps:
        inbox.put(0, author=author, size=size)
        if takes and len(inbox):
            inbox.receive_nowait()
        assert len(inbox) <= 8
        assert 0 <= inbox.bytes <= 50
    while len(inbox):
        inbox.receive_nowait()
    assert inbox.bytes == 0
    assert not inbox._shares._messages
    assert not inbox._shares._bytes


def test_only_some_authors_stay_in_their_order_and_the_others_room_is_free() -> None:
    inbox = Inbox[int](messages_max=8, bytes_max=800)
    for number, author in enumerate([b"stranger", b"ada", b"stranger", b"bob"]):
        assert inbox.put(number, author=author, size=100)
    inbox.keep({b"ada", b"bob"})
    assert inbox.bytes == 200
    assert [inbox.receive_nowait() for _ in range(2)] == [1, 3]
    assert fill(inbox, b"ada", size=1) == 4


def test_an_empty_one_would_block() -> None:
    with pytest.raises(trio.WouldBlock):
        Inbox[int](messages_max=1, bytes_max=1).receive_nowait()


async def test_all_who_wait_get_one_each() -> None:
    inbox = Inbox[int](messages_max=8, bytes_max=8)
    got: list[int] = []

    async def take() -> None:
        got.append(await inbox.receive())

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(3):
                assert inbox.put(number, author=b"%d" % number, size=1)
    assert sorted(got) == [0, 1, 2]
