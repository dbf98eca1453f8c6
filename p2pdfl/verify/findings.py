"""What was found, check by check: for a person one line each, for a program the same as fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

TEXTS_MAX = 20
"""Problems told per check; the others are counted."""
TEXT_CHARACTERS_MAX = 400


class Check(StrEnum):
    """In the order in which they are told."""

    TASK = "task"
    REGISTRY = "registry"
    FILES = "files"
    HEADS = "heads"
    CERTIFICATES = "certificates"
    PROPOSALS = "proposals"
    COMMITS = "commits"
    BEACONS = "beacons"
    ASSIGNMENTS = "assignments"
    CASES = "cases"
    MEMBERS = "members"
    UPDATES = "updates"
    STATES = "states"
    REPLAYS = "replays"
    MODEL = "model"
    ANCHORS = "anchors"
    SLASHES = "slashes"


MEANINGS: Mapping[Check, str] = {
    Check.TASK: "the task's file is the one that the heads name",
    Check.REGISTRY: "chain events give the list that registration closed with, and the block",
    Check.FILES: "files have the digests that they go by",
    Check.HEADS: "heads name their parent, their round and their contents",
    Check.CERTIFICATES: "certificates have a quorum of valid signatures for their head",
    Check.PROPOSALS: "proposals are by their view's leader, justified, and name a quorum of COMMITs",
    Check.COMMITS: "COMMITs are signed by members, and their dealings and shares verify",
    Check.BEACONS: "beacons come out of the closing block and of the shares",
    Check.ASSIGNMENTS: "rounds have updates only by the trainers that the beacon draws",
    Check.CASES: "cases are by the auditors that the beacon draws, and proven by signatures",
    Check.MEMBERS: "member lists follow from the registry, the bans and who was there",
    Check.UPDATES: "updates decode under their author's header",
    Check.STATES: "states come out when the updates are aggregated again",
    Check.REPLAYS: "updates come out when they are trained again",
    Check.MODEL: "results are those of the last state",
    Check.ANCHORS: "anchors are the heads of the transcript",
    Check.SLASHES: "slashes are those that the bans call for",
}


class Status(StrEnum):
    OK = "ok"
    FAILED = "failed"
    PARTLY = "partly"
    """What could be checked is right."""
    UNCHECKED = "not checked"


class CheckResult(BaseModel):
    model_config = ConfigDict(frozen=True)

    check: Check
    status: Status
    what: str
    confirmed: int
    failed: int
    """How often; `problems` tells the first ones."""
    problems: tuple[str, ...]
    unchecked: tuple[str, ...]
    remarks: tuple[str, ...]


class Report(BaseModel):
    model_config = ConfigDict(frozen=True)

    ok: bool
    """No check failed.  Some may not have been possible: `checks` says which."""
    rounds: int
    """Followed to their end."""
    rounds_of_task: int
    checks: tuple[CheckResult, ...]
    caveats: tuple[str, ...]
    """What no check here can tell."""


@dataclass(slots=True)
class _Tally:
    confirmed: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def status(self) -> Status:
        if self.failed:
            return Status.FAILED
        if self.unchecked:
            return Status.PARTLY if self.confirmed else Status.UNCHECKED
        return Status.OK


class Findings:
    def __init__(self) -> None:
        self._tallies = {check: _Tally() for check in Check}

    def confirm(self, check: Check, count: int = 1) -> None:
        self._tallies[check].confirmed += count

    def fail(self, check: Check, problem: str) -> None:
        tally = self._tallies[check]
        tally.failed += 1
        _tell(tally.problems, problem)

    def leave(self, check: Check, reason: str) -> None:
        """Could not be checked."""
        _tell(self._tallies[check].unchecked, reason)

    def remark(self, check: Check, remark: str) -> None:
        _tell(self._tallies[check].remarks, remark)

    def ensure(self, check: Check, holds: bool, problem: str) -> bool:
        """Counts either way; returns `holds`."""
        if holds:
            self.confirm(check)
        else:
            self.fail(check, problem)
        return holds

    def is_untouched(self, check: Check) -> bool:
        """Nothing was found, one way or the other."""
        return self._tallies[check] == _Tally()

    def report(self, *, rounds: int, rounds_of_task: int, caveats: tuple[str, ...]) -> Report:
        return Report(
            ok=not any(tally.failed for tally in self._tallies.values()),
            rounds=rounds,
            rounds_of_task=rounds_of_task,
            checks=tuple(_result(check, tally) for check, tally in self._tallies.items()),
            caveats=caveats,
        )


def lines(report: Report) -> list[str]:
    """For a terminal: one line per check, and below it what is to be told of it."""
    width = max(len(status) for status in Status)
    told: list[str] = []
    for result in report.checks:
        status = result.status.value.upper() if result.failed else result.status.value
        count = f" ({result.confirmed})" if result.confirmed else ""
        more = [f"and {result.failed - len(result.problems)} more"] if result.failed > len(result.problems) else []
        unchecked = [f"not checked: {reason}" for reason in result.unchecked]
        told.append(f"{status:<{width}}  {result.what}{count}")
        told += [f"{'':<{width}}      {text}" for text in (*result.problems, *more, *unchecked, *result.remarks)]
    return [*told, *(f"note: {caveat}" for caveat in report.caveats)]


def _result(check: Check, tally: _Tally) -> CheckResult:
    return CheckResult(
        check=check,
        status=tally.status(),
        what=MEANINGS[check],
        confirmed=tally.confirmed,
        failed=tally.failed,
        problems=tuple(tally.problems),
        unchecked=tuple(tally.unchecked),
        remarks=tuple(tally.remarks),
    )


def _tell(texts: list[str], text: str) -> None:
    """ATTACK: what a file says may end up in here, and in a terminal."""
    if len(texts) < TEXTS_MAX:
        printable = "".join(character if character.isprintable() else "?" for character in text[:TEXT_CHARACTERS_MAX])
        texts.append(printable)
