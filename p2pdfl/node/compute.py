"""What takes a node's processor: training, replays, aggregation, cryptography.  Pure functions of their effect and of
the states and update bytes given; called from worker threads, so that the network keeps breathing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2pdfl.base.types import Address, Dealing, Digest, Entropy, Outcome, Round, Share
from p2pdfl.crypto import pvss
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning.learner import Learner, State, save_state
from p2pdfl.protocol.events import CheckCommits, Deal, Decrypt, Replay, Train
from p2pdfl.protocol.sharing import Sharing, check_commits

UPDATE_SLACK_BYTES = 4096
"""How much longer than an honest update one may be and still be fetched, to be found invalid."""


class Compute:
    def __init__(
        self, learner: Learner, task_id: Digest, keys: Keys, entropy: Entropy, sharing: Sharing = pvss
    ) -> None:
        self._learner = learner
        self.task_id = task_id
        self._keys = keys
        self._entropy = entropy
        self._sharing = sharing
        self.update_bytes_max = learner.update_bytes_max + UPDATE_SLACK_BYTES

    def initial_state(self) -> State:
        return self._learner.initial_state()

    @property
    def state_bytes(self) -> int:
        return 16 * self._learner.dimension

    def state_of(self, data: bytes) -> State:
        """Raises StateError."""
        return self._learner.state_of(data)

    def train(self, effect: Train, parent: State) -> bytes:
        return self._trained(parent, effect.seed, effect.round, self._keys.address)

    def replay(self, effect: Replay, parent: State, claimed: bytes) -> Outcome:
        return self._learner.audit(
            claimed,
            parent,
            seed=effect.seed,
            task_id=self.task_id,
            round=effect.audited_round,
            author=effect.author,
        )

    def refusal(self, update: bytes, round: Round, author: Address) -> str | None:
        """Why this is not an update of theirs."""
        return self._learner.refusal(update, task_id=self.task_id, round=round, author=author)

    def aggregate(self, parent: State, updates: Sequence[bytes]) -> State:
        return self._learner.aggregate(parent, updates)

    def evaluate(self, state: State) -> float:
        return self._learner.evaluate(state)

    def deal(self, effect: Deal) -> Dealing:
        return self._sharing.deal(effect.context, effect.keys, effect.threshold, self._entropy)

    def decrypt(self, effect: Decrypt) -> Share:
        keys = self._keys
        return self._sharing.decrypt(effect.context, keys.pvss_secret, keys.pvss_key, effect.summed, self._entropy)

    def find_invalid(self, effect: CheckCommits) -> frozenset[Digest]:
        return check_commits(effect, self._entropy, self._sharing)

    def save(self, path: Path, state: State) -> None:
        save_state(path, state, self._learner)

    def _trained(self, parent: State, seed: Digest, round: Round, author: Address) -> bytes:
        return self._learner.train(parent, seed=seed, task_id=self.task_id, round=round, author=author)
