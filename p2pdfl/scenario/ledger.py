"""The chain as a run's judge: the task is published there before, and read there after, whatever the peers may say."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from web3.types import RPCEndpoint

from p2pdfl.base.task import Deployment, Task, TaskFile
from p2pdfl.base.types import Digest, Outcome
from p2pdfl.chain.client import Block, ChainClient, deploy
from p2pdfl.chain.contract import EVIDENCE_EQUIVOCATION, Anchored, Event, Slashed
from p2pdfl.chain.devchain import DEPLOYER_SECRET
from p2pdfl.chain.rpc import HttpRpc
from p2pdfl.scenario.rows import AnchorRow, SlashRow

EVIDENCE_NAMES = {**{int(outcome): outcome.name.lower() for outcome in Outcome}, EVIDENCE_EQUIVOCATION: "equivocation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecord:
    events: list[Event]
    blocks: list[Block]
    """The block that closed registration, and those that heads name, as far as they are on the chain; ascending."""
    anchors: list[AnchorRow]
    slashes: list[SlashRow]


def publish(rpc: str, task: Task) -> TaskFile:
    """Deploys the contract on an embedded chain, paid by one of its own accounts.  Raises ChainError."""
    return TaskFile(task=task, chain=deploy(rpc, DEPLOYER_SECRET, task))


def read(file: TaskFile, named: Collection[Digest] = ()) -> ChainRecord:
    """Everything that happened in the contract.  named: blocks that heads name.  Raises ChainError."""
    assert file.chain is not None, "the task is published"
    client = ChainClient(file.chain, file.task)
    try:
        events = client.events(0)
        blocks = [client.start_block(), *(client.block_of(block) for block in named)]
    finally:
        client.close()
    return ChainRecord(
        events=events,
        blocks=sorted({block for block in blocks if block is not None}),
        anchors=[_anchor(event, file.chain) for event in events if isinstance(event, Anchored)],
        slashes=[
            SlashRow(
                member="0x" + event.address.hex(),
                wei=event.amount_wei,
                evidence=EVIDENCE_NAMES.get(event.evidence, str(event.evidence)),
                tx="0x" + event.tx.hex(),
            )
            for event in events
            if isinstance(event, Slashed)
        ],
    )


def export(path: Path, file: TaskFile, record: ChainRecord) -> None:
    assert file.chain is not None, "the task is published"
    content = {
        "note": "events of the task's contract as reported by this machine's own development chain",
        **file.chain.model_dump(mode="json"),
        "blocks": [{"number": block.number, "hash": "0x" + block.hash.hex()} for block in record.blocks],
        "events": [_as_json(event) for event in record.events],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _anchor(event: Anchored, deployment: Deployment) -> AnchorRow:
    tx = "0x" + event.tx.hex()
    return AnchorRow(epoch=event.epoch, round=event.round, head=event.head.hex(), tx=tx, gas=_gas_used(deployment, tx))


def _gas_used(deployment: Deployment, tx: str) -> int | None:
    rpc = HttpRpc(deployment.rpc)
    try:
        receipt: Any = rpc.make_request(RPCEndpoint("eth_getTransactionReceipt"), [tx]).get("result")
    finally:
        rpc.close()
    used = receipt.get("gasUsed") if isinstance(receipt, dict) else None
    return int(used, 16) if isinstance(used, str) else None


def _as_json(event: Event) -> dict[str, Any]:
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {
        "event": type(event).__name__,
        **{name: "0x" + value.hex() if isinstance(value, bytes) else value for name, value in values.items()},
    }
