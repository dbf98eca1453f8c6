"""Packets are taken: each once, at most two bodies a slot, what is of the next round when that opens.

A packet goes to the court or to the open round, whose state it changes; what it makes this member say is returned.
"""

from __future__ import annotations

from collections import deque

from p2pdfl.base import params
from p2pdfl.base.types import Accuse, Address, Envelope, Judge, Kind, MemberIndex, Packet, Payload
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.court import Court
from p2pdfl.protocol.epochs import Epochs
from p2pdfl.protocol.events import Effect, hex_of, notice
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.history import History
from p2pdfl.protocol.ingress import check_slot, decode, open_packet
from p2pdfl.protocol.refusal import Ahead, Ignore, Reject
from p2pdfl.protocol.round import OpenRound
from p2pdfl.protocol.signing import Output, Signing

VIEW_KINDS = frozenset(map(int, (Kind.PROPOSE, Kind.NOTARIZE, Kind.CLOSE)))
"""Those that have a view of the agreement."""


class Intake:
    def __init__(
        self,
        config: RunConfig,
        address: Address,
        *,
        epochs: Epochs,
        history: History,
        signing: Signing,
        evidence_pool: EvidencePool,
        court: Court,
    ) -> None:
        """address: this member's.  epochs, history: read only."""
        self.is_settled = False
        """Whether nothing that was taken since `settle` lets this member do more than it could before."""
        self._config, self._address = config, address
        self._epochs, self._history = epochs, history
        self._signing, self._evidence_pool, self._court = signing, evidence_pool, court
        self._open: OpenRound
        """`open_round` comes first."""
        self._early = EarlyPackets()

    def settle(self) -> None:
        """All that can be done has been done."""
        self.is_settled = True

    def open_round(self, opened: OpenRound) -> list[tuple[Packet, MemberIndex]]:
        """What has waited for it, to be taken now."""
        self._open = opened
        indices = opened.context.epoch.indices
        return [
            (packet, indices[address])
            for address, packets in self._early.take().items()
            for packet in packets
            if packet.envelope.round == opened.context.round and address in indices
        ]

    def receive(self, packet: Packet, now_ms: int) -> list[Output]:
        """Raises Refusal."""
        round = self._open.context.round
        try:
            sender, address = open_packet(packet, self._config, self._epochs.lists, round)
        except Ahead:
            self._open.hurry(now_ms + params.HURRY_MS)
            raise
        if packet.envelope.round > round:
            self._early.add(packet, address)
            return []
        return self.take(packet, sender, now_ms)

    def take(self, packet: Packet, sender: MemberIndex, now_ms: int) -> list[Output]:
        """A packet of this or a recent round, its signature verified.  Raises Refusal."""
        envelope = packet.envelope
        members = self._epochs.lists[envelope.epoch]
        if envelope.kind in VIEW_KINDS:
            self._check_view(envelope)
        else:
            check_slot(envelope, members)
        is_own = members.addresses[sender] == self._address
        if is_own and self._signing.is_unknown(packet):
            self._signing.mute(self._epochs.latest_number())
        bodies = self._evidence_pool.bodies(envelope, sender)
        if envelope.body in bodies:
            raise Ignore("seen before")
        try:
            payload = decode(packet)
            if len(bodies) > 1 and not self._open.needs(envelope, payload, sender):
                raise Ignore("equivocation proven before")
            self._check(envelope, payload, sender)
        except Reject:
            if len(bodies) == 1:
                # whatever it says, and though nothing else comes of it: two bodies are proof
                return [*self._record(packet, sender)]
            raise
        return [*self._record(packet, sender), *self._hand_on(packet, payload, sender, now_ms, is_own=is_own)]

    def _check_view(self, envelope: Envelope) -> None:
        """What is only too far ahead must be welcome later."""
        if envelope.round == self._open.context.round:
            self._open.check_view(envelope.view)
            return
        closed = self._history.closed.get(envelope.round)
        if closed is None or envelope.view > closed.certificate.view + params.VIEWS_AHEAD_MAX:
            raise Ignore("view far ahead")

    def _check(self, envelope: Envelope, payload: Payload, sender: MemberIndex) -> None:
        """Raises Refusal for what is not worth taking."""
        if isinstance(payload, (Accuse, Judge)):
            self._court.check(envelope, payload, sender)
        elif envelope.round == self._open.context.round:
            self._open.check(payload, envelope.view, sender)

    def _record(self, packet: Packet, sender: MemberIndex) -> list[Effect]:
        """Takes the slot."""
        proof = self._evidence_pool.record(packet, sender)
        if proof is None:
            return []
        self.is_settled = False
        envelope = packet.envelope
        address = self._epochs.lists[envelope.epoch].addresses[sender]
        return [notice("equivocation", round=envelope.round, member=hex_of(address), kind=envelope.kind)]

    def _hand_on(
        self, packet: Packet, payload: Payload, sender: MemberIndex, now_ms: int, *, is_own: bool
    ) -> list[Output]:
        if isinstance(payload, (Accuse, Judge)):
            self.is_settled = False
            return self._court.take(packet, payload, sender)
        if packet.envelope.round == self._open.context.round:
            is_known = is_own and self._signing.has_signed(packet)
            if self._open.take(packet, payload, sender, now_ms, is_own=is_known):
                self.is_settled = False
        return []


class EarlyPackets:
    """Opened packets of the next round, bounded per member."""

    def __init__(self) -> None:
        self._waiting: dict[Address, deque[Packet]] = {}

    def add(self, packet: Packet, sender: Address) -> None:
        waiting = self._waiting.get(sender, ())
        if any(other.envelope == packet.envelope for other in waiting):
            raise Ignore("seen before")
        size = sum(len(other.payload) for other in waiting) + len(packet.payload)
        if len(waiting) >= params.EARLY_MESSAGES_PER_MEMBER_MAX or size > params.PAYLOAD_BYTES_MAX:
            raise Ignore("round not open yet")
        self._waiting.setdefault(sender, deque()).append(packet)

    def take(self) -> dict[Address, deque[Packet]]:
        """All of them, since their round opens."""
        taken, self._waiting = self._waiting, {}
        return taken
