"""Against the real contract on the embedded chain; a member of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.nodes import Place, keys_of, measured, place
from p2pdfl.base import params
from p2pdfl.base.codec import body_digest
from p2pdfl.base.types import Ballot, Certificate, Close, Digest, Envelope, Head, Kind, Registration
from p2pdfl.base.workers import Threads
from p2pdfl.chain.client import Block, ChainClient
from p2pdfl.chain.rpc import Reverted
from p2pdfl.chain.sender import Receipt
from p2pdfl.crypto.envelope import Domain, Signer, head_digest
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.event_log import EventLog
from p2pdfl.protocol.events import SubmitAnchor

pytestmark = [pytest.mark.net, pytest.mark.slow]

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("chain"), measured(members_min=1, training_rounds=5)) as at:
        at.register("ada", b"ada's peer id")
        at.start("ada")
        yield at


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def outbox(at: Place, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChainOutbox]:
    monkeypatch.setattr(params, "CHAIN_RETRY_S", 0.02)
    client = at.client("ada")
    with EventLog(tmp_path / "events.jsonl", lambda event, fields: told.append((event, dict(fields)))) as event_log:
        yield ChainOutbox(chain=client, workers=Threads(), event_log=event_log)
    client.close()


def anchor(at: Place, epoch: int, *, parent: bytes = bytes(32), forged: bool = False) -> SubmitAnchor:
    task, ada = at.task, keys_of("ada")
    client = at.client("ada")
    list_hash = client.list_hash(0)
    client.close()
    assert list_hash is not None
    is_last = epoch == task.epoch_count - 1
    head = Head(
        task=task.task_id(),
        epoch=epoch,
        round=task.last_round_of(epoch),
        parent=parent,
        contents=bytes(32),
        state=bytes(32),
        next_members=bytes(32) if is_last else list_hash,
        chain_block=bytes(32),
    )
    envelope = Envelope(
        task=head.task,
        epoch=epoch,
        round=head.round,
        view=0,
        kind=Kind.CLOSE,
        body=body_digest(Close(head=head_digest(head))),
    )
    domain = Domain(chain_id=at.deployment.chain_id, contract=at.deployment.contract)
    signature = bytes(64) if forged else Signer(ada.chain_secret).sign(domain, envelope)
    ballots = (Ballot(member=0, signature=signature),)
    return SubmitAnchor(
        head=head,
        certificate=Certificate(epoch=epoch, round=head.round, view=0, kind=4, head=head_digest(head), ballots=ballots),
        members=(ada.address,),
        next_members=() if is_last else (ada.address,),
        delay_ms=0,
    )


async def perform(outbox: ChainOutbox, *owed: SubmitAnchor, patience_s: float = 20.0) -> None:
    async with trio.open_nursery() as nursery:
        for duty in owed:
            outbox.take(duty, nursery)
        await outbox.wait_until_done(patience_s)
        nursery.cancel_scope.cancel()


async def test_what_the_contract_refuses_is_told_once_and_given_up(at: Place, outbox: ChainOutbox, told: Told) -> None:
    await perform(outbox, anchor(at, 0, forged=True))
    assert [(event, fields["what"]) for event, fields in told] == [("chain_error", "SubmitAnchor")]
    assert "reverted" in told[0][1]["error"]


async def test_anchors_owed_together_go_in_order_and_only_once(at: Place, outbox: ChainOutbox, told: Told) -> None:
    """Whatever the order in which an outage left them."""
    assert at.task.epoch_count == 2
    await perform(outbox, anchor(at, 1), anchor(at, 0))
    assert [(event, fields["epoch"]) for event, fields in told] == [("anchor", 0), ("anchor", 1)]
    await perform(outbox, anchor(at, 0), anchor(at, 1))
    assert len(told) == 2


async def test_an_unknown_block_brings_the_newest_registry_only(outbox: ChainOutbox) -> None:
    (seen,) = await outbox.read_registry(bytes(32))
    assert [entry.address for entry in seen.registrations] == [keys_of("ada").address]
    again = await outbox.read_registry(seen.block)
    # a block mined in between is the newest one now, and comes beside the one asked for
    assert {block.number for block in again} in ({seen.number}, {seen.number, again[0].number})
    assert again[-1] == seen


async def test_the_same_question_is_asked_once_at_a_time(outbox: ChainOutbox) -> None:
    answers = []

    async def ask() -> None:
        answers.append(len(await outbox.read_registry()))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert sorted(answers) == [0, 0, 0, 0, 1]


async def test_a_chain_out_of_reach_is_told_and_the_duty_stays_owed(
    at: Place, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params, "CHAIN_RETRY_S", 0.02)
    with place(tmp_path, at.task) as other:
        client: ChainClient = other.client("ada")
    with EventLog(tmp_path / "events.jsonl", lambda event, fields: told.append((event, dict(fields)))) as event_log:
        outbox = ChainOutbox(chain=client, workers=Threads(), event_log=event_log)
        assert await outbox.read_registry() == []
        await perform(outbox, anchor(at, 0), patience_s=0.1)
    client.close()
    assert told[0][1]["what"] == "reading the registry"
    assert told[-1][1] == {"what": "finishing", "error": "1 transactions owed; a restart tries again"}
    assert not any("\n" in fields["error"] for _, fields in told)


class Reorganizing:
    """Refuses three times, mines the fourth, drops it, refuses once more, and then takes it."""

    address = b"\x01" * 20
    confirmed = bytes(32)

    def __init__(self) -> None:
        self.sent = 0
        self.is_dropped = False

    def confirmed_block(self) -> Block:
        return Block(1, self.confirmed)

    def registrations(self, block: Digest | None = None) -> list[Registration]:
        is_mined = self.sent == 4 and not self.is_dropped and block is None
        self.is_dropped |= is_mined
        is_there = is_mined or self.sent == 6
        return [Registration(address=self.address, peer_id=b"ada", pvss_key=b"\x02" * 33, exiting=is_there)]

    def request_exit(self) -> Receipt:
        self.sent += 1
        if self.sent in (1, 2, 3, 5):
            raise Reverted("not now")
        return Receipt(tx=bytes(32), gas=1, block=1)


async def test_refusals_before_and_after_a_reorganization_do_not_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(params, "CHAIN_RETRY_S", 0.01)
    chain: Any = Reorganizing()
    with EventLog(tmp_path / "events.jsonl", lambda event, fields: None) as event_log:
        outbox = ChainOutbox(chain=chain, workers=Threads(), event_log=event_log)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                outbox.leave(nursery)
    assert chain.sent == 6
