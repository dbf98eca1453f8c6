"""Shares before the certificate, counted against the threshold of three of seven."""

from __future__ import annotations

from p2pdfl.sim.invariants.share_after_certificate import ShareAfterCertificate

from .fabricated import HONEST, Fabricated, a_digest

HEAD = a_digest("head")
OPEN = "round 1: the beacon is open before the head that fixes its dealings is certified"


def test_after_the_certificate_all_give_their_shares() -> None:
    world = Fabricated(ShareAfterCertificate)
    world.finalizes((0, 1, 2), HEAD, round=0)
    world.gives_share(HONEST, HEAD, round=1)
    assert world.violations == []


def test_one_share_before_it_and_those_of_the_byzantine_open_the_beacon() -> None:
    world = Fabricated(ShareAfterCertificate)
    world.finalizes((0, 1), HEAD, round=0)
    world.gives_share((3,), HEAD, round=1)
    assert world.violations == [OPEN]


def test_shares_for_a_head_are_not_covered_by_the_certificate_of_another() -> None:
    world = Fabricated(ShareAfterCertificate)
    world.finalizes(HONEST, HEAD, round=0)
    world.gives_share((3,), a_digest("other"), round=1)
    assert world.violations == [OPEN]


def test_in_round_zero_there_is_nothing_to_open() -> None:
    world = Fabricated(ShareAfterCertificate)
    world.gives_share(HONEST, HEAD, round=0)
    assert world.violations == []
