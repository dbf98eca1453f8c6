"""All honest members close a round with the same head, and no other head could be certified.

No two heads of a round have, or could get from the Byzantine, a quorum of CLOSE in one view; what an honest member
closes with has one.  However slow the network and whatever crashes (docs/protocol.md 2, the theorem; DESIGN 3.7).
A head names its parent, the state and the banned: with the heads, all of these are the same.
"""

from __future__ import annotations

from p2pdfl.base.types import Digest, Kind, Packet, Round
from p2pdfl.protocol.events import Closed
from p2pdfl.sim.invariants.invariant import Invariant


class OneHeadPerRound(Invariant):
    def on_sent(self, index: int, packet: Packet) -> None:
        envelope = packet.envelope
        if envelope.kind != Kind.CLOSE:
            return
        views = self.history.certifiable.get(envelope.round, {})
        if len(views) > 1:
            self.history.violated(
                f"round {envelope.round}: two heads can be certified, the second in view {list(views.values())[1]}"
            )

    def on_closed(self, index: int, closed: Closed) -> None:
        history, head = self.history, closed.certificate.head
        if head != history.closed[closed.round].certificate.head:
            history.violated(f"round {closed.round}: peer{index} closed with another head")
        elif head not in history.certifiable.get(closed.round, ()):
            history.violated(f"round {closed.round}: peer{index} closed with a head that no quorum certified")

    def at_end(self) -> None:
        """What is on the disks, whatever the peers said when they closed."""
        heads: dict[Round, Digest] = {}
        for index in self.history.honest.values():
            for round, head in self.history.world.state(index).heads.items():
                if heads.setdefault(round, head) != head:
                    self.history.violated(f"round {round}: peer{index} has another head on its disk")
