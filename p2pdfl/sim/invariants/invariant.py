"""What all invariants have in common."""

from __future__ import annotations

from p2pdfl.base.types import Packet
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.sim.invariants.history import History


class Invariant:
    """One promise.  It is told what honest peers do, once `history` knows, and overrides what it has to look at.

    The cost of an event must not grow with the run."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_sent(self, index: int, packet: Packet) -> None: ...
    def on_closed(self, index: int, closed: Closed) -> None: ...
    def on_submitted(self, index: int, duty: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None: ...
    def on_anchored(self, anchor: SubmitAnchor) -> None: ...
    def on_notice(self, index: int, notice: Notice) -> None: ...
    def on_broken(self, index: int, error: Exception) -> None: ...

    def on_time(self) -> None:
        """Now and then, once the network is calm."""

    def at_end(self) -> None:
        """When the run is over."""

    def at_finish(self) -> None:
        """When it is over and had the time and the members to finish."""
