"""No honest member accuses an honest one, finds it guilty, bans it or has it slashed.

An honest update replays to what was committed, honest members sign what their replay finds, and a verdict takes half of
the list (DESIGN 3, audit and bans; docs/protocol.md 5).  A false accusation is its accuser's fault: JUDGE names whom it
finds guilty.
"""

from __future__ import annotations

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import Accuse, Address, Judge, Kind, Outcome, Packet
from p2pdfl.protocol.audit import loser
from p2pdfl.protocol.events import Closed, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.sim.invariants.invariant import Invariant


class NobodyHonestBlamed(Invariant):
    def on_sent(self, index: int, packet: Packet) -> None:
        if packet.envelope.kind not in (Kind.ACCUSE, Kind.JUDGE):
            return
        payload = decode_payload(packet)
        members = sorted(self.history.lists[packet.envelope.epoch])
        blamed: Address | None = None
        if isinstance(payload, Accuse):
            blamed = members[payload.accused]
        elif isinstance(payload, Judge) and payload.outcome != Outcome.VOID:
            blamed = members[payload.accuser if payload.outcome == Outcome.FALSE else payload.accused]
        if blamed in self.history.honest:
            self.history.violated(f"peer{index} finds the honest {self._name(blamed)} guilty: {payload!r}")

    def on_closed(self, index: int, closed: Closed) -> None:
        for address in sorted(closed.banned & self.history.honest.keys()):
            self.history.violated(f"round {closed.round}: peer{index} banned the honest {self._name(address)}")

    def on_submitted(self, index: int, duty: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None:
        blamed: Address | None = None
        match duty:
            case SubmitEquivocation():
                blamed = duty.accused
            case SubmitVerdict():
                lost = loser(duty.proof.entry)
                blamed = None if lost is None else duty.members[lost]
            case SubmitAnchor():
                pass
        if blamed in self.history.honest:
            self.history.violated(f"peer{index} has the honest {self._name(blamed)} slashed: {type(duty).__name__}")

    def at_end(self) -> None:
        """Bans of the round that is still open too."""
        for index in self.history.honest.values():
            banned = self.history.world.state(index).banned
            for address in sorted(self.history.honest.keys() & banned.keys()):
                self.history.violated(f"peer{index} banned the honest {self._name(address)}: {banned[address]}")

    def _name(self, address: Address) -> str:
        return f"peer{self.history.honest[address]}"
