"""An honest member signs one body per slot, ever, whatever crashes lie between (DESIGN 4; docs/protocol.md 1).

Two are equivocation, which costs the deposit: nothing that befalls an honest member's machine may lead to it.
"""

from __future__ import annotations

from p2pdfl.base.types import Digest, Kind, Packet, Round, View
from p2pdfl.sim.invariants.history import History
from p2pdfl.sim.invariants.invariant import Invariant


class OneBodyPerSlot(Invariant):
    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._bodies: dict[tuple[int, Round, View, int], Digest] = {}

    def on_sent(self, index: int, packet: Packet) -> None:
        envelope = packet.envelope
        slot = (index, envelope.round, envelope.view, envelope.kind)
        if self._bodies.setdefault(slot, envelope.body) != envelope.body:
            kind = Kind(envelope.kind).name
            self.history.violated(
                f"peer{index} signed twice in a slot: round {envelope.round}, view {envelope.view}, {kind}"
            )
