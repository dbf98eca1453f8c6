"""What a peer writes about itself, line by line in events.jsonl and at its end in result.json, read back.

A peer may be killed in the middle of a line and a Byzantine one may write anything, so a line that does not fit is
counted and passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from p2pdfl.base import bounded_json
from p2pdfl.base.config_file import explain
from p2pdfl.scenario.spec import PHASES, Phase, Place

LINE_BYTES_MAX = 1 << 20

Hex = Annotated[str, AfterValidator(lambda value: value.lower().removeprefix("0x"))]
"""A digest; one spelling, so that digests from peers and from the chain compare."""
Address = Annotated[str, AfterValidator(str.lower)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    ms: int = 0
    """Since the peer's start."""


class Started(_Line):
    event: Literal["started"]
    address: Address
    peer_id: str


class Connected(_Line):
    event: Literal["connected"]
    count: int


class Lost(_Line):
    """A member that this peer was connected to."""

    event: Literal["lost"]
    peer_id: str


class Found(_Line):
    event: Literal["found"]
    peer_id: str


class Registered(_Line):
    event: Literal["registered"]
    tx: str | None = None


class Joined(_Line):
    """From a checkpoint that another member handed out."""

    event: Literal["joined"]
    epoch: int
    round: int
    checkpoint_bytes: int
    state_bytes: int
    peer_id: str


class Members(_Line):
    event: Literal["members"]
    epoch: int
    addresses: tuple[Address, ...]


class PhaseEntered(_Line):
    event: Literal["phase"]
    round: int
    view: int = 0
    phase: Phase

    @property
    def place(self) -> Place:
        return Place(self.round, PHASES.index(self.phase))


class BeaconKnown(_Line):
    event: Literal["beacon"]
    round: int
    value: Hex


class RoundClosed(_Line):
    event: Literal["round"]
    round: int
    epoch: int
    view: int
    head: Hex
    state: Hex
    accuracy: float | None = None
    seconds: float
    commits: int
    updates: int
    update_bytes: int
    """Of all of them, as they were sent."""
    bytes_sent: int
    """Since the peer's start, at the socket."""


class AuditDone(_Line):
    event: Literal["audit"]
    round: int
    target: Address
    audited_round: int
    outcome: str
    """As the auditor sees it: `false` means that it replayed the update and found it right."""


class Accusation(_Line):
    event: Literal["accusation"]
    round: int
    accuser: Address
    accused: Address
    audited_round: int


class VerdictListed(_Line):
    event: Literal["verdict"]
    round: int
    accuser: Address
    accused: Address
    audited_round: int
    outcome: str


class Ban(_Line):
    event: Literal["ban"]
    round: int
    """Whose head lists it."""
    member: Address
    evidence: str
    accuser: Address | None = None
    """Of the verdict, as all that follows; an equivocation has none."""
    audited_round: int | None = None
    verdict_round: int | None = None
    """The one in which the update was audited and judged."""


class AnchorSent(_Line):
    event: Literal["anchor"]
    epoch: int
    round: int
    head: Hex
    tx: str
    gas: int | None = None


class SlashSent(_Line):
    event: Literal["slash"]
    member: Address
    evidence: str
    tx: str


class Finished(_Line):
    event: Literal["finished"]


Event = (
    Started
    | Connected
    | Lost
    | Found
    | Registered
    | Joined
    | Members
    | PhaseEntered
    | BeaconKnown
    | RoundClosed
    | AuditDone
    | Accusation
    | VerdictListed
    | Ban
    | AnchorSent
    | SlashSent
    | Finished
)

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
_KNOWN = frozenset(get_args(kind.model_fields["event"].annotation)[0] for kind in get_args(Event))

SECONDS = ("train", "audit", "crypto", "network_wait", "chain")


class PeerResult(BaseModel):
    """result.json: what a peer says when it has come to the end."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    address: Address
    rounds: int
    first_round: int = 0
    """Of those that it closed itself: it may have joined from a checkpoint."""
    state: Hex
    accuracy: float | None = None
    heads: dict[int, Hex]
    seconds: dict[str, float] = {}
    bytes_sent: int = 0
    refused: dict[str, int] = {}


E = TypeVar("E", bound=_Line)


@dataclass(slots=True, kw_only=True)
class PeerRecord:
    """All that one peer has told so far, and how its process ended."""

    name: str
    events: list[Event] = field(default_factory=list)
    address: str | None = None
    peer_id: str | None = None
    starts_s: list[float] = field(default_factory=lambda: [math.inf])
    """When its own clock, that of `ms`, was at 0, on the reader's clock: at the latest.  One for each of its lives."""
    phase: PhaseEntered | None = None
    """The last one; who was started again goes through earlier rounds once more."""
    place: Place | None = None
    """The furthest that it has been."""
    rounds: dict[int, RoundClosed] = field(default_factory=dict)
    finished: bool = False
    result: PeerResult | None = None
    exit_code: int | None = None
    """None while it runs; negative: killed by that signal."""
    malformed_lines: int = 0
    _lives: list[int] = field(default_factory=list)
    """In which of its lives it told each event."""

    def start_again(self) -> None:
        """What comes now is of another process, with a clock of its own."""
        self.starts_s.append(math.inf)
        self.exit_code = None

    def add(self, line: bytes, now_s: float = math.inf) -> None:
        try:
            fields = bounded_json.loads(line)
            if isinstance(fields, dict) and isinstance(fields.get("event"), str) and fields["event"] not in _KNOWN:
                return  # a newer peer may tell more than this reader knows
            event = _EVENT.validate_python(fields)
        except ValueError:
            self.malformed_lines += 1
            return
        self.events.append(event)
        self._lives.append(len(self.starts_s) - 1)
        self.starts_s[-1] = min(self.starts_s[-1], now_s - event.ms / 1000)
        match event:
            case Started():
                self.address = event.address
                self.peer_id = event.peer_id
            case PhaseEntered():
                self.phase = event
                self.place = event.place if self.place is None else max(self.place, event.place)
            case RoundClosed():
                self.rounds[event.round] = event
            case Finished():
                self.finished = True
            case _:
                pass

    def all(self, kind: type[E]) -> Iterator[E]:
        return (event for event in self.events if isinstance(event, kind))

    def timed(self, kind: type[E]) -> Iterator[tuple[float, E]]:
        """With the second in which it was told, on the reader's clock."""
        for event, life in zip(self.events, self._lives, strict=True):
            if isinstance(event, kind):
                yield self.starts_s[life] + event.ms / 1000, event

    @property
    def round(self) -> int | None:
        """The round it works on, or the last one that it closed."""
        if self.phase is not None:
            return self.phase.round
        return max(self.rounds, default=None)

    @property
    def accuracy(self) -> float | None:
        """The newest that it measured."""
        measured = {round: line.accuracy for round, line in self.rounds.items() if line.accuracy is not None}
        return measured[max(measured)] if measured else None


class EventTail:
    """Follows one events.jsonl while another process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """Whole lines that came since the last call; none as long as there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read()
        except FileNotFoundError:
            return []
        self._read_bytes += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest = b""
        return [line for line in whole if line.strip()]


def read_result(path: Path) -> PeerResult | None:
    """None if there is none.  Raises ValueError, naming the field, if it does not fit."""
    try:
        return PeerResult.model_validate(bounded_json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_record(home: Path, name: str) -> PeerRecord:
    """The record of a peer whose process is over."""
    record = PeerRecord(name=name)
    for line in EventTail(home / "events.jsonl").lines():
        record.add(line)
    record.result = read_result(home / "result.json")
    return record
