"""Each epoch is anchored once, in order, with the head that its last round closed with (DESIGN 3.8).

The contract takes what a quorum certified; by one head per round that is what honest members closed with.
"""

from __future__ import annotations

from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.events import SubmitAnchor
from p2pdfl.sim.invariants.history import History
from p2pdfl.sim.invariants.invariant import Invariant


class AnchorsInOrder(Invariant):
    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._next = 0

    def on_anchored(self, anchor: SubmitAnchor) -> None:
        history, head = self.history, anchor.head
        if head.epoch != self._next:
            history.violated(f"epoch {head.epoch} is anchored, and it is the turn of {self._next}")
        self._next = head.epoch + 1
        closed = history.closed.get(head.round)
        is_last = head.round == history.world.task.last_round_of(head.epoch)
        if not is_last or closed is None or closed.certificate.head != head_digest(head):
            history.violated(f"epoch {head.epoch} is anchored with another head than its last round closed with")
