"""Which updates are trained again: a sample, and every one that a verdict is about.

The last head seeds the sample, so that everybody who checks a run checks the same updates, and nobody who made one
before the run's end could know whether it would be among them.  A quorum that cheats together could try last heads
until it likes the sample; against it, replay them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from p2pdfl.base.types import Contents, Digest, MemberIndex, Outcome, Round, VerdictEntry
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.verify.files import BadFile, Transcript


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    sampled: Mapping[Round, frozenset[MemberIndex]]
    judged: Mapping[Round, tuple[VerdictEntry, ...]]
    """By audited round."""


NO_REPLAYS = ReplayPlan(sampled={}, judged={})


def plan_replays(transcript: Transcript, total_rounds: int, count: int) -> ReplayPlan:
    """count: of the sample, fewer if there are not so many updates.  What cannot be read is left out: following the
    rounds says so."""
    judged: dict[Round, tuple[VerdictEntry, ...]] = {}
    try:
        seed = head_digest(transcript.index(total_rounds - 1).head_words())
    except BadFile:
        return NO_REPLAYS

    def ranked() -> Iterator[tuple[Digest, Round, MemberIndex]]:
        for round in range(total_rounds):
            try:
                contents = transcript.wire(Contents, transcript.index(round).contents)
            except BadFile:
                continue
            for verdict in contents.verdicts:
                if verdict.outcome in (Outcome.GUILTY, Outcome.FALSE):
                    judged[verdict.audited_round] = (*judged.get(verdict.audited_round, ()), verdict)
            for entry in contents.updates:
                yield _rank(seed, round, entry.member), round, entry.member

    sampled: dict[Round, set[MemberIndex]] = {}
    for _, round, member in heapq.nsmallest(count, ranked()):
        sampled.setdefault(round, set()).add(member)
    return ReplayPlan(sampled={round: frozenset(members) for round, members in sampled.items()}, judged=judged)


def _rank(seed: Digest, round: Round, member: MemberIndex) -> Digest:
    return sha256(b"p2pdfl/verify/sample/1\0" + seed + round.to_bytes(8, "big") + member.to_bytes(2, "big")).digest()
