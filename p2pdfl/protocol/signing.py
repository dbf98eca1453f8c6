"""What a member signs: one slot, one envelope, also across a crash (DESIGN 4).

A member that does not know all that its key has signed is muted: it follows, and signs nothing, until an epoch begins
whose list was chosen after everything unknown (ADR 16).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pdfl.base.codec import body_digest, encode
from p2pdfl.base.types import BlockNumber, Envelope, Kind, Packet, Payload, Round, View
from p2pdfl.crypto.envelope import Signer
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import Effect
from p2pdfl.protocol.membership import EpochMembers

OwnSlot = tuple[Round, View, Kind]


@dataclass(frozen=True, slots=True)
class Vote:
    """A payload and its slot, to be signed and sent."""

    kind: Kind
    round: Round
    view: View
    payload: Payload


Output = Effect | Vote


class Signing:
    def __init__(self, config: RunConfig, signer: Signer, signed: Iterable[Packet] | None) -> None:
        """signed: every packet that this key signed before; None: that is not known."""
        self._config = config
        self._signer = signer
        self._signed: dict[OwnSlot, Packet] = {_slot(packet): packet for packet in signed or ()}
        self._signs_from: Round | None = None if signed is None else 0
        self.unknown_until: BlockNumber | None = None
        """The newest block of the first look at the chain, or later, when an unknown envelope was shown.  A list chosen
        by a later one is of an epoch in which this key has signed nothing that is not known here."""

    def is_muted(self, round: Round) -> bool:
        return self._signs_from is None or round < self._signs_from

    def sign(self, vote: Vote) -> Packet | None:
        """None while muted.  A slot signed before is sent again as it was signed then."""
        if self.is_muted(vote.round):
            return None
        slot = (vote.round, vote.view, vote.kind)
        packet = self._signed.get(slot)
        if packet is None:
            envelope = Envelope(
                task=self._config.task_id,
                epoch=self._config.task.epoch_of(vote.round),
                round=vote.round,
                view=vote.view,
                kind=vote.kind,
                body=body_digest(vote.payload),
            )
            signature = self._signer.sign(self._config.domain, envelope)
            packet = Packet(envelope=envelope, signature=signature, payload=encode(vote.payload))
            self._signed[slot] = packet
        return packet

    def has_signed(self, packet: Packet) -> bool:
        return self._signed.get(_slot(packet)) == packet

    def is_unknown(self, packet: Packet) -> bool:
        """Of an envelope with this key's signature: whether it is another than was signed here, in a round in which
        this member signs.  Then another process has the key, or the store was lost."""
        if self.is_muted(packet.envelope.round):
            return False
        signed = self._signed.get(_slot(packet))
        return signed is None or signed.envelope.body != packet.envelope.body

    def mute(self, latest: BlockNumber) -> None:
        """An unknown envelope was shown: signing on could be a second signature in a slot."""
        self._signs_from = None
        if self.unknown_until is not None:
            # else the block that it started from, which may be long past
            self.unknown_until = latest

    def on_chain(self, number: BlockNumber) -> None:
        if self.unknown_until is None:
            self.unknown_until = number

    def on_list(self, following: EpochMembers, chosen_by: BlockNumber) -> None:
        if self._signs_from is None and self.unknown_until is not None and chosen_by > self.unknown_until:
            self._signs_from = following.first_round

    def forget_before(self, round: Round) -> None:
        for slot in [slot for slot in self._signed if slot[0] < round]:
            del self._signed[slot]


def _slot(packet: Packet) -> OwnSlot:
    return (packet.envelope.round, packet.envelope.view, Kind(packet.envelope.kind))
