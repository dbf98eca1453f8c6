"""All honest members have the same list of an epoch's members (DESIGN 3, epoch change; docs/protocol.md 2).

Quorums and thresholds are counted by it: with two lists, two quorums need not share an honest member.
"""

from __future__ import annotations

from p2pdfl.protocol.events import Notice
from p2pdfl.sim.invariants.history import epoch_list
from p2pdfl.sim.invariants.invariant import Invariant


class OneListPerEpoch(Invariant):
    def on_notice(self, index: int, notice: Notice) -> None:
        if notice.name != "members":
            return
        epoch, members = epoch_list(notice)
        if self.history.lists[epoch] != members:
            self.history.violated(f"epoch {epoch}: peer{index} has another list")
