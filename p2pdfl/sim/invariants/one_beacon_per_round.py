"""All honest members recover the same beacon, whoever's shares they have.

Any `threshold` verified shares of the dealings that a head fixed give the same point (docs/protocol.md 4; DESIGN 5).
"""

from __future__ import annotations

from p2pdfl.protocol.events import Closed
from p2pdfl.sim.invariants.invariant import Invariant


class OneBeaconPerRound(Invariant):
    def on_closed(self, index: int, closed: Closed) -> None:
        if closed.beacon != self.history.closed[closed.round].beacon:
            self.history.violated(f"round {closed.round}: peer{index} closed with another beacon")
