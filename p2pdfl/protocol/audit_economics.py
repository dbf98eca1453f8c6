"""What audits cost and what they are worth (docs/audits.md): formulas, for who chooses `task.audit_fraction`.

Of n members b send bad updates in every round, say nothing as auditors, and are out once found; the h = n - b others
audit truly and are always there.  Time is counted in rounds with audits; ROUNDS_WITHOUT_AUDITS come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.protocol.assignment import auditor_count

ROUNDS_WITHOUT_AUDITS = params.AUDIT_LAG + 1
"""From the first bad update until it can be audited, and the one whose head lists the last verdict, unless the jury is
quick enough for the head of the round that it was audited in."""
NEGLIGIBLE = 1e-9
"""Chance beyond which rounds are no longer summed."""


@dataclass(frozen=True, kw_only=True)
class Audits:
    peers: int
    byzantine: int
    """Of them, at the start."""
    audit_fraction: float

    def __post_init__(self) -> None:
        if self.peers > params.MEMBER_COUNT_MAX:
            raise ValueError(f"{self.peers} peers: there are {params.MEMBER_COUNT_MAX} at most")
        if not 0 <= self.byzantine < self.peers:
            raise ValueError(f"{self.byzantine} of {self.peers} peers leaves nobody honest")
        if not 0 <= self.audit_fraction <= 1:
            raise ValueError(f"audit_fraction: {self.audit_fraction:g} is not between 0 and 1")

    @property
    def honest(self) -> int:
        return self.peers - self.byzantine

    @property
    def auditors(self) -> int:
        return auditor_count(self.audit_fraction, self.peers)

    @property
    def overhead(self) -> float:
        """Of a round's training: a replay takes as long as what it replays."""
        return self.auditors / self.peers

    @property
    def chance(self) -> float:
        """That a bad update is found.  Exact: it is a target with v / n, and its auditor any of the n - 1 others."""
        return self.auditors * self.honest / (self.peers * (self.peers - 1)) if self.peers > 1 else 0.0

    @property
    def rounds_to_catch_one(self) -> float:
        """A given one, while nobody else is found.  Infinite without audits."""
        return 1 / self.chance if self.chance else math.inf

    @property
    def penalty(self) -> float:
        """For each bad update, in slashes, of who sends them until banned: some more slip in before that, and one slash
        pays for all.  A single one costs `chance`, which is more."""
        return 1 / (self.rounds_to_catch_one + ROUNDS_WITHOUT_AUDITS)

    @property
    def rounds_to_catch_all(self) -> float:
        """Member by member and round by round.  With one auditor, sum over b of (h + b)(h + b - 1) / (h b)."""
        return _rounds_to_catch(self.honest, self.byzantine, self.audit_fraction)

    def rounds_to_catch(self, every: int) -> float:
        """All of them, where they send bad updates in the first round and then in each `every`-th one only."""
        return 1 + every * (self.rounds_to_catch_all - 1)

    @property
    def rounds_of_coin_flips(self) -> float:
        """Where each is banned in each round with probability v h / n^2 by itself, for v = 1 `ban_prob` in BTARD's
        released experiments: the mean of the last, summed over the rounds that begin with somebody left."""
        p = self.auditors * self.honest / self.peers**2
        if not p:
            return math.inf
        rounds, unbanned = 0.0, 1.0
        while (somebody_left := 1 - (1 - unbanned) ** self.byzantine) > NEGLIGIBLE:
            rounds += somebody_left
            unbanned *= 1 - p
        return rounds


HEADINGS = ("audit_fraction", "auditors", "work", "found", "one", "all", "penalty")


def cells(audits: Audits) -> tuple[str, ...]:
    """What a table says under HEADINGS."""
    return (
        f"{audits.audit_fraction:g}",
        str(audits.auditors),
        f"{100 * audits.overhead:.0f} %",
        f"{100 * audits.chance:.1f} %",
        f"{audits.rounds_to_catch_one:.1f}",
        f"{audits.rounds_to_catch_all:.1f}",
        f"{100 * audits.penalty:.1f} %",
    )


def _rounds_to_catch(honest: int, byzantine: int, audit_fraction: float) -> float:
    rounds = [0.0]
    for left in range(1, byzantine + 1):
        found = _found_in_a_round(honest, left, auditor_count(audit_fraction, honest + left))
        if found[0] == 1:
            return math.inf
        later = sum(chance * rounds[left - count] for count, chance in enumerate(found) if count)
        rounds.append((1 + later) / (1 - found[0]))
    return rounds[byzantine]


def _found_in_a_round(honest: int, byzantine: int, auditors: int) -> list[float]:
    """The distribution of how many: as many honest auditors as a draw without repetition gives, then as many bad
    updates among that many of the n - 1 that are not their own.  Exact for one auditor, and in the mean for any number;
    else as near to the draw as its rule that nobody audits himself lets a formula be."""
    peers = honest + byzantine
    found = [0.0] * (byzantine + 1)
    for truthful in range(min(honest, auditors) + 1):
        weight = _drawn(peers, honest, auditors, truthful)
        for count in range(min(byzantine, truthful) + 1):
            found[count] += weight * _drawn(peers - 1, byzantine, truthful, count)
    return found


def _drawn(items: int, marked: int, draws: int, count: int) -> float:
    """Probability of `count` marked ones among so many drawn without repetition."""
    return math.comb(marked, count) * math.comb(items - marked, draws - count) / math.comb(items, draws)
