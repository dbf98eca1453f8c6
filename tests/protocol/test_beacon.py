"""Dealings for one list of holders, shares by another round's members, one beacon."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import combinations

import pytest

from p2pdfl.base.types import Dealing, Share
from p2pdfl.crypto import pvss
from p2pdfl.protocol.beacon import FixedDealings, dealing_context, fix_dealings, initial_beacon, initial_parent

from .members import HEAD, OTHER, TASK, an_epoch, peers

DEALERS, HOLDERS = an_epoch(4), an_epoch(5, epoch=1, first_round=10, last_round=19)
ENTROPY = random.Random(1).randbytes


@lru_cache
def dealings() -> tuple[Dealing, ...]:
    """Round 9: dealt by the members of one epoch to those of the next."""
    return tuple(
        pvss.deal(dealing_context(TASK, 9, dealer, HOLDERS), HOLDERS.keys, HOLDERS.threshold, ENTROPY)
        for dealer in DEALERS.addresses
    )


@lru_cache
def fixed(head: bytes = HEAD) -> FixedDealings:
    return fix_dealings(task=TASK, round=9, head=head, holders=HOLDERS, dealings=dealings())


@lru_cache
def shares() -> dict[int, Share]:
    return {
        holder: pvss.decrypt(
            fixed().share_context(holder), peer.keys.pvss_secret, peer.keys.pvss_key, fixed().summed[holder], ENTROPY
        )
        for holder, peer in enumerate(peers(5))
    }


def test_dealings_verify_for_the_next_epochs_holders_only() -> None:
    pairs = [
        (dealing_context(TASK, 9, dealer, HOLDERS), dealing)
        for dealer, dealing in zip(DEALERS.addresses, dealings(), strict=True)
    ]
    assert pvss.find_invalid_dealings(pairs, HOLDERS.keys, HOLDERS.threshold, ENTROPY) == set()
    assert pvss.find_invalid_dealings(pairs, DEALERS.keys, DEALERS.threshold, ENTROPY) == {0, 1, 2, 3}


def test_any_threshold_of_shares_gives_the_same_beacon_across_an_epoch_change() -> None:
    beacons = {
        fixed().recover({holder: shares()[holder] for holder in chosen})
        for size in range(HOLDERS.threshold, 6)
        for chosen in combinations(range(5), size)
    }
    assert len(beacons) == 1


def test_fewer_shares_than_the_threshold_give_none() -> None:
    with pytest.raises(pvss.TooFewShares):
        fixed().recover({0: shares()[0]})


def test_the_beacon_is_bound_to_the_head_that_fixed_the_dealings() -> None:
    chosen = {holder: shares()[holder] for holder in (0, 1)}
    assert fixed().recover(chosen) != fixed(OTHER).recover(chosen)


def test_a_share_is_for_one_holder_and_head() -> None:
    contexts = {fixed(head).share_context(holder) for head in (HEAD, OTHER) for holder in range(5)}
    assert len(contexts) == 10


def test_the_order_of_the_dealings_does_not_matter() -> None:
    turned = fix_dealings(task=TASK, round=9, head=HEAD, holders=HOLDERS, dealings=dealings()[::-1])
    assert turned.summed == fixed().summed


def test_the_first_two_beacons_follow_from_task_list_and_block() -> None:
    base = (TASK, HEAD, OTHER)
    values = {initial_beacon(*base, round) for round in (0, 1)}
    values |= {initial_beacon(OTHER, HEAD, OTHER, 0), initial_beacon(TASK, TASK, OTHER, 0)}
    values |= {initial_beacon(TASK, HEAD, TASK, 0), initial_parent(TASK, HEAD, OTHER, OTHER)}
    assert len(values) == 6
