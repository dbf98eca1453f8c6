"""One slot, one envelope; and nothing at all while it is not known what the key has signed."""

from __future__ import annotations

import pytest

from p2pdfl.base.types import Close, Kind, Packet
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.signing import Signing, Vote
from p2pdfl.sim.world import stand_in_task

from .members import DOMAIN, HEAD, OTHER, TASK, a_packet, an_epoch, peers

N = 4


def signing(*signed: Packet) -> Signing:
    """Of member 0."""
    config = RunConfig(task=stand_in_task(), task_id=TASK, domain=DOMAIN)
    return Signing(config, peers(N)[0].signer, signed)


def lost() -> Signing:
    config = RunConfig(task=stand_in_task(), task_id=TASK, domain=DOMAIN)
    return Signing(config, peers(N)[0].signer, None)


def a_vote(head: bytes = HEAD, *, round: int = 0, view: int = 0) -> Vote:
    return Vote(Kind.CLOSE, round, view, Close(head=head))


def an_own_packet(head: bytes = HEAD, *, round: int = 0) -> Packet:
    return a_packet(N, 0, Kind.CLOSE, Close(head=head), round=round)


# --- one slot, one envelope ------------------------------------------------------------------------------------------


def test_what_is_signed_is_the_members_packet() -> None:
    assert signing().sign(a_vote()) == an_own_packet()


def test_another_payload_in_a_signed_slot_gives_the_first_one_again() -> None:
    mine = signing()
    first = mine.sign(a_vote(HEAD))
    assert mine.sign(a_vote(OTHER)) == first
    assert mine.sign(a_vote(OTHER, view=1)) != first


def test_a_slot_signed_before_a_restart_is_sent_as_it_was_signed_then() -> None:
    assert signing(an_own_packet(OTHER)).sign(a_vote(HEAD)) == an_own_packet(OTHER)


def test_what_was_signed_in_forgotten_rounds_is_forgotten_too() -> None:
    mine = signing()
    packets = [mine.sign(a_vote(round=round)) for round in range(4)]
    mine.forget_before(2)
    assert [packet is not None and mine.has_signed(packet) for packet in packets] == [False, False, True, True]


# --- muted -----------------------------------------------------------------------------------------------------------


def test_a_key_of_a_lost_store_signs_nothing() -> None:
    assert lost().sign(a_vote()) is None
    assert lost().is_muted(9)


@pytest.mark.parametrize(("shown", "is_unknown"), [(an_own_packet(HEAD), False), (an_own_packet(OTHER), True)])
def test_an_own_envelope_with_another_body_than_was_signed_is_unknown(shown: Packet, *, is_unknown: bool) -> None:
    mine = signing()
    mine.sign(a_vote(HEAD))
    assert mine.is_unknown(shown) is is_unknown


def test_an_own_envelope_in_a_slot_that_was_never_signed_is_unknown() -> None:
    assert signing().is_unknown(an_own_packet())


def test_a_muted_key_has_nothing_more_to_learn_from_unknown_envelopes() -> None:
    assert not lost().is_unknown(an_own_packet())


@pytest.mark.parametrize(("chosen_by", "is_muted"), [(7, True), (8, False)])
def test_a_list_chosen_after_the_first_look_at_the_chain_ends_the_silence(chosen_by: int, *, is_muted: bool) -> None:
    mine = lost()
    mine.on_chain(7)
    mine.on_chain(9)  # only the first look counts
    mine.on_list(an_epoch(N, epoch=1, first_round=10, last_round=19), chosen_by)
    assert mine.is_muted(9)
    assert mine.is_muted(10) is is_muted


def test_no_list_ends_the_silence_before_the_first_look_at_the_chain() -> None:
    mine = lost()
    mine.on_list(an_epoch(N, epoch=1, first_round=10, last_round=19), 10**6)
    assert mine.is_muted(10)


def test_a_loss_noticed_later_counts_from_the_newest_block_then() -> None:
    mine = signing()
    mine.on_chain(7)
    mine.mute(20)
    mine.on_list(an_epoch(N, epoch=1, first_round=10, last_round=19), 20)
    assert mine.is_muted(10)
    mine.on_list(an_epoch(N, epoch=2, first_round=20, last_round=29), 21)
    assert not mine.is_muted(20)


def test_a_loss_noticed_before_the_first_look_at_the_chain_counts_from_that_look() -> None:
    """Not from the block that the member started from, which may be long past."""
    mine = signing()
    mine.mute(1)
    assert mine.unknown_until is None
    mine.on_chain(7)
    assert mine.unknown_until == 7
