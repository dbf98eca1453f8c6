"""One line of a diagnosis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

WIDTH = 8


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    subject: str
    level: Level
    text: str
    advice: str = ""
    """What to do about it."""

    def lines(self) -> list[str]:
        said = [f"{self.level:{WIDTH}} {self.subject}: {one_line(self.text)}"]
        return [*said, f"{'':{WIDTH}} -> {one_line(self.advice)}"] if self.advice else said

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def ok(subject: str, text: str) -> Finding:
    return Finding(subject=subject, level=Level.OK, text=text)


def warning(subject: str, text: str, advice: str) -> Finding:
    return Finding(subject=subject, level=Level.WARNING, text=text, advice=advice)


def failed(subject: str, text: str, advice: str) -> Finding:
    return Finding(subject=subject, level=Level.FAILED, text=text, advice=advice)


def is_well(findings: Iterable[Finding]) -> bool:
    return all(finding.level != Level.FAILED for finding in findings)


def one_line(text: str) -> str:
    """ATTACK: what peers and chain nodes say ends up on a person's terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
