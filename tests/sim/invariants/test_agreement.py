"""One head, one beacon, one list, one body per slot: each is violated by a history that breaks it, and by no other."""

from __future__ import annotations

from p2pdfl.base.types import ZERO_DIGEST, Kind, Notarize
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.sim.invariants.one_beacon_per_round import OneBeaconPerRound
from p2pdfl.sim.invariants.one_body_per_slot import OneBodyPerSlot
from p2pdfl.sim.invariants.one_head_per_round import OneHeadPerRound
from p2pdfl.sim.invariants.one_list_per_epoch import OneListPerEpoch

from .fabricated import ADDRESSES, BYZANTINE, HONEST, Fabricated, a_head

HEAD, OTHER = a_head(0, "one"), a_head(0, "other")
ONE, TWO = head_digest(HEAD), head_digest(OTHER)


def test_one_head__all_close_what_a_quorum_certified() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes(HONEST, ONE, round=0)
    for index in HONEST:
        world.closes(index, HEAD)
        world.peers[index].heads[0] = ONE
    world.checkers.at_end()
    assert world.violations == []
    assert world.checkers.history.views == {0: 1}


def test_one_head__two_can_be_certified_with_the_votes_of_the_byzantine() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes((0, 1, 2), ONE, round=0)
    world.finalizes((3, 4), TWO, round=0, view=1)
    assert world.violations == []
    world.finalizes((0,), TWO, round=0, view=1)
    assert world.violations == ["round 0: two heads can be certified, the second in view 1"]


def test_one_head__skips_and_votes_in_other_views_certify_nothing() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes(HONEST, ZERO_DIGEST, round=0)
    world.finalizes((0, 1), ONE, round=0, view=1)
    world.finalizes((2, 3), ONE, round=0, view=2)
    world.closes(0, HEAD)
    assert world.violations == ["round 0: peer0 closed with a head that no quorum certified"]


def test_one_head__another_than_the_first_to_close() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes(HONEST, ONE, round=0)
    world.closes(0, HEAD)
    world.closes(3, OTHER)
    assert world.violations == ["round 0: peer3 closed with another head"]


def test_one_head__another_than_before_a_restart() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes(HONEST, ONE, round=0)
    world.closes(2, HEAD)
    world.closes(2, OTHER)
    assert world.violations == ["round 0: peer2 closed with another head"]


def test_one_head__another_on_the_disk_in_the_end() -> None:
    world = Fabricated(OneHeadPerRound)
    for index in HONEST:
        world.peers[index].heads = {0: ONE if index < 4 else TWO}
    world.checkers.at_end(is_live=False)
    assert world.violations == ["round 0: peer4 has another head on its disk"]


def test_what_the_byzantine_close_with_is_nobodys_promise() -> None:
    world = Fabricated(OneHeadPerRound)
    world.finalizes(HONEST, ONE, round=0)
    world.closes(0, HEAD)
    world.closes(BYZANTINE[0], OTHER)
    world.peers[BYZANTINE[0]].heads[0] = TWO
    world.checkers.at_end(is_live=False)
    assert world.violations == []


def test_one_beacon__another_under_the_same_head() -> None:
    world = Fabricated(OneBeaconPerRound)
    world.closes(0, HEAD)
    world.closes(1, HEAD)
    assert world.violations == []
    world.closes(2, HEAD, beacon="other")
    assert world.violations == ["round 0: peer2 closed with another beacon"]


def test_one_body__the_same_again_is_none_more() -> None:
    world = Fabricated(OneBodyPerSlot)
    for view in (0, 1):
        for index in HONEST:
            world.sends(index, Notarize(head=ONE), Kind.NOTARIZE, round=0, view=view)
            world.sends(index, Notarize(head=ONE), Kind.NOTARIZE, round=0, view=view)
    assert world.violations == []


def test_one_body__a_second_in_a_slot() -> None:
    world = Fabricated(OneBodyPerSlot)
    for index in (1, BYZANTINE[0]):
        world.sends(index, Notarize(head=ONE), Kind.NOTARIZE, round=4, view=2)
        world.sends(index, Notarize(head=TWO), Kind.NOTARIZE, round=4, view=2)
    assert world.violations == ["peer1 signed twice in a slot: round 4, view 2, NOTARIZE"]


def test_one_list__another_at_one_peer() -> None:
    world = Fabricated(OneListPerEpoch)
    assert world.violations == []
    world.told_members(3, 1, ADDRESSES[1:])
    assert world.violations == ["epoch 1: peer3 has another list"]


def test_nothing_is_promised_once_the_byzantine_are_a_third_of_a_list() -> None:
    world = Fabricated(OneListPerEpoch)
    assert world.checkers.out_of_bounds is None
    world.told_members(0, 2, ADDRESSES[1:])
    assert world.checkers.out_of_bounds == "2 Byzantine of 6 in epoch 2"
    assert world.violations == []
