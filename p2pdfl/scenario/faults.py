"""When a peer is struck, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from p2pdfl.scenario.spec import Fault


class Step(Enum):
    BEGIN = auto()
    END = auto()


@dataclass(slots=True)
class Strike:
    """One peer's fault as the run goes on."""

    fault: Fault
    began_s: float | None = None
    others_round: int = 0
    """The furthest that the others were when it began."""
    ended_s: float | None = None

    @property
    def is_on(self) -> bool:
        return self.began_s is not None and self.ended_s is None

    def step(self, own_round: int | None, others_round: int, now_s: float) -> Step | None:
        """What is due now, once each.  A kill has no end."""
        if self.began_s is None:
            if own_round is None or own_round < self.fault.at_round:
                return None
            self.began_s, self.others_round = now_s, others_round
            return Step.BEGIN
        if self.ended_s is not None or not self._has_lasted(others_round, now_s - self.began_s):
            return None
        self.ended_s = now_s
        return Step.END

    def _has_lasted(self, others_round: int, elapsed_s: float) -> bool:
        if self.fault.seconds is not None:
            return elapsed_s >= self.fault.seconds
        return self.fault.rounds is not None and others_round >= self.others_round + self.fault.rounds
