"""A peer's disk: what is on it survives a crash.  Keeps the promises of `store.Store` and no others."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdfl.base import params
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
    unsynced: set[Digest] = field(default_factory=set)
    """Bodies that a loss of power takes away: they wait for the next envelope or round to be synced."""
    notarized: dict[tuple[Round, View], KeepNotarized] = field(default_factory=dict)
    unsynced_notarized: set[tuple[Round, View]] = field(default_factory=set)
    checkpoints: dict[Epoch, Checkpoint] = field(default_factory=dict)
    """The last ones, the state of each with it."""

    def put_envelope(self, packet: Packet) -> Packet:
        """The packet to send.  Raises SlotTaken."""
        envelope = packet.envelope
        stored = self.envelopes.setdefault((envelope.round, envelope.view, envelope.kind), packet)
        if stored.envelope.body != envelope.body:
            raise SlotTaken(f"round {envelope.round}, view {envelope.view}, kind {envelope.kind}")
        self._sync()
        return stored

    def put_round(self, closed: Closed) -> Closed:
        """What is stored for that round: the first that came."""
        self._sync()
        for place in [place for place in self.notarized if place[0] <= closed.round]:
            del self.notarized[place]
        return self.closed.setdefault(closed.round, closed)

    def put_notarized(self, kept: KeepNotarized) -> None:
        place = (kept.certificate.round, kept.certificate.view)
        self.notarized[place] = kept
        self.unsynced_notarized.add(place)

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.epoch] = checkpoint
        for epoch in sorted(self.checkpoints)[: -params.CHECKPOINTS_KEPT]:
            del self.checkpoints[epoch]

    def put_body(self, body: Digest) -> None:
        if body not in self.bodies:
            self.bodies.add(body)
            self.unsynced.add(body)

    def lose_power(self) -> None:
        self.bodies -= self.unsynced
        for place in self.unsynced_notarized:
            self.notarized.pop(place, None)
        self._sync()

    def _sync(self) -> None:
        self.unsynced.clear()
        self.unsynced_notarized.clear()

    def signed(self) -> list[Packet]:
        return list(self.envelopes.values())

    def load(self, round: Round) -> tuple[tuple[Packet, ...], Certificate] | None:
        closed = self.closed.get(round)
        return None if closed is None else (closed.packets, closed.certificate)
