"""The contract's artefact, and between its words and the package's types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

from eth_typing import ABI
from eth_utils.address import to_canonical_address

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Ballot, BlockNumber, Digest, Head, Point, Registration, Signature

EVIDENCE_EQUIVOCATION = 5
"""`Slashed.evidence` for equivocation; a verdict's is its `types.Outcome`."""


@dataclass(frozen=True, slots=True)
class Artefact:
    abi: ABI
    bytecode: bytes
    runtime: bytes
    """What is deployed, but for the immutables that the constructor appends."""


@cache
def artefact() -> Artefact:
    content = json.loads(files("p2pdfl.chain").joinpath("P2PDFL.json").read_text(encoding="utf-8"))
    return Artefact(
        abi=cast("ABI", content["abi"]),
        bytecode=bytes.fromhex(content["bytecode"].removeprefix("0x")),
        runtime=bytes.fromhex(content["runtime"].removeprefix("0x")),
    )


def rules(task: Task) -> tuple[Digest, int, int, int, int, int, int, int, int, int, int]:
    """The constructor's arguments, and what `rules()` must answer."""
    return (
        task.task_id(),
        task.members_min,
        task.epoch_rounds,
        task.epoch_count,
        task.total_rounds,
        task.verdict_rounds,
        task.deposit_wei,
        task.verdict_slash_wei,
        task.equivocation_slash_wei,
        task.cooldown_blocks,
        task.stall_blocks,
    )


HeadWords = tuple[Digest, int, int, Digest, Digest, Digest, Digest, Digest]


def head_words(head: Head) -> HeadWords:
    return (
        head.task,
        head.epoch,
        head.round,
        head.parent,
        head.contents,
        head.state,
        head.next_members,
        head.chain_block,
    )


def signed_by(ballots: Sequence[Ballot]) -> tuple[int, list[bytes], list[bytes]]:
    """bitmap, rs, vss of ballots that ascend by member."""
    bitmap = sum(1 << ballot.member for ballot in ballots)
    halves = [signature_halves(ballot.signature) for ballot in ballots]
    return bitmap, [r for r, _ in halves], [vs for _, vs in halves]


def signature_halves(signature: Signature) -> tuple[bytes, bytes]:
    return signature[:32], signature[32:]


def registration_of(entry: Sequence[Any], deposit_wei: int) -> Registration:
    """From the contract's struct.  Whoever lost of its deposit, and so is to be left out of the next lists, shows as
    exiting.  Raises ValueError."""
    account, peer_id, pvss_x, pvss_y, deposit, is_exiting = entry
    return Registration(
        address=to_canonical_address(account),
        peer_id=bytes(peer_id),
        pvss_key=_point(pvss_x, pvss_y),
        exiting=is_exiting or deposit < deposit_wei,
    )


def _point(x: int, y: int) -> Point:
    return bytes([2 + (y & 1)]) + x.to_bytes(32, "big")


# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    tx: Digest
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(_Event):
    address: Address
    peer_id: bytes
    pvss_key: Point
    deposit_wei: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    list_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored(_Event):
    epoch: int
    round: int
    head: Digest
    view: int
    bitmap: int
    """Bit i: member i's signature was among those counted."""
    sender: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Slashed(_Event):
    address: Address
    amount_wei: int
    evidence: int
    """A verdict's `types.Outcome`, or EVIDENCE_EQUIVOCATION."""
    round: int
    """The audited round, or the round of the slot signed twice."""
    sender: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRequested(_Event):
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn(_Event):
    address: Address
    amount_wei: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(_Event):
    address: Address
    amount_wei: int


Event = Registered | Started | Anchored | Slashed | ExitRequested | Withdrawn | Claimed


def event_of(name: str, values: dict[str, Any], tx: Digest, block: int) -> Event:
    """A decoded log.  Raises KeyError or ValueError for one that this contract does not write."""
    match name:
        case "Registered":
            return Registered(
                tx=tx,
                block=block,
                address=to_canonical_address(values["account"]),
                peer_id=bytes(values["peer_id"]),
                pvss_key=_point(values["pvss_x"], values["pvss_y"]),
                deposit_wei=values["deposit"],
            )
        case "Started":
            return Started(tx=tx, block=block, list_hash=bytes(values["list_hash"]))
        case "Anchored":
            return Anchored(
                tx=tx,
                block=block,
                epoch=values["epoch"],
                round=values["round"],
                head=bytes(values["head"]),
                view=values["view_number"],
                bitmap=values["bitmap"],
                sender=to_canonical_address(values["sender"]),
            )
        case "Slashed":
            return Slashed(
                tx=tx,
                block=block,
                address=to_canonical_address(values["member"]),
                amount_wei=values["amount"],
                evidence=values["evidence"],
                round=values["round"],
                sender=to_canonical_address(values["sender"]),
            )
        case "ExitRequested":
            return ExitRequested(tx=tx, block=block, address=to_canonical_address(values["account"]))
        case "Withdrawn":
            return Withdrawn(
                tx=tx, block=block, address=to_canonical_address(values["account"]), amount_wei=values["amount"]
            )
        case "Claimed":
            return Claimed(
                tx=tx, block=block, address=to_canonical_address(values["account"]), amount_wei=values["amount"]
            )
        case _:
            raise ValueError(f"unknown event {name}")


def registrations_at(events: Iterable[Event], block: BlockNumber, deposit_wei: int) -> list[Registration]:
    """What `registrations()` answered as of a block, from the contract's events up to it; ascending by address."""
    registered: dict[Address, Registered] = {}
    deposits: dict[Address, int] = {}
    exiting: set[Address] = set()
    for event in events:
        if event.block > block:
            continue
        match event:
            case Registered():
                registered[event.address] = event
                deposits[event.address] = event.deposit_wei
            case Slashed() | Withdrawn() if event.address in registered:
                deposits[event.address] -= event.amount_wei
            case ExitRequested():
                exiting.add(event.address)
            case _:
                pass
    return [
        Registration(
            address=address,
            peer_id=registered[address].peer_id,
            pvss_key=registered[address].pvss_key,
            exiting=address in exiting or deposits[address] < deposit_wei,
        )
        for address in sorted(registered)
    ]


def started_with(events: Iterable[Event], before: Iterable[Registration] = ()) -> list[Registration]:
    """The registrations that `start` found.  It took all that had not asked to leave, whatever was left of their
    deposits; so whoever had lost of it does not show as exiting here.

    ATTACK: whoever registers, asks to leave or is slashed before the start, or later in the same block, must not give
    the members another first list than the contract has installed.  events: in the chain's order, all of them, or those
    of the start's block with the registrations before that, `registration_of` a deposit of 0."""
    found = {entry.address: entry for entry in before}
    for event in events:
        match event:
            case Started():
                break
            case Registered():
                found[event.address] = Registration(
                    address=event.address, peer_id=event.peer_id, pvss_key=event.pvss_key, exiting=False
                )
            case ExitRequested() if event.address in found:
                found[event.address] = found[event.address].replace(exiting=True)
            case _:
                pass
    return [found[address] for address in sorted(found)]
