"""The chain's events, as chain.json has them: who was registered when, what was anchored, who was slashed.

The file is the word of whoever ran the chain.  What the members signed is bound to it from both sides: round 0's parent
names the list and the block that closed registration, and no dealing verifies under other keys than those it was made
for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from p2pdfl.base.config_file import explain
from p2pdfl.base.types import BlockNumber, Digest, Registration
from p2pdfl.chain.contract import (
    Anchored,
    Claimed,
    Event,
    ExitRequested,
    Registered,
    Slashed,
    Started,
    Withdrawn,
    registrations_at,
    started_with,
)
from p2pdfl.crypto import group
from p2pdfl.verify.files import RECORD_BYTES_MAX, BadFile, read_json

E = TypeVar("E", bound=Event)

_EVENTS: Mapping[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (Registered, Started, Anchored, Slashed, ExitRequested, Withdrawn, Claimed)
}


@dataclass(frozen=True, kw_only=True)
class ChainExport:
    events: tuple[Event, ...]
    numbers: Mapping[Digest, BlockNumber]
    """Of the blocks that heads name, by hash."""
    deposit_wei: int

    def of(self, kind: type[E]) -> tuple[E, ...]:
        return tuple(event for event in self.events if isinstance(event, kind))

    def registrations(self, number: BlockNumber) -> Sequence[Registration]:
        return registrations_at(self.events, number, self.deposit_wei)

    def started_with(self) -> list[Registration]:
        return started_with(self.events)

    def block_hash(self, number: BlockNumber) -> Digest | None:
        return next((block for block, other in self.numbers.items() if other == number), None)


def load(path: Path, deposit_wei: int) -> ChainExport:
    """Raises BadFile."""
    content = read_json(path, RECORD_BYTES_MAX)
    if not isinstance(content, dict):
        raise BadFile(f"{path.name}: is no table")
    events, blocks = content.get("events"), content.get("blocks")
    if not isinstance(events, list) or not isinstance(blocks, list):
        raise BadFile(f"{path.name}: has no lists of events and blocks")
    try:
        export = ChainExport(
            events=tuple(_event(fields) for fields in events),
            numbers=_numbers(blocks),
            deposit_wei=deposit_wei,
        )
        for registration in export.registrations(2**64):
            group.check(registration.pvss_key)
    except ValidationError as error:
        raise BadFile(f"{path.name}: {explain(error)}") from None
    except ValueError as error:
        raise BadFile(f"{path.name}: {error}") from None
    return export


def _event(fields: Any) -> Event:
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        raise BadFile("chain.json: an event without its name")
    kind = _EVENTS.get(fields["event"])
    if kind is None:
        raise BadFile(f"chain.json: no event of the contract: {fields['event']}")
    values = {name: _plain(value) for name, value in fields.items() if name != "event"}
    event: Event = kind.validate_python(values)
    if {name: (type(value), value) for name, value in values.items()} != {
        name: (type(value), value) for name, value in asdict(event).items()
    }:
        raise BadFile(f"chain.json: not the fields of {fields['event']}")
    return event


def _numbers(blocks: list[Any]) -> dict[Digest, BlockNumber]:
    pairs = TypeAdapter(list[tuple[Digest, BlockNumber]]).validate_python(
        [(_plain(block.get("hash")), _plain(block.get("number"))) for block in blocks if isinstance(block, dict)],
        strict=True,
    )
    if len(pairs) < len(blocks):
        raise BadFile("chain.json: a block is no table")
    numbers = dict(pairs)
    if len(set(numbers.values())) < len(pairs):
        raise BadFile("chain.json: two blocks of one number, or one of two")
    return numbers


def _plain(value: Any) -> Any:
    """Bytes from their hexadecimal form; numbers as the chain has them."""
    if isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**256:
        return value
    raise BadFile("chain.json: a value that no event of the contract has")
