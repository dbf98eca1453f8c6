"""Where a peer takes a run up, over real sockets and a real chain."""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from node.nodes import Place, Town, keys_of, learner, measured, place, town_at
from p2pdfl.base import params
from p2pdfl.base.codec import encode
from p2pdfl.base.workers import Threads
from p2pdfl.net import Network, Refused
from p2pdfl.node import checkpoint_sync
from p2pdfl.node.checkpoint_sync import CHECKPOINT_PROTOCOL, CheckpointSync, Position
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.node import NodeResult, admit
from p2pdfl.node.store import Store
from p2pdfl.protocol.checkpoint import CheckpointReply

pytestmark = [pytest.mark.net, pytest.mark.slow]

NAMES = ("ada", "bob", "cyd")
EPOCH_ROUNDS = 6

Told = list[tuple[str, dict[str, object]]]


class InOrder(random.Random):
    """Asks ada first, then bob, then cyd."""

    def __init__(self, here: Town) -> None:
        super().__init__(0)
        self._order = [here.networks[name].peer_id for name in NAMES]

    def shuffle(self, items: list[bytes]) -> None:  # type: ignore[override]
        items.sort(key=self._order.index)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What three members have on disk, and the chain, when the first two of four epochs are anchored; late is
    registered."""
    task = measured(
        members_min=3,
        training_rounds=21,
        epoch_rounds=EPOCH_ROUNDS,
        commit_ms=1500,
        view_ms=1000,
        outer_momentum=0.5,
        outer_learning_rate=0.7,
    )

    async def until_two_are_anchored(at: Place) -> None:
        async with town_at(at, limit_s=120.0) as here:
            await here.found(*NAMES)
            await here.open("late")
            await trio.to_thread.run_sync(here.at.register, "late", here.networks["late"].peer_id)
            await here.begin(*NAMES)
            client = here.at.client("late")
            while await trio.to_thread.run_sync(client.next_epoch) < 2:  # noqa: ASYNC110  the chain is polled
                await trio.sleep(0.05)
            client.close()

    with place(tmp_path_factory.mktemp("two_epochs"), task) as at:
        with pytest.MonkeyPatch.context() as watching:
            # rounds are faster here than the chain, and late must be let in
            watching.setattr(params, "CHAIN_WATCH_S", 0.0)
            trio.run(until_two_are_anchored, at)
        yield at


Anchored = Callable[[], AbstractAsyncContextManager[Town]]


@pytest.fixture
def anchored(two_epochs: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anchored:
    """The three members going on from there, and the network of late, with whom they would talk."""
    monkeypatch.setattr(params, "CHAIN_WATCH_S", 0.0)

    @asynccontextmanager
    async def anchored() -> AsyncIterator[Town]:
        for name in NAMES:
            shutil.copytree(two_epochs.directory / name, tmp_path / name)
        snapshot = two_epochs.chain.request("evm_snapshot")
        try:
            async with town_at(replace(two_epochs, directory=tmp_path, addresses=[])) as here:
                await here.open(*NAMES, "late")
                await here.begin(*NAMES)
                await here.networks["late"].wait_connected(3)
                for name in NAMES:
                    await here.members[name].until_closed(0)  # its node answers
                yield here
        finally:
            assert two_epochs.chain.request("evm_revert", snapshot)

    return anchored


@asynccontextmanager
async def resumer(
    here: Town, name: str = "late"
) -> AsyncIterator[tuple[CheckpointSync, list[tuple[str, dict[str, object]]]]]:
    home = here.at.directory / name
    home.mkdir(exist_ok=True)
    told: Told = []
    config, genesis, client = here.at.config(), here.at.genesis(), here.at.client(name)
    network: Network = here.networks[name]
    admit(network, client.registrations())
    with (
        Store(home / "store.sqlite") as store,
        EventLog(home / "events.jsonl", lambda event, fields: told.append((event, dict(fields)))) as event_log,
    ):
        compute = Compute(learner(here.at.task), config.task_id, keys_of(name), secrets.token_bytes)
        yield (
            CheckpointSync(
                config=config,
                genesis=genesis,
                chain=client,
                store=store,
                network=network,
                workers=Threads(),
                event_log=event_log,
                compute=compute,
                rng=InOrder(here),
            ),
            told,
        )
    client.close()


async def position_of(here: Town) -> tuple[Position, Told]:
    async with resumer(here) as (one, told):
        return await one.position(), told


def assert_is_boundary(here: Town, position: Position) -> None:
    round = position.start.round
    assert round % EPOCH_ROUNDS == 0
    assert round >= EPOCH_ROUNDS
    assert position.start.head == here.members["bob"].node.store.heads()[round - 1]
    assert position.state.digest() == position.start.state
    assert position.state.momentum.any()


async def test_who_comes_with_an_empty_disk_joins_at_an_anchor_and_ends_as_all(anchored: Anchored) -> None:
    async with anchored() as here:
        position, told = await position_of(here)
        assert_is_boundary(here, position)
        assert [event for event, _ in told] == ["joined"]
        assert told[0][1]["peer_id"] == here.networks["ada"].peer_id.decode()
        await here.begin("late", position=position)
        results: list[NodeResult] = await here.done(*NAMES, "late")
        assert len({result.state for result in results}) == 1
        late = results[-1].heads
        assert min(late) == position.start.round
        assert late == {round: results[0].heads[round] for round in late}


async def test_what_was_pulled_is_on_disk_so_that_a_restart_needs_nobody(anchored: Anchored) -> None:
    async with anchored() as here:
        position, _ = await position_of(here)
        await here.stop(*NAMES)
        again, told = await position_of(here)
        assert (again.start, again.state.digest()) == (position.start, position.start.state)
        assert told == [
            ("resumed", {"epoch": position.start.round // EPOCH_ROUNDS - 1, "round": again.start.round - 1})
        ]


async def test_who_hands_out_another_checkpoint_than_the_anchored_one_is_blamed_and_passed_over(
    anchored: Anchored, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with anchored() as here:
        store = here.members["ada"].node.store

        def forge() -> None:
            checkpoint, _ = store.checkpoint(max(store.checkpoint_epochs()))
            forged = encode(checkpoint.replace(banned=(keys_of("bob").address,)))
            digest = sha256(forged).digest()
            store.put_blob(digest, forged)
            monkeypatch.setattr(store, "checkpoint_digest", lambda epoch: digest)

        await trio.to_thread.run_sync(forge)
        position, told = await position_of(here)
        assert_is_boundary(here, position)
        assert [event for event, _ in told] == ["checkpoint_refused", "joined"]
        assert told[1][1]["peer_id"] == here.networks["bob"].peer_id.decode()
        counters = here.networks["late"].counters
        assert counters["offence: checkpoint is not the anchored one"] == 1


@pytest.mark.parametrize("reply", [b"\xc0", encode(CheckpointReply(checkpoint=bytes(32)))])
async def test_who_answers_junk_or_offers_what_it_does_not_serve_costs_one_attempt(
    anchored: Anchored, reply: bytes
) -> None:
    async def answer(peer: bytes, request: bytes) -> bytes:
        return reply

    async with anchored() as here:
        here.networks["ada"].serve(CHECKPOINT_PROTOCOL, answer, request_bytes_max=64)
        position, told = await position_of(here)
        assert_is_boundary(here, position)
        assert told[-1][0] == "joined"
        assert told[-1][1]["peer_id"] == here.networks["bob"].peer_id.decode()


async def test_if_nobody_has_one_the_run_is_followed_from_its_first_round(anchored: Anchored) -> None:
    async def none(peer: bytes, request: bytes) -> bytes:
        return encode(CheckpointReply(checkpoint=None))

    async with anchored() as here:
        for name in NAMES:
            here.networks[name].serve(CHECKPOINT_PROTOCOL, none, request_bytes_max=64)
        position, told = await position_of(here)
        assert position.start.round == 0
        assert [event for event, _ in told] == ["no_checkpoint"]


async def test_who_does_not_answer_is_asked_again_and_not_for_ever(
    anchored: Anchored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_sync, "ASK_S", 1.0)
    monkeypatch.setattr(checkpoint_sync, "ASK_PAUSE_S", 0.1)
    asked: list[bytes] = []

    async def break_off(peer: bytes, request: bytes) -> bytes:
        asked.append(request)
        raise ValueError

    async with anchored() as here:
        for name in NAMES:
            here.networks[name].serve(CHECKPOINT_PROTOCOL, break_off, request_bytes_max=64)
        position, told = await position_of(here)
        assert position.start.round == 0
        assert [event for event, _ in told] == ["no_checkpoint"]
        assert len(asked) > 6


async def test_a_request_that_is_none_is_not_answered(anchored: Anchored) -> None:
    async with anchored() as here:
        with pytest.raises(Refused):
            await here.networks["late"].request(
                here.networks["ada"].peer_id, CHECKPOINT_PROTOCOL, b"junk", reply_bytes_max=64, timeout_s=5
            )
        assert here.members["ada"].event_log.refused["request is malformed"] == 1
