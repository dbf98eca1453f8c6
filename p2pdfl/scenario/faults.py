"""When a peer is struck, the network cut or the chain out of reach, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from p2pdfl.scenario.spec import ChainOutage, Fault, Partition, Place


class Step(Enum):
    BEGIN = auto()
    END = auto()


@dataclass(slots=True)
class Span:
    """One fault, partition or outage as the run goes on."""

    what: Fault | Partition | ChainOutage
    began_s: float | None = None
    began_at: Place | None = None
    """How far whoever it waited for was: the struck peer, else the first of all."""
    began_round: int = 0
    """The furthest that the others were then, in rounds."""
    ended_s: float | None = None
    ended_round: int = 0

    @property
    def is_on(self) -> bool:
        return self.began_s is not None and self.ended_s is None

    @property
    def rounds_closed(self) -> range:
        """By the others, while it lasted.  The round that they were in may have been closed by some of them."""
        return range(self.began_round, self.ended_round) if self.ended_s is not None else range(0)

    def step(self, place: Place | None, others_round: int, now_s: float) -> Step | None:
        """What is due now, once each.  What is for good has no end.  place: of whoever it waits for."""
        if self.began_s is None:
            if place is None or place < self.what.place:
                return None
            self.began_s, self.began_at, self.began_round = now_s, place, others_round
            return Step.BEGIN
        if self.ended_s is not None or not self._has_lasted(others_round, now_s - self.began_s):
            return None
        self.ended_s, self.ended_round = now_s, others_round
        return Step.END

    def _has_lasted(self, others_round: int, elapsed_s: float) -> bool:
        seconds, rounds = self.what.seconds, self.what.rounds
        return self.what.has_end and elapsed_s >= (seconds or 0) and others_round >= self.began_round + (rounds or 0)


@dataclass(slots=True)
class Strike(Span):
    """One peer's fault."""

    @property
    def fault(self) -> Fault:
        assert isinstance(self.what, Fault)
        return self.what


@dataclass(slots=True)
class Cut(Span):
    def __str__(self) -> str:
        return f"the cut at round {self.partition.at_round}"

    @property
    def partition(self) -> Partition:
        assert isinstance(self.what, Partition)
        return self.what


@dataclass(slots=True)
class Outage(Span):
    def __str__(self) -> str:
        return f"the chain's outage at round {self.outage.at_round}"

    @property
    def outage(self) -> ChainOutage:
        assert isinstance(self.what, ChainOutage)
        return self.what
