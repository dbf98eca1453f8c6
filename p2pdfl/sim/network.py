"""What happens to a message on its way.  Gossip is modelled as one message per receiver, each with its own fate: a
harsher network than the real one, where others pass on what one link lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Network(Protocol):
    def delays_ms(self, sender: int, receiver: int, now_ms: int, rng: random.Random) -> Sequence[int]:
        """One for each copy that arrives: none is a loss, two are a duplicate."""
        ...

    def is_open(self, asker: int, answerer: int, now_ms: int) -> bool:
        """Whether a stream, which needs both directions, gets through."""
        ...


@dataclass(kw_only=True)
class PlainNetwork:
    latency_ms: tuple[int, int]
    is_lost: Callable[[int, int, int], bool]
    """(sender, receiver, now_ms)"""

    def delays_ms(self, sender: int, receiver: int, now_ms: int, rng: random.Random) -> Sequence[int]:
        if self.is_lost(sender, receiver, now_ms):
            return ()
        low, high = self.latency_ms
        # as randint does it, without what it costs around that: this runs for every message
        width = high - low + 1
        bits = width.bit_length()
        while (drawn := rng.getrandbits(bits)) >= width:
            pass
        return (low + drawn,)

    def is_open(self, asker: int, answerer: int, now_ms: int) -> bool:
        return not self.is_lost(asker, answerer, now_ms) and not self.is_lost(answerer, asker, now_ms)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One direction; a partition is two of them."""

    from_ms: int
    until_ms: int
    senders: frozenset[int]
    receivers: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class FaultyNetwork:
    """Until `calm_ms` as the plan says, afterwards `calm_latency_ms` and nothing lost.  Messages overtake each other
    throughout, since each has its own latency."""

    calm_ms: int
    calm_latency_ms: tuple[int, int]
    latency_ms: tuple[int, int]
    tail_chance: float
    """Of a message that takes up to `tail_ms`: a whole round late, or more."""
    tail_ms: int
    loss: float
    duplication: float
    cuts: tuple[Cut, ...]

    def delays_ms(self, sender: int, receiver: int, now_ms: int, rng: random.Random) -> Sequence[int]:
        if now_ms >= self.calm_ms:
            return (_between(rng, self.calm_latency_ms),)
        if (self.cuts and self._is_cut(sender, receiver, now_ms)) or rng.random() < self.loss:
            return ()
        copies = 2 if rng.random() < self.duplication else 1
        return [self._delay_ms(rng) for _ in range(copies)]

    def is_open(self, asker: int, answerer: int, now_ms: int) -> bool:
        return not self._is_cut(asker, answerer, now_ms) and not self._is_cut(answerer, asker, now_ms)

    def _delay_ms(self, rng: random.Random) -> int:
        if rng.random() < self.tail_chance:
            return int(rng.random() * self.tail_ms)
        return _between(rng, self.latency_ms)

    def _is_cut(self, sender: int, receiver: int, now_ms: int) -> bool:
        return any(
            cut.from_ms <= now_ms < cut.until_ms and sender in cut.senders and receiver in cut.receivers
            for cut in self.cuts
        )


def _between(rng: random.Random, bounds: tuple[int, int]) -> int:
    # randint takes three times as long, and this runs for every message
    return bounds[0] + int(rng.random() * (bounds[1] - bounds[0] + 1))
