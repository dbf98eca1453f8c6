"""What a Byzantine peer's process has of its own: it trains otherwise, and forgets what it signed.

How it departs from the protocol is in `behaviours`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from p2pdfl.behaviours import Deviation
from p2pdfl.compute import Compute
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning import quantize
from p2pdfl.learning.learner import Learner, State
from p2pdfl.protocol.events import Replay, Train
from p2pdfl.store import Store
from p2pdfl.task import Task
from p2pdfl.types import Digest, Entropy, Outcome, Packet

DEFAULT_FACTORS = {"sign_flip": -1.0, "scale": -1000.0, "noise": 10.0}
"""sign_flip, scale: times the update.  noise: standard deviation as a multiple of the update's root mean square."""


class ByzantineCompute(Compute):
    """Trains otherwise than assigned.  The poisoned update carries the right header: it decodes, and only a replay
    tells."""

    def __init__(self, learner: Learner, task_id: Digest, keys: Keys, entropy: Entropy, deviation: Deviation) -> None:
        flips = deviation.behaviour == "label_flip"
        super().__init__(_FlippedLabels(learner.task) if flips else learner, task_id, keys, entropy)
        self._honest = Compute(learner, task_id, keys, entropy)
        self._deviation = deviation

    def train(self, effect: Train, parent: State) -> bytes:
        if effect.round < self._deviation.from_round:
            return self._honest.train(effect, parent)
        update = super().train(effect, parent)
        match self._deviation.behaviour:
            case "sign_flip" | "scale":
                return self._transform(update, effect.round, lambda vector: vector * self._factor())
            case "noise":
                generator = np.random.Generator(np.random.PCG64(effect.round))
                return self._transform(
                    update,
                    effect.round,
                    lambda vector: (
                        vector + generator.standard_normal(vector.size) * self._factor() * np.sqrt(np.mean(vector**2))
                    ),
                )
            case "garbage":
                return bytes(np.random.Generator(np.random.PCG64(effect.round)).bytes(len(update)))
            case _:
                return update

    def replay(self, effect: Replay, parent: State, claimed: bytes) -> Outcome:
        return self._honest.replay(effect, parent, claimed)

    def _factor(self) -> float:
        factor = self._deviation.factor
        return DEFAULT_FACTORS[self._deviation.behaviour] if factor is None else factor

    def _transform(self, update: bytes, round: int, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
        header = self._learner.header(task_id=self.task_id, round=round, author=self._keys.address)
        return quantize.encode(change(quantize.decode(update, header)), header)


class _FlippedLabels(Learner):
    """Class c is taken for the last class minus c."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._y_train = self._y_train.max() - self._y_train


class ForgetfulStore(Store):
    """Keeps no record of what was signed, so that nothing stops a second body in a slot."""

    def put_envelope(self, packet: Packet) -> Packet:
        return packet
