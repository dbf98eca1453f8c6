"""One member's bodies; its network is real and lonely."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
import trio
import trio.testing
from net.loopback import network

from node.nodes import keys_of, learner, measured
from p2pdfl.base import params
from p2pdfl.base.workers import Threads
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.store import Store
from p2pdfl.node.updates import Updates
from p2pdfl.protocol.events import Train, UpdateHeld, WantUpdate

pytestmark = pytest.mark.net

AUTHOR = keys_of("ada").address
ORIGIN = b"12D3KooWCurTTa5np66RyZEinvc9EG7QLjJxww6dtrjg5DYsasUp"


class Scene:
    def __init__(
        self, updates: Updates, reported: trio.MemoryReceiveChannel[UpdateHeld], good: bytes, addresses: list[str]
    ) -> None:
        self.updates = updates
        self.reported = reported
        self.good = good
        self.addresses = addresses
        """Where its network listens."""

    async def want(self, update: bytes, author: bytes = AUTHOR) -> None:
        want = WantUpdate(round=3, author=author, update=sha256(update).digest(), fetch=False)
        await self.updates.want(want, None)

    async def next_report(self) -> tuple[bytes, bool]:
        with trio.fail_after(5):
            report = await self.reported.receive()
        return report.author, report.valid


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    task = measured()
    compute = Compute(learner(task), task.task_id(), keys_of("ada"), secrets.token_bytes)
    state = compute.initial_state()
    good = compute.train(Train(round=3, parent_state=state.digest(), seed=bytes(32)), state)
    send, reported = trio.open_memory_channel[UpdateHeld](10)
    with Store(tmp_path / "store.sqlite") as store, EventLog(tmp_path / "events.jsonl") as event_log:
        async with network("alone") as alone, trio.open_nursery() as nursery:
            updates = Updates(
                compute=compute,
                store=store,
                network=alone,
                workers=Threads(),
                event_log=event_log,
                nursery=nursery,
                report=send.send,
                rng=random.Random(0),
            )
            yield Scene(updates, reported, good, alone.addresses)
            nursery.cancel_scope.cancel()


async def test_a_body_that_is_wanted_is_reported_and_on_disk(scene: Scene) -> None:
    await scene.want(scene.good)
    scene.updates.receive(scene.good, ORIGIN)
    assert await scene.next_report() == (AUTHOR, True)
    assert scene.updates.store.blob(sha256(scene.good).digest()) == scene.good


async def test_a_body_that_overtakes_its_commit_is_kept_also_over_a_round(scene: Scene) -> None:
    scene.updates.receive(scene.good, ORIGIN)
    scene.updates.forget_wanted()
    await scene.want(scene.good)
    assert await scene.next_report() == (AUTHOR, True)


async def test_a_body_from_before_a_restart_is_found_on_disk(scene: Scene) -> None:
    scene.updates.store.put_blob(sha256(scene.good).digest(), scene.good)
    await scene.want(scene.good)
    assert await scene.next_report() == (AUTHOR, True)


async def test_a_body_under_anothers_header_is_reported_invalid_for_who_took_it(scene: Scene) -> None:
    thief = keys_of("bob").address
    await scene.want(scene.good, thief)
    await scene.want(scene.good)
    scene.updates.receive(scene.good, ORIGIN)
    assert {await scene.next_report(), await scene.next_report()} == {(thief, False), (AUTHOR, True)}


async def test_bytes_that_are_no_update_are_reported_and_not_kept(scene: Scene) -> None:
    await scene.want(b"junk")
    scene.updates.receive(b"junk", ORIGIN)
    assert await scene.next_report() == (AUTHOR, False)
    assert scene.updates.store.blob(sha256(b"junk").digest()) is None
    assert scene.updates.event_log.refused == {"update has the wrong length": 1}


async def test_nobody_fills_the_memory_with_bodies_that_nothing_names(scene: Scene) -> None:
    for count in range(1000):
        scene.updates.receive(bytes(1000) + count.to_bytes(2, "big"), ORIGIN)
        scene.updates.announced(count.to_bytes(32, "big"), ORIGIN)
    assert len(scene.updates._orphans[ORIGIN]) == params.ORPHAN_BODIES_PER_MEMBER_MAX
    assert len(scene.updates._announced) == 1


async def test_a_member_does_not_push_out_anothers_body(scene: Scene) -> None:
    scene.updates.receive(scene.good, ORIGIN)
    for count in range(10):
        scene.updates.receive(bytes([count]), b"eve's peer id")
    await scene.want(scene.good)
    assert await scene.next_report() == (AUTHOR, True)


async def test_gossip_longer_than_an_inline_body_is_refused(scene: Scene) -> None:
    scene.updates.receive(bytes(params.UPDATE_INLINE_BYTES_MAX + 1), ORIGIN)
    assert scene.updates.event_log.refused == {"update is too long": 1}
    assert not scene.updates._orphans


async def test_what_no_one_has_is_asked_for_again(scene: Scene) -> None:
    want = WantUpdate(round=3, author=AUTHOR, update=sha256(scene.good).digest(), fetch=True)
    await scene.updates.want(want, None)
    await trio.testing.wait_all_tasks_blocked()
    assert not scene.updates._fetching
    scene.updates.receive(scene.good, ORIGIN)
    assert await scene.next_report() == (AUTHOR, True)


@pytest.mark.slow
async def test_a_body_is_pulled_from_who_announced_it(scene: Scene) -> None:
    digest = sha256(scene.good).digest()
    async with network("author", scene.addresses, blob_source={digest: scene.good}.get) as author:
        with trio.fail_after(10):
            await scene.updates.network.wait_connected(1)
        await scene.want(scene.good)
        scene.updates.announced(digest, author.peer_id)
        assert await scene.next_report() == (AUTHOR, True)


@pytest.mark.slow
async def test_a_pull_ends_with_its_round(scene: Scene) -> None:
    asked, never = trio.Event(), trio.Event()

    def hold(digest: bytes) -> bytes | None:
        trio.from_thread.run_sync(asked.set)
        trio.from_thread.run(never.wait)
        return None

    digest = sha256(scene.good).digest()
    want = WantUpdate(round=3, author=AUTHOR, update=digest, fetch=True)
    async with network("slow", scene.addresses, blob_source=hold) as slow:
        with trio.fail_after(10):
            await scene.updates.network.wait_connected(1)
            await scene.updates.want(want, slow.peer_id)
            await asked.wait()
            scene.updates.forget_wanted()
            while scene.updates._fetching:
                await trio.lowlevel.checkpoint()
        never.set()
