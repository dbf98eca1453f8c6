"""When a peer is struck, the network cut or the chain out of reach, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from p2pdfl.scenario.spec import ChainOutage, Fault, Partition


class Step(Enum):
    BEGIN = auto()
    END = auto()


@dataclass(slots=True)
class Span:
    """One fault, partition or outage as the run goes on."""

    what: Fault | Partition | ChainOutage
    delay_s: float = 0.0
    """From the round that it begins in."""
    due_s: float | None = None
    began_s: float | None = None
    others_round: int = 0
    """The furthest that the others were when it began."""
    ended_s: float | None = None

    @property
    def is_on(self) -> bool:
        return self.began_s is not None and self.ended_s is None

    def step(self, own_round: int | None, others_round: int, now_s: float) -> Step | None:
        """What is due now, once each.  What is for good has no end."""
        if self.began_s is None:
            if self.due_s is None:
                if own_round is None or own_round < self.what.at_round:
                    return None
                self.due_s = now_s + self.delay_s
            if now_s < self.due_s:
                return None
            self.began_s, self.others_round = now_s, others_round
            return Step.BEGIN
        if self.ended_s is not None or not self._has_lasted(others_round, now_s - self.began_s):
            return None
        self.ended_s = now_s
        return Step.END

    def _has_lasted(self, others_round: int, elapsed_s: float) -> bool:
        if self.what.seconds is not None:
            return elapsed_s >= self.what.seconds
        return self.what.rounds is not None and others_round >= self.others_round + self.what.rounds


@dataclass(slots=True)
class Strike(Span):
    """One peer's fault."""

    @property
    def fault(self) -> Fault:
        assert isinstance(self.what, Fault)
        return self.what


@dataclass(slots=True)
class Break(Span):
    """Of what all peers use, and what was closed before it and until its end by whoever got furthest."""

    closed_before: int = 0
    closed: int | None = None
    """Rounds closed while it lasted."""


@dataclass(slots=True)
class Cut(Break):
    @property
    def partition(self) -> Partition:
        assert isinstance(self.what, Partition)
        return self.what


@dataclass(slots=True)
class Outage(Break):
    @property
    def outage(self) -> ChainOutage:
        assert isinstance(self.what, ChainOutage)
        return self.what

    @property
    def rounds_closed(self) -> range:
        """While it lasted."""
        return range(self.closed_before, self.closed_before + (self.closed or 0))
