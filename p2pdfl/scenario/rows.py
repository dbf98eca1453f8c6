"""What a summary is made of: a row for each peer, ban, anchor and slash, and for all that is expected."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class AnchorRow(Row):
    epoch: int
    round: int
    head: str
    tx: str
    gas: int | None


class SlashRow(Row):
    member: str
    wei: int
    evidence: str
    tx: str


class PeerRow(Row):
    name: str
    address: str | None
    behaviour: str | None
    from_round: int | None
    fault: str | None
    """As the scenario has it."""
    struck_at: str | None
    """The round and phase that it had told of last."""
    back_round: int | None
    """In which the others were then."""
    missed_rounds: list[int]
    """Since the fault, as a member: their heads name no COMMIT of its."""
    noticed_s: float | None
    """From the fault until the last of the honest others that were at it or through had lost the connection to it."""
    caught_up_s: float | None
    """From the fault's end until this peer closed a round before any of the others had closed the next."""
    ended: str
    caught_round: int | None
    """Round whose head listed the verdict or the evidence."""
    evidence: str | None
    slashed_wei: int
    slash_tx: str | None


class BanRow(Row):
    name: str
    round: int
    """Whose head listed the verdict or the evidence."""
    evidence: str
    auditor: str | None
    """Who found it; nobody in particular where it was no bad update."""
    audited_round: int | None
    verdict_round: int | None
    """In which the audit was made and judged."""


class AuditsRow(Row):
    """What the formulas of `audit_economics` expect beside what came."""

    auditors: int
    chance: float
    """That a bad update is found."""
    byzantine: int
    """Who send bad updates."""
    rounds_expected: float
    """With audits, until all of these are found."""
    rounds: int | None
    """That it took; None if they were not all found."""


class Expectation(Row):
    what: str
    expected: Any
    seen: Any
    held: bool
