"""A packet on its way in: opened and checked, as far as that needs none of the open round's state.

    open_packet   the run's, of a round that can still matter, well-formed, signed by a member of its epoch
    check_slot    a slot that a member has
    decode        what the payload says

Pure; `Intake` has the state.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode_payload, is_signed_payload
from p2pdfl.base.types import Address, Envelope, Epoch, Kind, MemberIndex, Packet, Payload, Round
from p2pdfl.crypto.envelope import BadSignature, recover
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Ahead, Ignore, Reject


def open_packet(
    packet: Packet, config: RunConfig, epochs: Mapping[Epoch, EpochMembers], open_round: Round
) -> tuple[MemberIndex, Address]:
    """Who signed it.  Raises Refusal unless it is of a round from the oldest that is remembered to the next."""
    envelope = packet.envelope
    if envelope.task != config.task_id:
        raise Reject("other task")
    if not is_signed_payload(packet):
        # ATTACK: else the signature would be remembered, and what it is for refused as seen before
        raise Reject("payload is malformed")
    members = epochs.get(envelope.epoch)
    if not _is_of_epoch(envelope, config, members):
        raise Reject("epoch is not the round's")
    if envelope.round < open_round - config.history_rounds:
        raise Ignore("round long closed")
    if members is None:
        raise Ahead("epoch not known yet")
    try:
        address = recover(config.domain, envelope, packet.signature)
    except BadSignature:
        raise Reject("signature does not verify") from None
    sender = members.indices.get(address)
    if sender is None:
        raise Reject("signer is not a member")
    if envelope.round > open_round + 1:
        raise Ahead("round not open yet")
    return sender, address


def _is_of_epoch(envelope: Envelope, config: RunConfig, members: EpochMembers | None) -> bool:
    if members is not None:
        return members.first_round <= envelope.round <= members.last_round
    return envelope.round < config.task.total_rounds and envelope.epoch == config.task.epoch_of(envelope.round)


def check_slot(envelope: Envelope, members: EpochMembers) -> None:
    """Bounds the slots that a member has in a round, beside those of the agreement, whose views grow."""
    if envelope.kind != Kind.JUDGE:
        if envelope.view != 0:
            raise Reject("view is not zero")
    elif envelope.view % params.MEMBER_COUNT_MAX >= members.count or envelope.view >= 2 * params.MEMBER_COUNT_MAX:
        raise Reject("judge: no such case")


def decode(packet: Packet) -> Payload:
    try:
        return decode_payload(packet)
    except Malformed as error:
        raise Reject("payload is malformed") from error
