"""Whose fault it is, what it costs, and for how long who did it is refused.

Three answers to what comes from a peer, as GossipSub's validators give them:

accept   taken, and passed on
ignore   dropped and counted, nobody's fault: late, early, seen before, from somebody who is not admitted here yet
reject   dropped, counted, and held against somebody: an offence

Held against whom:

- The forwarder, the peer at the other end of the connection, which Noise has proven: for what every honest peer checks
  before it passes anything on (frames that do not parse, bad gossip signatures, other topics, lengths beyond the
  protocol's), for replies and blobs that are not what was asked for, and for far more streams, connections or messages
  than it may send.
- The author, the peer that signed the gossip message: for a payload that is wrong whenever and whoever looks at it.  A
  node gossips only envelopes that it signed itself, so an author answers for all that is in its messages; what it
  passes on for others is under their signatures, not its own.

An honest peer can't be blamed:

- Each reason below is decided by the bytes received, the task, and what agreement has fixed for all (who belongs to an
  epoch, what is anchored): never by the round that a peer has reached, what it has heard of, or the time.  What depends
  on those (`Ignore`, and most of `Reject`) is counted and held against nobody.
- Nobody can offend in another's name.  A forwarder is who holds the connection's key.  An author has signed; a replay
  of what it signed once is dropped as seen before, or counts against the rate of whoever replays it, not the author's.
- Rates are held against forwarders only, an honest peer keeps what it passes on below half of them (`rates`), and the
  weight of one message too many is so small that a burst held up on the way does not add up to a refusal.

Refused means: its connections are cut, its new ones not taken, and nothing is dialled, asked or believed.  For a member
that is not the end.  What it signs reaches this node in the resyncs of others, and when its time is over it is welcome
again: agreement needs it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

REFUSE_AT = 100.0
"""The score at which somebody is refused."""

GROSS = 30.0
"""What no honest peer does even once: the fourth in quick succession is refused.  One may be a cosmic ray."""
SMALL = 1.0
EXCESS = 0.1
"""One message or stream beyond the rate: the thousandth, or a few more, is refused."""

OFFENCES = MappingProxyType(
    {
        # the forwarder's
        "malformed gossip": GROSS,
        "bad gossip signature": GROSS,
        "message too long": GROSS,
        "other topic": GROSS,
        "too many gossip streams": SMALL,
        "too many streams of a peer": SMALL,
        "streams over the rate": EXCESS,
        "gossip over the rate": EXCESS,
        "own gossip over the rate": EXCESS,
        "request too long": GROSS,
        "request is malformed": GROSS,
        "reply is malformed": GROSS,
        "malformed blob reply": GROSS,
        "blob is not what its digest says": GROSS,
        "checkpoint is not the anchored one": GROSS,
        # the author's; of a resync's packets, the answering peer's
        "gossip of no known kind": GROSS,
        "packet is malformed": GROSS,
        "update is too long": GROSS,
        "other task": GROSS,
        "epoch is not the round's": GROSS,
        "signature does not verify": GROSS,
        "signer is not a member": GROSS,
        "view is not zero": GROSS,
        "payload is malformed": GROSS,
        "notarize: no head": GROSS,
    }
)
"""Reason -> weight.  A reason that is not here is nobody's fault."""

PASSED_ON = frozenset({"other task", "epoch is not the round's", "signature does not verify", "signer is not a member"})
"""Of the author's, what an honest peer finds out before it keeps somebody else's packet: so it counts against who gives
such a packet in a resync."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """How scores become refusals."""

    half_life_s: float
    """A score halves in it."""
    refuse_s: float
    """The first refusal; each further one takes twice as long."""
    refuse_s_max: float
    forgive_s: float
    """Since the end of the last refusal: the next one takes refuse_s again."""

    def __post_init__(self) -> None:
        assert self.half_life_s > 0
        assert 0 < self.refuse_s <= self.refuse_s_max


@dataclass(slots=True)
class _Record:
    score: float = 0.0
    at_s: float = 0.0
    """When the score was that."""
    refusals: int = 0
    refused_until_s: float = float("-inf")


class PeerScores(Generic[Name]):
    """Who has offended how much, and who is refused.  Time is an argument, in seconds that never go back."""

    def __init__(self, sentence: Sentence, *, tracked_max: int) -> None:
        """tracked_max: names remembered, besides those in `keep`."""
        assert tracked_max > 0
        self._sentence = sentence
        self._tracked_max = tracked_max
        self._kept: frozenset[Name] = frozenset()
        self._records: dict[Name, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, names: Collection[Name]) -> None:
        """These are never forgotten to make room; there are only so many members."""
        self._kept = frozenset(names)

    def add(self, name: Name, weight: float, now_s: float) -> bool:
        """Returns whether this very offence gets name refused.  Who is refused already gets nothing on top: what it
        had under way when it was cut off must not count twice."""
        assert weight >= 0
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record(at_s=now_s)
        if now_s < record.refused_until_s:
            return False
        record.score = self._decayed(record, now_s) + weight
        record.at_s = now_s
        is_refused = record.score >= REFUSE_AT
        if is_refused:
            self._refuse(record, now_s)
        self._make_room(now_s)
        return is_refused

    def score(self, name: Name, now_s: float) -> float:
        record = self._records.get(name)
        return 0.0 if record is None else self._decayed(record, now_s)

    def is_refused(self, name: Name, now_s: float) -> bool:
        return self.refused_for_s(name, now_s) > 0

    def refused_for_s(self, name: Name, now_s: float) -> float:
        """0 if it is not."""
        record = self._records.get(name)
        return 0.0 if record is None else max(0.0, record.refused_until_s - now_s)

    def refused(self, now_s: float) -> list[Name]:
        return [name for name, record in self._records.items() if now_s < record.refused_until_s]

    def _refuse(self, record: _Record, now_s: float) -> None:
        if now_s - record.refused_until_s >= self._sentence.forgive_s:
            record.refusals = 0
        # the exponent has a bound: a float's has one, too
        length_s = min(self._sentence.refuse_s * 2.0 ** min(record.refusals, 64), self._sentence.refuse_s_max)
        record.refused_until_s = now_s + length_s
        record.refusals += 1
        record.score = 0.0

    def _decayed(self, record: _Record, now_s: float) -> float:
        return record.score * math.exp2(-min((now_s - record.at_s) / self._sentence.half_life_s, 1_000.0))

    def _make_room(self, now_s: float) -> None:
        """ATTACK: many names made up for one small offence each, to be forgotten oneself.  Who matters least goes: to
        displace somebody who was refused takes tracked_max others who were refused as often."""
        free = len(self._records) - len(self._kept & self._records.keys())
        if free <= self._tracked_max:
            return

        def weight(name: Name) -> tuple[bool, int, float]:
            record = self._records[name]
            is_forgiven = now_s - record.refused_until_s >= self._sentence.forgive_s
            return (now_s < record.refused_until_s, 0 if is_forgiven else record.refusals, self._decayed(record, now_s))

        # an eighth at once, so that a flood of names does not cost a sort each
        spare = sorted(self._records.keys() - self._kept, key=weight)
        for name in spare[: free - self._tracked_max + self._tracked_max // 8]:
            del self._records[name]
