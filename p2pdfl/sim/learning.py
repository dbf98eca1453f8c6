"""What simulated members compute: digests that stand for nothing, or real training (`training.RealLearning`).

The machines see digests either way.  With the stand-in an update is a hash of what would have been computed, so a
replay finds every deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Protocol

from p2pdfl.base.types import Address, Digest, Outcome, Round, UpdateEntry
from p2pdfl.protocol.events import Replay, Train


class Learning(Protocol):
    def train(self, effect: Train, index: int, author: Address) -> Digest:
        """The update that the peer with that index in the world sends, be it what was assigned or not."""

    def is_valid(self, update: Digest, round: Round, author: Address) -> bool:
        """Whether it decodes under that header."""

    def aggregate(self, parent_state: Digest, updates: Sequence[UpdateEntry]) -> Digest:
        """The next state.  Raises KeyError for an update that nobody made, about which no honest member asks."""

    def replay(self, effect: Replay) -> Outcome: ...


class StandIn:
    def __init__(self, forge: Callable[[int, Digest], Digest] = lambda index, update: update) -> None:
        """forge: what a Byzantine peer, by its index, sends instead of the update assigned."""
        self.forge = forge
        self.undecodable: set[Digest] = set()
        """Updates that decode under nobody's header."""
        self._authors: dict[Digest, Address] = {}

    def train(self, effect: Train, index: int, author: Address) -> Digest:
        update = self.forge(index, honest_update(effect.parent_state, effect.seed))
        self._authors.setdefault(update, author)
        return update

    def is_valid(self, update: Digest, round: Round, author: Address) -> bool:
        return self._authors.get(update) == author and update not in self.undecodable

    def aggregate(self, parent_state: Digest, updates: Sequence[UpdateEntry]) -> Digest:
        if not updates:
            return parent_state
        return sha256(parent_state + b"".join(entry.update for entry in updates)).digest()

    def replay(self, effect: Replay) -> Outcome:
        is_honest = honest_update(effect.parent_state, effect.seed) == effect.update
        return Outcome.FALSE if is_honest else Outcome.GUILTY


def honest_update(parent_state: Digest, seed: Digest) -> Digest:
    return sha256(b"update" + parent_state + seed).digest()
