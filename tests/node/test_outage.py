"""What a member owes a chain that is out of reach for a while, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2pdfl.base import params
from p2pdfl.base.types import Ballot, Certificate, Digest, Head
from p2pdfl.base.workers import Threads
from p2pdfl.chain.client import Block, ChainClient
from p2pdfl.chain.rpc import ChainUnreachable
from p2pdfl.chain.sender import Receipt
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.event_log import EventLog
from p2pdfl.protocol.events import SubmitAnchor

ANSWER_S = 0.1
"""What each question takes."""


CONFIRMED = b"\x01" * 32


class Chain:
    """Anchors, as the contract takes them."""

    def __init__(self, *, back_s: float, confirm_s: float = 0.0) -> None:
        self.back_s = back_s
        self.confirm_s = confirm_s
        """Until what is anchored is confirmed."""
        self.anchored: dict[int, float] = {}
        """epoch -> when"""
        self.sent: list[tuple[str, int]] = []

    def reach(self) -> None:
        if trio.current_time() < self.back_s:
            raise ChainUnreachable("nobody listens")


class Member:
    """Its client."""

    def __init__(self, chain: Chain, name: str) -> None:
        self.chain = chain
        self.name = name

    def confirmed_block(self) -> Block:
        self.chain.reach()
        return Block(number=0, hash=CONFIRMED)

    def anchored_head(self, epoch: int, block: Digest | None = None) -> Digest | None:
        self.chain.reach()
        newest_s = trio.current_time() - (self.chain.confirm_s if block == CONFIRMED else 0.0)
        return bytes(32) if self.chain.anchored.get(epoch, inf) <= newest_s else None

    def anchor(self, *, head: Head, **_: object) -> Receipt:
        self.chain.reach()
        assert head.epoch == 0 or head.epoch - 1 in self.chain.anchored
        self.chain.sent.append((self.name, head.epoch))
        self.chain.anchored.setdefault(head.epoch, trio.current_time())
        return Receipt(tx=bytes(32), gas=0, block=0)


def anchor_of(epoch: int, *, delay_ms: int) -> SubmitAnchor:
    words = dict.fromkeys(("task", "parent", "contents", "state", "next_members", "chain_block"), bytes(32))
    certificate = Certificate(
        epoch=epoch, round=epoch, view=0, kind=4, head=bytes(32), ballots=(Ballot(member=0, signature=bytes(64)),)
    )
    return SubmitAnchor(
        head=Head(epoch=epoch, round=epoch, **words),
        certificate=certificate,
        members=(),
        next_members=(),
        delay_ms=delay_ms,
    )


@pytest.fixture
def event_log(tmp_path: Path) -> Iterator[EventLog]:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        yield event_log


class InVirtualTime(Threads):
    async def run(self, work: Callable[..., Any], *arguments: object, limiter: Any = None) -> Any:
        async with limiter:
            await trio.sleep(ANSWER_S)
            return work()


async def perform(chain: Chain, event_log: EventLog, owed: dict[str, list[SubmitAnchor]]) -> None:
    async with trio.open_nursery() as nursery:
        for name, anchors in owed.items():
            outbox = ChainOutbox(
                chain=cast("ChainClient", Member(chain, name)), workers=InVirtualTime(), event_log=event_log
            )
            for anchor in anchors:
                outbox.take(anchor, nursery)


@pytest.mark.parametrize("outage_s", [3, 20, 3_600])
async def test_an_anchor_follows_soon_after_an_outage_however_long_that_was(
    outage_s: float, event_log: EventLog, autojump_clock: trio.testing.MockClock
) -> None:
    chain = Chain(back_s=trio.current_time() + outage_s)
    await perform(chain, event_log, {"ada": [anchor_of(0, delay_ms=0)]})
    assert chain.back_s <= chain.anchored[0] <= chain.back_s + params.CHAIN_RETRY_S_MAX + 5 * ANSWER_S


async def test_anchors_of_an_outage_follow_in_order_and_each_is_sent_by_one_member(
    event_log: EventLog, autojump_clock: trio.testing.MockClock
) -> None:
    """Everybody's turn came while the chain was away: that time does not count."""
    chain = Chain(back_s=trio.current_time() + 600)
    owed = {
        name: [anchor_of(epoch, delay_ms=place * params.ANCHOR_STAGGER_MS) for epoch in range(12)]
        for place, name in enumerate(("ada", "bob", "cy"))
    }
    await perform(chain, event_log, owed)
    assert chain.sent == [("ada", epoch) for epoch in range(12)]


async def test_who_comes_next_sends_if_the_first_does_not(
    event_log: EventLog, autojump_clock: trio.testing.MockClock
) -> None:
    chain = Chain(back_s=trio.current_time() + 600)
    await perform(chain, event_log, {"bob": [anchor_of(0, delay_ms=params.ANCHOR_STAGGER_MS)]})
    waited_s = chain.anchored[0] - chain.back_s
    assert waited_s >= params.ANCHOR_STAGGER_MS / 1000
    assert waited_s <= params.ANCHOR_STAGGER_MS / 1000 + params.CHAIN_RETRY_S_MAX + 2


async def test_an_anchor_that_a_reorganization_drops_is_sent_again_in_turn(
    event_log: EventLog, autojump_clock: trio.testing.MockClock
) -> None:
    """Found by the true world: once mined it was nobody's any more."""
    chain = Chain(back_s=0.0, confirm_s=20.0)
    owed = {
        name: [anchor_of(0, delay_ms=place * params.ANCHOR_STAGGER_MS)] for place, name in enumerate(("ada", "bob"))
    }

    async def reorganize() -> None:
        await trio.sleep(10.0)
        chain.anchored.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reorganize)
        nursery.start_soon(perform, chain, event_log, owed)
    assert chain.sent == [("ada", 0), ("ada", 0)]
    assert 0 in chain.anchored


async def test_what_is_mined_is_not_waited_for_any_more_and_is_again_once_it_is_dropped(
    event_log: EventLog, autojump_clock: trio.testing.MockClock
) -> None:
    chain = Chain(back_s=0.0, confirm_s=20.0)
    outbox = ChainOutbox(chain=cast("ChainClient", Member(chain, "ada")), workers=InVirtualTime(), event_log=event_log)
    async with trio.open_nursery() as nursery:
        outbox.take(anchor_of(0, delay_ms=0), nursery)
        start_s = trio.current_time()
        await outbox.wait_until_done(60.0)
        assert trio.current_time() - start_s < 5.0
        chain.anchored.clear()
        await trio.sleep(5.0)
        assert 0 in chain.anchored
