"""What came of a fault: when the others noticed, which rounds it cost, what must follow from where it really struck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pdfl.scenario.course import Course
from p2pdfl.scenario.events import Lost, PeerRecord, RoundClosed
from p2pdfl.scenario.faults import Strike
from p2pdfl.scenario.spec import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """Of one peer's fault.  Rounds are told from heads, and lists by the protocol's rule (`course`)."""

    name: str
    address: str
    scenario: Scenario
    strike: Strike
    course: Course

    @property
    def away(self) -> range:
        """The rounds in which it can have signed no COMMIT that others got: all that were closed until it was back, and
        without its disk all of the epochs whose lists had been chosen by then."""
        strike, task = self.strike, self.scenario.task
        if strike.began_at is None or strike.fault.kind in ("leave", "join"):
            return range(0)
        first = strike.began_at.round + (strike.began_at.phase_index > 0)
        if strike.ended_s is None:
            return range(first, task.total_rounds)
        if not strike.fault.lose_disk:
            return range(first, strike.ended_round)
        # a list is chosen in the last round but one of the epoch before
        return range(first, task.last_round_of(task.epoch_of(strike.ended_round + 1)) + 1)

    @property
    def named(self) -> list[int]:
        """Rounds whose heads name its COMMIT."""
        return [round for round, committed in self.course.committed.items() if self.address in committed]

    @property
    def missed(self) -> list[int]:
        """Rounds since the fault in which it was a member and whose heads name no COMMIT of its."""
        began_at = self.strike.began_at
        if began_at is None or self.strike.fault.kind in ("leave", "join"):
            return []
        rounds = range(began_at.round, self.scenario.task.total_rounds)
        return sorted(set(rounds).intersection(self._rounds_as_member()).difference(self.named))

    @property
    def due(self) -> list[int]:
        """Rounds in which it could take part after all that."""
        if self.strike.fault.kind == "leave" or self.strike.fault.is_for_good:
            return []
        back = 0 if self.strike.fault.kind == "join" else max(self.away.stop, self.strike.ended_round)
        return [round for round in self._rounds_as_member() if round >= back]

    @property
    def came_to_nothing(self) -> str | None:
        """Why the fault has shown nothing, if so."""
        fault, strike, address = self.strike.fault, self.strike, self.address
        if fault.kind == "leave":
            return None if address in self.course.leavers else "it asked to leave too late for any list"
        if strike.began_at is None:
            return "nobody came so far"
        if fault.kind == "join":
            listed = any(address in members for members in self.course.members.values())
            return None if listed else "it was registered too late for any list"
        if not any(round >= strike.began_at.round for round in self.course.committed):
            return f"struck in {strike.began_at}, when the run was over"
        if fault.is_for_good:
            return None
        if strike.ended_s is None:
            return "the run was over before it was back"
        if not self.due and not fault.lose_disk:
            return f"back in round {strike.ended_round}, and on no list from then on"
        return None

    def _rounds_as_member(self) -> list[int]:
        epoch_of, members = self.scenario.task.epoch_of, self.course.members
        return [round for round in self.course.committed if self.address in members[epoch_of(round)]]


def aftermaths(
    scenario: Scenario, records: Sequence[PeerRecord], strikes: Mapping[str, Strike], course: Course
) -> dict[str, Aftermath]:
    """By the struck peer's name."""
    return {
        record.name: Aftermath(
            name=record.name,
            address=record.address or "",
            scenario=scenario,
            strike=strikes[record.name],
            course=course,
        )
        for record in records
        if record.name in strikes
    }


def noticed_s(strike: Strike, struck: PeerRecord, others: Sequence[PeerRecord]) -> float | None:
    """Seconds until all others had lost the peer.  None if one of them has not."""
    if strike.began_s is None:
        return None
    slowest_s = 0.0
    for other in others:
        times_s = [at_s for at_s, lost in other.timed(Lost) if lost.peer_id == struck.peer_id]
        after_s = [at_s - strike.began_s for at_s in times_s if at_s >= strike.began_s]
        if not after_s:
            return None
        slowest_s = max(slowest_s, min(after_s))
    return round(slowest_s, 3)


def caught_up_s(strike: Strike, struck: PeerRecord, others: Sequence[PeerRecord]) -> float | None:
    """Seconds from the strike's end until the peer closed a round before any of the others had closed the next."""
    if strike.ended_s is None:
        return None
    first_s: dict[int, float] = {}
    for other in others:
        for at_s, line in other.timed(RoundClosed):
            first_s[line.round] = min(first_s.get(line.round, math.inf), at_s)
    for at_s, line in struck.timed(RoundClosed):
        if at_s >= strike.ended_s and line.round + 1 in first_s and at_s < first_s[line.round + 1]:
            return round(at_s - strike.ended_s, 3)
    return None
