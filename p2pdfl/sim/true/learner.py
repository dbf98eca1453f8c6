"""A learner of a few numbers: real updates, states, rules and audits, and training that costs nothing.

What is trained follows from the seed, and a little from where it starts, so that an audit finds every deviation.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray

from p2pdfl.base.task import Task
from p2pdfl.base.types import Digest
from p2pdfl.learning import quantize
from p2pdfl.learning.learner import Learner, State, measure
from p2pdfl.learning.quantize import Header
from p2pdfl.sim.true.process import Process

DIMENSION = 8


class Memory:
    """Of all peers together: what one has computed, another need not."""

    def __init__(self) -> None:
        self.trained: dict[tuple[bytes, bytes, bytes], bytes] = {}
        self.aggregates: dict[tuple[Digest, tuple[bytes, ...]], State] = {}


class TinyLearner(Learner):
    def __init__(self, task: Task, process: Process, memory: Memory, *, train_s: float = 0.0) -> None:
        # not that of Learner: there is no model and no data
        self.task = task
        self.dimension = DIMENSION
        self.shapes = {"weights": (DIMENSION,)}
        self._parameters = np.zeros(DIMENSION)
        self._coding = quantize.CODINGS[task.codes]
        self._process = process
        self._memory = memory
        self._train_s = train_s

    def aggregate(self, state: State, updates: list[bytes]) -> State:  # type: ignore[override]
        key = (state.digest(), tuple(updates))
        known = self._memory.aggregates.get(key)
        if known is None:
            known = self._memory.aggregates[key] = super().aggregate(state, updates)
        return known

    def evaluate(self, state: State) -> float:
        return float(np.clip(np.abs(state.parameters).mean(), 0, 1))

    def _trained(
        self, start: NDArray[np.float64], seed: bytes, header: Header, dtype: torch.dtype | None = None
    ) -> bytes:
        self._process.spend(self._train_s)
        key = (start.tobytes(), seed, header.to_bytes())
        known = self._memory.trained.get(key)
        if known is None:
            noise = np.frombuffer(sha256(seed).digest(), dtype=np.uint8)[:DIMENSION] / 255 - 0.5
            known = quantize.encode(noise + 0.1 * start, header, self._coding)
            self._memory.trained[key] = known
        return known


def tiny_task(**fields: object) -> Task:
    task = Task.model_validate({"data_digest": bytes(32), "reference_replay": bytes(32), **fields})
    initial = TinyLearner(task, Process(), Memory()).initial_state().digest()
    return task.model_copy(update={"initial_state": initial})


def measured_task(**fields: object) -> Task:
    """For the real learner."""
    return measure(Task.model_validate(fields))
