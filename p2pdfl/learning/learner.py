"""All of learning that a node uses: a task's model and data, and what is computed with them each round.

States are values: nothing carries over inside a Learner, so its calls may come from any thread, several at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed
from p2pdfl.base.task import Task, TaskError
from p2pdfl.base.types import ZERO_DIGEST, Address, Digest, Outcome
from p2pdfl.learning import checkpoint, compression, data, models, profiles, quantize, replay, train
from p2pdfl.learning.aggregate import aggregate
from p2pdfl.learning.checkpoint import StateError
from p2pdfl.learning.quantize import Header, Quantized
from p2pdfl.learning.shards import SHARD_DIVISOR, shard
from p2pdfl.learning.state import State, outer_step

__all__ = [
    "DigestMismatch",
    "Learner",
    "ReplayMismatch",
    "State",
    "StateError",
    "TooNoisy",
    "load_state",
    "measure",
    "save_state",
]

_REFERENCE_SEED = sha256(b"p2pdfl/reference replay/1").digest()


class DigestMismatch(TaskError):
    """This peer's data or initial weights are not those the task was published with."""


class ReplayMismatch(TaskError):
    """This machine computes another update than the publisher's: its updates would not survive an audit."""


class TooNoisy(TaskError):
    """Under profile `tolerant`, rounding decides so much of this task's updates that no audit could."""


