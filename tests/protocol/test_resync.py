"""What one member tells another that asks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from p2pdfl.base import params
from p2pdfl.base.codec import decode, encode
from p2pdfl.base.types import Kind, Notarize, Packet, Propose
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, compute_reply, packet_id
from protocol.test_evidence_pool import a_proposal

from .members import HEAD, OTHER, TASK, a_certificate, a_packet


def votes(count: int) -> list[Packet]:
    return [a_packet(4, index % 4, Kind.NOTARIZE, Notarize(head=HEAD), view=index // 4) for index in range(count)]


def a_request(have: list[Packet], round: int = 0) -> ResyncRequest:
    return ResyncRequest(task=TASK, round=round, have=tuple(packet_id(packet) for packet in have))


def test_what_the_asker_has_is_not_sent_again() -> None:
    packets = votes(8)
    assert compute_reply(a_request(packets[:5]), packets, ()).packets == tuple(packets[5:])


def test_members_that_vote_alike_are_told_apart() -> None:
    assert len({packet_id(packet) for packet in votes(8)}) == 8


def test_a_reply_is_bounded_and_the_rest_comes_with_the_next() -> None:
    packets = votes(params.RESYNC_REPLY_MESSAGES_MAX + 10)
    first = compute_reply(a_request([]), packets, ())
    assert len(first.packets) == params.RESYNC_REPLY_MESSAGES_MAX
    second = compute_reply(a_request(list(first.packets)), packets, ())
    assert set(map(packet_id, (*first.packets, *second.packets))) == set(map(packet_id, packets))


@pytest.mark.slow
def test_a_reply_of_large_packets_fits_its_frame() -> None:
    skips = (a_certificate(4, Kind.CLOSE, bytes(32), voters=[0, 1, 2]),) * params.VIEW_COUNT_MAX
    bulky: Propose = a_proposal().replace(skips=skips)
    packets = [a_packet(4, 0, Kind.PROPOSE, bulky, view=view) for view in range(400)]
    reply = compute_reply(a_request([]), packets, skips)
    assert len(encode(reply)) < params.RESYNC_FRAME_BYTES_MAX
    assert 0 < len(reply.packets) < 400


def test_request_and_reply_survive_the_wire() -> None:
    request = a_request(votes(3), round=7)
    reply = compute_reply(a_request([]), votes(3), [a_certificate(4, Kind.CLOSE, OTHER, voters=[0, 1, 2])])
    assert decode(ResyncRequest, encode(request), bytes_max=params.RESYNC_REQUEST_BYTES_MAX) == request
    assert decode(ResyncReply, encode(reply), bytes_max=params.RESYNC_FRAME_BYTES_MAX) == reply


def test_commits_come_before_votes() -> None:
    """Votes reach others as certificates too; what a head names comes only like this."""
    proposal = a_packet(4, 0, Kind.PROPOSE, a_proposal())
    packets = [*votes(params.RESYNC_REPLY_MESSAGES_MAX), proposal]
    assert compute_reply(a_request([]), packets, ()).packets[0] == proposal


def test_a_reply_with_more_certificates_than_views_can_give_is_malformed() -> None:
    """ATTACK: certificates that fail at their last signature, each of which costs the asker a quorum of recoveries."""
    certificate = a_certificate(4, Kind.CLOSE, bytes(32), voters=[0, 1, 2])
    most = params.RESYNC_REPLY_CERTIFICATES_MAX
    ResyncReply(packets=(), certificates=(certificate,) * most)
    with pytest.raises(ValidationError):
        ResyncReply(packets=(), certificates=(certificate,) * (most + 1))
