"""A Byzantine peer's process: the parts that it is made of in place of an honest peer's.

It trains otherwise, and forgets what it signed.  How it departs from the protocol is in `machine`, what it sends for
an update in `updates`.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pdfl.base.types import Digest, Entropy, Packet
from p2pdfl.byzantine.machine import ByzantineMachine, Deviation, Poison, kill_this_process
from p2pdfl.byzantine.updates import Poisoner
from p2pdfl.crypto import pvss
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning.learner import Learner, State
from p2pdfl.node.compute import Compute
from p2pdfl.node.participant import Parts
from p2pdfl.node.store import Store
from p2pdfl.protocol.events import Train
from p2pdfl.protocol.sharing import Sharing


class ByzantineCompute(Compute):
    def __init__(
        self, learner: Learner, task_id: Digest, keys: Keys, entropy: Entropy, sharing: Sharing = pvss
    ) -> None:
        super().__init__(learner, task_id, keys, entropy, sharing)
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


def byzantine_parts(deviation: Deviation, die: Callable[[], None] = kill_this_process) -> Parts:
    """die: how a peer crashes whose deviation that is."""
    return Parts(
        store=ForgetfulStore,
        machine=lambda run: ByzantineMachine(run=run, deviation=deviation, die=die),
        compute=ByzantineCompute,
    )
