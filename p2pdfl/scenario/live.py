"""What a run looks like while it goes on: a table in a terminal, a line per change of round elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2pdfl.scenario.events import Accusation, AnchorSent, AuditDone, Ban, PeerRecord
from p2pdfl.scenario.spec import Scenario
from p2pdfl.scenario.summary import describe_end

PLAIN_LINE_S = 10.0
"""Without a terminal, at least one line this often, so that a log shows that the run is alive."""


class Display(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, records: Sequence[PeerRecord], elapsed_s: float) -> None: ...

    def say(self, text: str) -> None: ...


def display(console: Console, scenario: Scenario) -> Display:
    return LiveTable(console, scenario) if console.is_terminal else PlainLines(console, scenario)


class LiveTable:
    def __init__(self, console: Console, scenario: Scenario) -> None:
        self._scenario = scenario
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, records: Sequence[PeerRecord], elapsed_s: float) -> None:
        self._live.update(table(self._scenario, records, elapsed_s))

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)


class PlainLines:
    def __init__(self, console: Console, scenario: Scenario) -> None:
        self._console = console
        self._scenario = scenario
        self._last = ""
        self._last_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, records: Sequence[PeerRecord], elapsed_s: float) -> None:
        news = line(self._scenario, records)
        if news != self._last or elapsed_s - self._last_s >= PLAIN_LINE_S:
            self._last, self._last_s = news, elapsed_s
            measured = [record.accuracy for record in running(self._scenario, records) if record.accuracy is not None]
            accuracy = f"; accuracy {min(measured):.3f}" if measured else ""
            self.say(f"[{elapsed_s:4.0f} s] {news}{accuracy}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def table(scenario: Scenario, records: Sequence[PeerRecord], elapsed_s: float) -> Table:
    names = names_by_address(records)
    bans = banned(scenario, records)
    anchored = {event.epoch for record in records for event in record.all(AnchorSent)}
    result = Table(
        title=f"{scenario.name}  {elapsed_s:.0f} s  anchored epochs: {len(anchored)} of {scenario.task.epoch_count}",
        title_justify="left",
    )
    for heading in ("peer", "behaviour", "round", "phase", "accuracy", "audits", "accusations", "state"):
        result.add_column(heading)
    for record in records:
        byzantine = scenario.behaviours.get(record.name)
        audits = sum(1 for _ in record.all(AuditDone))
        accused = sorted({names.get(item.accused, item.accused[:10]) for item in _own_accusations(record)})
        result.add_row(
            record.name,
            "honest" if byzantine is None else f"{byzantine.behaviour} from {byzantine.from_round}",
            "-" if record.round is None else f"{record.round}/{scenario.task.total_rounds - 1}",
            record.phase.phase if record.phase else "joining",
            "" if record.accuracy is None else f"{record.accuracy:.3f}",
            str(audits) if audits else "",
            ", ".join(accused),
            _state(record, bans),
        )
    return result


def line(scenario: Scenario, records: Sequence[PeerRecord]) -> str:
    """Changes only with rounds, accusations, bans and ends."""
    honest = running(scenario, records)
    rounds = [record.round for record in honest if record.round is not None]
    names = names_by_address(records)
    parts = [f"round {min(rounds)} of {scenario.task.total_rounds - 1}" if rounds else "peers join"]
    accusations = {
        (item.accuser, item.accused, item.audited_round) for record in honest for item in record.all(Accusation)
    }
    if accusations:
        parts.append(f"accusations: {len(accusations)}")
    bans = banned(scenario, records)
    if bans:
        parts.append("banned: " + ", ".join(f"{names.get(a, a)} ({ban.evidence})" for a, ban in sorted(bans.items())))
    finished = sum(1 for record in records if record.finished)
    if finished:
        parts.append(f"finished: {finished}")
    return "; ".join(parts)


def running(scenario: Scenario, records: Sequence[PeerRecord]) -> list[PeerRecord]:
    """The honest peers that are at it, or through."""
    return [
        record
        for record in records
        if record.name not in scenario.behaviours and (record.exit_code is None or record.result is not None)
    ]


def names_by_address(records: Sequence[PeerRecord]) -> dict[str, str]:
    return {record.address: record.name for record in records if record.address is not None}


def banned(scenario: Scenario, records: Sequence[PeerRecord]) -> dict[str, Ban]:
    """As honest peers see it."""
    bans: dict[str, Ban] = {}
    for record in records:
        if record.name not in scenario.behaviours:
            for ban in record.all(Ban):
                bans.setdefault(ban.member, ban)
    return bans


def _own_accusations(record: PeerRecord) -> list[Accusation]:
    return [item for item in record.all(Accusation) if item.accuser == record.address]


def _state(record: PeerRecord, bans: dict[str, Ban]) -> Text:
    ban = bans.get(record.address or "")
    if ban is not None:
        return Text(f"banned in round {ban.round}: {ban.evidence}", style="red")
    if record.finished:
        return Text("finished", style="green")
    if record.exit_code is not None:
        return Text(describe_end(record), style="yellow")
    return Text("running" if record.address else "starting")
