"""What a `Poison` comes to: the bytes of an update that is not the one assigned, in a peer's process or a simulation.

Those of `machine.UpdateBehaviour` decode, and only a replay tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Round
from p2pdfl.byzantine import attacks
from p2pdfl.byzantine.attacks import Vector
from p2pdfl.byzantine.machine import Poison
from p2pdfl.learning.learner import Learner, State

HonestUpdate = Callable[[Address, Digest], bytes]
"""What that member sends from the same state, with that seed."""


class Poisoner:
    def __init__(self, learner: Learner, task_id: Digest) -> None:
        self._learner = learner
        self._task_id = task_id
        self._flipped = cache(lambda: FlippedLabels(learner.task))
        self._backdoored = cache(lambda: WithBackdoor(learner.task))
        self._past: dict[Address, deque[tuple[Round, Vector]]] = {}

    def train(self, effect: Poison, parent: State, author: Address, honest: HonestUpdate) -> bytes:
        """What `author` sends.  honest: gives the updates of this round that the attack needs."""
        header = self._learner.header(task_id=self._task_id, round=effect.round, author=author)
        assigned = honest(author, effect.seed)
        own = self._learner.decode(assigned, task_id=self._task_id, round=effect.round, author=author)
        delayed = self._delayed(effect, author, own)
        if not effect.is_active:
            return assigned
        if effect.behaviour == "garbage":
            return attacks.generator(b"garbage", effect.seed).bytes(len(assigned))
        if effect.behaviour == "zip_bomb":
            return header.to_bytes() + attacks.zip_bomb(len(assigned) - len(header.to_bytes()))
        factor = effect.factor
        if factor is None:
            factor = attacks.DEFAULT_FACTORS.get(effect.behaviour, 1.0)
        match effect.behaviour:
            case "sign_flip" | "scale":
                vector = attacks.scaled(own, factor)
            case "noise":
                vector = attacks.noisy(own, factor, attacks.generator(b"noise", effect.seed))
            case "random_direction":
                common = sha256(effect.parent_state + effect.round.to_bytes(8, "big")).digest()
                vector = attacks.random_direction(own, factor, attacks.generator(b"direction", common))
            case "ipm":
                vector = attacks.inner_product_manipulation(self._others(effect, own, honest), factor)
            case "alie":
                vector = attacks.a_little_is_enough(self._others(effect, own, honest), factor)
            case "mimic":
                vector = self._others(effect, own, honest)[0]
            case "zero":
                vector = np.zeros_like(own)
            case "delay":
                vector = delayed
            case "label_flip":
                vector = self._trained_otherwise(self._flipped(), effect, parent, author)
            case "backdoor":
                vector = attacks.scaled(self._trained_otherwise(self._backdoored(), effect, parent, author), factor)
            case _:
                raise AssertionError(f"{effect.behaviour} trains as assigned")
        return self._learner.encode(vector, header)

    def _others(self, effect: Poison, own: Vector, honest: HonestUpdate) -> list[Vector]:
        """The honest trainers' updates; the own one where there is none."""
        vectors = [
            self._learner.decode(honest(author, seed), task_id=self._task_id, round=effect.round, author=author)
            for author, seed in effect.others
        ]
        return vectors or [own]

    def _delayed(self, effect: Poison, author: Address, own: Vector) -> Vector:
        """The newest of the own updates that is old enough, or the oldest there is."""
        if effect.behaviour != "delay":
            return own
        past = self._past.setdefault(author, deque())
        past.append((effect.round, own))
        rounds = attacks.DEFAULT_FACTORS["delay"] if effect.factor is None else effect.factor
        while len(past) > 1 and past[1][0] <= effect.round - rounds:
            past.popleft()
        return past[0][1]

    def _trained_otherwise(self, learner: Learner, effect: Poison, parent: State, author: Address) -> Vector:
        update = learner.train(parent, seed=effect.seed, task_id=self._task_id, round=effect.round, author=author)
        return learner.decode(update, task_id=self._task_id, round=effect.round, author=author)


class FlippedLabels(Learner):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._y_train = attacks.flipped_labels(self._y_train)


class WithBackdoor(Learner):
    """It evaluates to the attack's success rate: how much of what is of another class, with the pattern on it, the
    model takes for the target class."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        largest = self._x_train.max()
        self._x_train, self._y_train = attacks.with_backdoor(self._x_train, self._y_train)
        if self._y_test.ndim == 1:
            others = self._y_test != attacks.TARGET_CLASS
            self._x_test, self._y_test = self._x_test[others], self._y_test[others]
        self._x_test = attacks.triggered(self._x_test, largest)
        self._y_test = self._y_test.new_full(self._y_test.shape, attacks.TARGET_CLASS)

    def _examples_of(self, author: Address) -> NDArray[np.int64]:
        own = super()._examples_of(author)
        return np.concatenate([own, own + len(self._labels)])  # the same examples with the pattern
