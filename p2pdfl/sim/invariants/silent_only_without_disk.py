"""An honest member falls silent only if it lost its disk (DESIGN 4; ADR 16).

Silent is who may have signed what it does not know of.  What is shown to anybody is on disk before, so a member whose
disk is whole always knows.
"""

from __future__ import annotations

from p2pdfl.protocol.events import Closed
from p2pdfl.sim.invariants.invariant import Invariant


class SilentOnlyWithoutDisk(Invariant):
    def on_closed(self, index: int, closed: Closed) -> None:
        if index not in self.history.amnesiacs and self.history.world.state(index).is_muted:
            self.history.violated(f"round {closed.round}: peer{index} fell silent though its disk is whole")
