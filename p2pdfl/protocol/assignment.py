"""beacon -> batches, leaders, audit pairs (DESIGN 3.1).

Everything is drawn from `beacon[r]` through domain-separated hashes, so that all members draw the same and nobody
can know a draw before the beacon.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from p2pdfl.base import params
from p2pdfl.base.types import Address, Digest, MemberIndex, Round

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    leaders: tuple[MemberIndex, ...]
    """View v is led by leaders[v mod len]."""
    audits: Mapping[MemberIndex, MemberIndex]
    """auditor -> whose update of round r - AUDIT_LAG it replays."""
    trainers: frozenset[MemberIndex]
    """Auditors among them (ADR 13)."""

    def leader(self, view: int) -> MemberIndex:
        return self.leaders[view % len(self.leaders)]


def compute_assignment(
    *,
    beacon: Digest,
    unbanned: Sequence[MemberIndex],
    present: Collection[MemberIndex],
    audit_fraction: float,
    audited: Collection[MemberIndex],
    is_training_round: bool,
) -> Assignment:
    """unbanned: ascending.  present: those whose COMMIT the last head names; the others lead last, so that a silent
    member costs no view.  audited: unbanned members whose update is in the head of round r - AUDIT_LAG."""
    order = shuffled(beacon, b"leaders", unbanned)
    leaders = [index for index in order if index in present] + [index for index in order if index not in present]
    audits = _draw_audits(beacon, unbanned, sorted(audited), auditor_count(audit_fraction, len(unbanned)))
    trainers = frozenset(unbanned) if is_training_round else frozenset()
    return Assignment(leaders=tuple(leaders), audits=audits, trainers=trainers)


def auditor_count(audit_fraction: float, unbanned: int) -> int:
    """As long as there are as many updates to audit."""
    return math.ceil(audit_fraction * unbanned)


def _draw_audits(
    beacon: Digest, unbanned: Sequence[MemberIndex], audited: Sequence[MemberIndex], count: int
) -> dict[MemberIndex, MemberIndex]:
    """Distinct auditors with distinct targets, never oneself."""
    targets = shuffled(beacon, b"targets", audited)
    auditors = shuffled(beacon, b"auditors", [index for index in unbanned if [index] != targets])
    auditors = auditors[: min(count, len(targets))]
    for position, auditor in enumerate(auditors):
        if targets[position] == auditor:
            # swapping with the neighbour, which may be a target left over, cannot give the neighbour itself: targets
            # are distinct, and `auditor` is not the neighbour
            other = (position + 1) % len(targets)
            targets[position], targets[other] = targets[other], targets[position]
    return dict(zip(auditors, targets, strict=False))


def batch_seed(beacon: Digest, task: Digest, round: Round, author: Address) -> Digest:
    """The seed from which `author`'s batches of `round` are drawn."""
    return sha256(b"p2pdfl/batches/1\0" + task + round.to_bytes(8, "big") + author + beacon).digest()


def shuffled(beacon: Digest, domain: bytes, items: Sequence[T]) -> list[T]:
    """Fisher-Yates over a hash stream."""
    result = list(items)
    draws = _Draws(beacon, domain)
    for last in range(len(result) - 1, 0, -1):
        other = draws.below(last + 1)
        result[last], result[other] = result[other], result[last]
    return result


class _Draws:
    """Uniform integers from sha256(domain, seed, counter), by rejection."""

    def __init__(self, seed: Digest, domain: bytes) -> None:
        self._prefix = b"p2pdfl/draw/1\0" + domain + b"\0" + seed
        self._counter = 0

    def below(self, bound: int) -> int:
        limit = (1 << 64) // bound * bound
        while True:
            block = sha256(self._prefix + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
            value = int.from_bytes(block[:8], "big")
            if value < limit:
                return value % bound


def turn_ms(assignment: Assignment, member: MemberIndex | None) -> int | None:
    """How long this member leaves a chain transaction to those before it in the leader order; None: not its duty."""
    if member is None or member not in assignment.leaders:
        return None
    return assignment.leaders.index(member) * params.ANCHOR_STAGGER_MS