class Learner:
    """Puts torch into the arithmetic of the task's profile for the whole process (`profiles.Arithmetic.enter`)."""

    def __init__(self, task: Task) -> None:
        """Raises TaskError: model or data unusable, or, as DigestMismatch, not those of the task."""
        self.arithmetic = profiles.arithmetic(task.profile)
        self.arithmetic.enter()
        self.task = task
        self._coding = quantize.CODINGS[task.codes]
        loaded = data.load(task.data)
        self.data_digest: Digest = loaded.digest()
        if task.data_digest not in (None, self.data_digest):
            differs = _differs("data_digest", task.data_digest, self.data_digest)
            raise DigestMismatch("; ".join(filter(None, (differs, data.origin(task.data)))))
        if task.dirichlet is not None and loaded.y_train.ndim != 1:
            raise TaskError("dirichlet: needs data with one class per example")
        self._labels = loaded.y_train
        placed = self.arithmetic.tensor
        self._x_train, self._y_train = placed(loaded.x_train), placed(loaded.y_train)
        self._x_test, self._y_test = placed(loaded.x_test), placed(loaded.y_test)
        built = models.build(task.model, task.seed)
        if task.profile == "tolerant":
            models.refuse_discontinuous(built)
        self._parameters = models.flatten(built)
        self._module = self.arithmetic.place(built)
        models.check_replayable(self._module, self._x_train[:2], self._y_train[:2], loaded.class_count)
        self.dimension = self._parameters.size
        self.shapes = {name: tuple(parameter.shape) for name, parameter in models.trained(self._module).items()}
        initial = self.initial_state().digest()
        if task.initial_state not in (None, initial):
            raise DigestMismatch(_differs("initial_state", task.initial_state, initial))

    def initial_state(self) -> State:
        return State(parameters=self._parameters, momentum=np.zeros(self.dimension))

    def state_of(self, data: bytes) -> State:
        """Raises StateError."""
        try:
            return State.from_bytes(data, self.dimension)
        except ValueError as error:
            raise StateError(f"a state of another model: {error}") from None

    @property
    def update_bytes_max(self) -> int:
        """Of an update that is valid."""
        return self._coding.update_bytes(self.dimension)

    def train(self, state: State, *, seed: bytes, task_id: Digest, round: int, author: Address) -> bytes:
        """The update that `author` has to send; once expanded, and under profile `exact`, the same bytes
        wherever and whenever it is computed.

        seed: 32 bytes from the round's beacon for this author.
        """
        header = self.header(task_id=task_id, round=round, author=author)
        return self._shortened(self._trained(state.parameters, seed, header))

    def audit(
        self, claimed: bytes, state: State, *, seed: bytes, task_id: Digest, round: int, author: Address
    ) -> Outcome:
        """What an auditor or a juror finds on what `author` sent for that assignment.

        GUILTY rests on a second run, from the state as rounding may have changed it: where that alone changes the
        update, no distance proves anything.  Under `exact` too, since processors of another kind round differently.
        """
        header = self.header(task_id=task_id, round=round, author=author)
        first = self._trained(state.parameters, seed, header)
        outcome = self.compare(claimed, first)
        if outcome is not Outcome.GUILTY:
            return outcome
        second = self._trained(replay.nudged(state.parameters, seed, self.task.profile), seed, header)
        if replay.relative_distance(second, first, self._coding) > params.AUDIT_NOISE_MAX:
            return Outcome.VOID
        return self.compare(claimed, second)

    def header(self, *, task_id: Digest, round: int, author: Address) -> Header:
        return Header(task_id=task_id, round=round, author=author, dimension=self.dimension)

    def encode(self, vector: NDArray[np.float64], header: Header) -> bytes:
        """An update that says this."""
        return self._shortened(quantize.encode(vector, header, self._coding))

    def decode(self, update: bytes, *, task_id: Digest, round: int, author: Address) -> NDArray[np.float64]:
        """The pseudo-gradient, float64 [dimension].  Raises Malformed."""
        return self._parse(update, self.header(task_id=task_id, round=round, author=author)).values()

    def is_valid(self, update: bytes, *, task_id: Digest, round: int, author: Address) -> bool:
        return self.refusal(update, task_id=task_id, round=round, author=author) is None

    def refusal(self, update: bytes, *, task_id: Digest, round: int, author: Address) -> str | None:
        """Why this is not an update of theirs."""
        try:
            self._parse(update, self.header(task_id=task_id, round=round, author=author))
        except Malformed as error:
            return str(error)
        return None

    def aggregate(self, state: State, updates: Sequence[bytes]) -> State:
        """The next state from updates found valid before, in member order; without any, the same state."""
        if not updates:
            return state
        gradient = aggregate(self.task.rule, [self._split(update) for update in updates])
        return outer_step(
            state, gradient, learning_rate=self.task.outer_learning_rate, momentum=self.task.outer_momentum
        )

    def compare(self, claimed: bytes, replayed: bytes) -> Outcome:
        """What an author sent against what `train` gives, by the task's profile (`replay.compare`)."""
        header = quantize.header_of(replayed)
        try:
            expanded = self._expanded(claimed, header)
        except Malformed:
            return Outcome.GUILTY
        return replay.compare(expanded, self._expanded(replayed, header), self._coding, self.task.profile)

    def evaluate(self, state: State) -> float:
        """Accuracy on the test set, in [0, 1]."""
        self.arithmetic.enter()
        module = copy.deepcopy(self._module)
        models.load_flat(module, state.parameters)
        return train.accuracy(module, self._x_test, self._y_test)

    def reference_replay(self) -> Digest:
        """Digest of a fixed update: equal on every machine whose arithmetic is fit for the task.

        In float64 under either profile: other machines' codes are the same then, be it by another order of sums.
        Raises TooNoisy if under `tolerant` what this machine sends is too far from it.
        """
        header = self.header(task_id=ZERO_DIGEST, round=0, author=bytes(20))
        reference = self._trained(self._parameters, _REFERENCE_SEED, header, torch.float64)
        if self.task.profile == "tolerant":
            for start in (self._parameters, replay.nudged(self._parameters, _REFERENCE_SEED, "tolerant")):
                update = self._trained(start, _REFERENCE_SEED, header)
                distance = replay.relative_distance(update, reference, self._coding)
                if distance > params.AUDIT_NOISE_MAX:
                    raise TooNoisy(
                        f"profile: by rounding alone this task's updates are {distance:.2g} apart ({self.arithmetic}), "
                        f"and audits under tolerant need {params.AUDIT_NOISE_MAX:g}; use profile exact, a lower "
                        "learning_rate or fewer local_steps"
                    )
        return sha256(reference).digest()

    def check_reference(self) -> None:
        """Raises ReplayMismatch if this machine's replay differs from the task's, TooNoisy, or TaskError if the task
        states none."""
        if self.task.reference_replay is None:
            raise TaskError("reference_replay: missing; the task is not published yet")
        computed = self.reference_replay()
        if computed != self.task.reference_replay:
            raise ReplayMismatch(_differs("reference_replay", self.task.reference_replay, computed))

    def _trained(
        self, start: NDArray[np.float64], seed: bytes, header: Header, dtype: torch.dtype | None = None
    ) -> bytes:
        """dtype: of the arithmetic, if another than the profile's."""
        self.arithmetic.enter()
        # a copy per call: torch modules hold their parameters, and calls come from several threads
        module, inputs = copy.deepcopy(self._module), self._x_train
        if dtype is not None:
            module, inputs = module.to(dtype), inputs.to(dtype) if inputs.is_floating_point() else inputs
        gradient = train.pseudo_gradient(
            module,
            start,
            inputs,
            self._y_train,
            self._examples_of(header.author),
            seed=seed,
            local_steps=self.task.local_steps,
            batch_size=self.task.batch_size,
            learning_rate=self.task.learning_rate,
        )
        return quantize.encode(gradient, header, self._coding)

    def _examples_of(self, author: Address) -> NDArray[np.int64]:
        """Indices into the training set: what `author` draws its batches from."""
        if self.task.dirichlet is None:
            return np.arange(len(self._labels))
        return shard(
            self._labels,
            alpha=self.task.dirichlet,
            size=max(1, len(self._labels) // SHARD_DIVISOR),
            task_seed=self.task.seed,
            author=author,
        )

    def _shortened(self, update: bytes) -> bytes:
        return update if self.task.compression == "none" else compression.shorten(update)

    def _expanded(self, update: bytes, header: Header) -> bytes:
        """Raises Malformed."""
        return update if self.task.compression == "none" else compression.expand(update, header, self._coding)

    def _parse(self, update: bytes, header: Header) -> Quantized:
        """Raises Malformed."""
        return quantize.parse(self._expanded(update, header), header, self._coding)

    def _split(self, update: bytes) -> Quantized:
        """Of an update that was checked before."""
        return quantize.split(self._expanded(update, quantize.header_of(update)), self._coding)


def measure(task: Task) -> Task:
    """The task with the digests of this machine's data, initial state and reference replay filled in."""
    unmeasured = task.model_copy(update={"data_digest": None, "initial_state": None, "reference_replay": None})
    learner = Learner(unmeasured)
    return task.model_copy(
        update={
            "data_digest": learner.data_digest,
            "initial_state": learner.initial_state().digest(),
            "reference_replay": learner.reference_replay(),
        }
    )


def save_state(path: Path, state: State, learner: Learner) -> None:
    """A safetensors checkpoint with the model's parameter names, replaced in one step."""
    checkpoint.save(path, state, learner.shapes)


def load_state(path: Path, learner: Learner) -> State:
    """Raises StateError.  Whether it is the state of some head, its digest tells."""
    return checkpoint.load(path, learner.shapes)


def _differs(field: str, expected: bytes, computed: bytes) -> str:
    return f"{field}: the task says {expected.hex()}, this machine has {computed.hex()}"
