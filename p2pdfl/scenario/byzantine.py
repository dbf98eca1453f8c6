"""What a Byzantine peer's process has of its own: it trains otherwise, and forgets what it signed.

How it departs from the protocol is in `behaviours`, what it sends for an update in `poison`.
"""

from __future__ import annotations

from p2pdfl.behaviours import Poison
from p2pdfl.compute import Compute
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning.learner import Learner, State
from p2pdfl.poison import Poisoner
from p2pdfl.protocol.events import Train
from p2pdfl.store import Store
from p2pdfl.types import Digest, Entropy, Packet


class ByzantineCompute(Compute):
    def __init__(self, learner: Learner, task_id: Digest, keys: Keys, entropy: Entropy) -> None:
        super().__init__(learner, task_id, keys, entropy)
        self._poisoner = Poisoner(learner, task_id)

    def train(self, effect: Train, parent: State) -> bytes:
        if not isinstance(effect, Poison):
            return super().train(effect, parent)
        return self._poisoner.train(
            effect,
            parent,
            self._keys.address,
            lambda author, seed: self._trained(parent, seed, effect.round, author),
        )


class ForgetfulStore(Store):
    """Keeps no record of what was signed, so that nothing stops a second body in a slot."""

    def put_envelope(self, packet: Packet) -> Packet:
        return packet
