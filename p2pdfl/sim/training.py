"""Real training for simulated members: the bytes of all their updates in one place, and what is equal computed once.

The honest replay of an honest update is the same computation as the update, and so is every member's aggregate.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from statistics import fmean

from p2pdfl.base.types import Address, Digest, Outcome, Round, UpdateEntry
from p2pdfl.byzantine.machine import Poison
from p2pdfl.byzantine.updates import Poisoner
from p2pdfl.learning.learner import Learner, State
from p2pdfl.protocol.events import Replay, Train

_Work = tuple[Digest, Digest, Address]
"""Parent state, seed, author."""


class RealLearning:
    def __init__(self, learner: Learner, *, kept_rounds: int | None = None) -> None:
        """kept_rounds: how many rounds behind the newest anybody asks about states and updates.  None: all, for peers
        that may start again from the first."""
        self.learner = learner
        self.states: dict[Digest, State] = {}
        self.updates: dict[Digest, bytes] = {}
        self._task_id = learner.task.task_id()
        self._poisoner = Poisoner(learner, self._task_id)
        self._kept_rounds = kept_rounds
        self._newest: Round = 0
        self._last_used: dict[Digest, Round] = {}
        """State -> the newest round at the time."""
        self._made: dict[Round, list[Digest]] = {}
        """Updates by round."""
        self._honest: dict[Round, dict[_Work, Digest]] = {}
        self._poisoned: dict[Round, dict[_Work, Digest]] = {}
        self._audited: dict[Round, dict[tuple[Digest, _Work], Outcome]] = {}
        self._valid: dict[Round, dict[tuple[Digest, Address], bool]] = {}
        self._aggregates: dict[tuple[Digest, tuple[Digest, ...]], Digest] = {}
        self._honest_bytes_each: list[int] = []
        self._keep_state(learner.initial_state())

    def train(self, effect: Train, index: int, author: Address) -> Digest:
        self._forget_before(effect.round)
        self._last_used[effect.parent_state] = self._newest
        if not isinstance(effect, Poison):
            return self._honest_update(effect.parent_state, effect.seed, effect.round, author)
        known = self._poisoned.setdefault(effect.round, {})
        work = (effect.parent_state, effect.seed, author)
        if work not in known:
            poisoned = self._poisoner.train(
                effect,
                self.states[effect.parent_state],
                author,
                lambda other, seed: self._honest_bytes(effect, other, seed),
            )
            known[work] = self._keep_update(effect.round, poisoned)
        return known[work]

    def is_valid(self, update: Digest, round: Round, author: Address) -> bool:
        known = self._valid.setdefault(round, {})
        if (update, author) not in known:
            known[update, author] = self.learner.is_valid(
                self.updates[update], task_id=self._task_id, round=round, author=author
            )
        return known[update, author]

    def aggregate(self, parent_state: Digest, updates: Sequence[UpdateEntry]) -> Digest:
        work = (parent_state, tuple(entry.update for entry in updates))
        if work not in self._aggregates:
            state = self.learner.aggregate(self.states[parent_state], [self.updates[update] for update in work[1]])
            self._aggregates[work] = self._keep_state(state)
        return self._aggregates[work]

    def replay(self, effect: Replay) -> Outcome:
        honest = self._honest_update(effect.parent_state, effect.seed, effect.audited_round, effect.author)
        if honest == effect.update:
            return Outcome.FALSE
        known = self._audited.setdefault(effect.audited_round, {})
        case = (effect.update, (effect.parent_state, effect.seed, effect.author))
        if case not in known:
            known[case] = self.learner.audit(
                self.updates[effect.update],
                self.states[effect.parent_state],
                seed=effect.seed,
                task_id=self._task_id,
                round=effect.audited_round,
                author=effect.author,
            )
        return known[case]

    @property
    def bytes_per_update(self) -> float:
        """Mean over what honest members send."""
        return fmean(self._honest_bytes_each)

    def _honest_bytes(self, effect: Train, author: Address, seed: Digest) -> bytes:
        return self.updates[self._honest_update(effect.parent_state, seed, effect.round, author)]

    def _honest_update(self, parent_state: Digest, seed: Digest, round: Round, author: Address) -> Digest:
        known = self._honest.setdefault(round, {})
        work = (parent_state, seed, author)
        if work not in known:
            state = self.states[parent_state]
            update = self.learner.train(state, seed=seed, task_id=self._task_id, round=round, author=author)
            known[work] = self._keep_update(round, update)
            self._honest_bytes_each.append(len(update))
        return known[work]

    def _keep_update(self, round: Round, update: bytes) -> Digest:
        digest = sha256(update).digest()
        if digest not in self.updates:
            self.updates[digest] = update
            self._made.setdefault(round, []).append(digest)
        return digest

    def _keep_state(self, state: State) -> Digest:
        digest = state.digest()
        self.states.setdefault(digest, state)
        self._last_used[digest] = self._newest
        return digest

    def _forget_before(self, round: Round) -> None:
        if round <= self._newest:
            return
        self._newest = round
        if self._kept_rounds is None:
            return
        oldest = round - self._kept_rounds
        for state in [state for state, used in self._last_used.items() if used < oldest]:
            del self.states[state], self._last_used[state]
        for old in [old for old in self._made if old < oldest]:
            for update in self._made.pop(old):
                del self.updates[update]
        for known in (self._honest, self._poisoned, self._audited, self._valid):
            for old in [old for old in known if old < oldest]:
                del known[old]
