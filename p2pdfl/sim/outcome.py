"""What a run in any world is drawn from, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

CryptoKind = Literal["auto", "real", "stand-in"]
LearningKind = Literal["stand-in", "real"]
Sink = Callable[[str], None]
"""Given every line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    seed: int
    peers: int | None = None
    """None: drawn from the seed, as is all that is not here."""
    rounds: int | None = None
    plant: str | None = None
    """A bug to be found."""
    crypto: CryptoKind = "auto"
    learning: LearningKind = "stand-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    seed: int
    digests: Mapping[str, str]
    """What of -> sha256.  The same seed gives the same ones, in whatever process."""
    rounds: int
    """That closed."""
    views: Mapping[int, int]
    """view -> rounds that closed in it"""
    virtual_ms: int
    calm_ms: int
    """From when on nothing went wrong any more, but for the Byzantine."""
    events: int
    violations: tuple[str, ...]
    out_of_bounds: str | None
    about: str
