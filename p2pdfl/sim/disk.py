"""What a machine that is started again is given of what it did before."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.base.types import Certificate, Checkpoint, Digest, Epoch, Packet, Round, View
from p2pdfl.protocol.events import Closed, KeepNotarized

OwnSlot = tuple[int, int, int]
"""round, view, kind"""


class SlotTaken(Exception):
    """Another body is on disk for that slot.  A node stops there rather than send it."""


@dataclass(kw_only=True)
class Disk:
    envelopes: dict[OwnSlot, Packet] = field(default_factory=dict)
    closed: dict[Round, Closed] = field(default_factory=dict)
    bodies: set[Digest] = field(default_factory=set)
    notarized: dict[tuple[Round, View], KeepNotarized] = field(default_factory=dict)
    checkpoints: dict[Epoch, Checkpoint] = field(default_factory=dict)

    def put_envelope(self, packet: Packet) -> Packet:
        """The packet to send.  Raises SlotTaken."""
        envelope = packet.envelope
        stored = self.envelopes.setdefault((envelope.round, envelope.view, envelope.kind), packet)
        if stored.envelope.body != envelope.body:
            raise SlotTaken(f"round {envelope.round}, view {envelope.view}, kind {envelope.kind}")
        return stored

    def put_round(self, closed: Closed) -> Closed:
        """What is stored for that round: the first that came."""
        for place in [place for place in self.notarized if place[0] <= closed.round]:
            del self.notarized[place]
        return self.closed.setdefault(closed.round, closed)

    def signed(self) -> list[Packet]:
        return list(self.envelopes.values())

    def load(self, round: Round) -> tuple[tuple[Packet, ...], Certificate] | None:
        closed = self.closed.get(round)
        return None if closed is None else (closed.packets, closed.certificate)
