from __future__ import annotations

import pytest

from p2pdfl.base import params
from p2pdfl.crypto.envelope import list_hash
from p2pdfl.protocol.membership import select_members

from .members import an_epoch, registrations


def test_members_are_ordered_by_address_whatever_the_registry_says_first() -> None:
    entries = registrations(6)
    assert select_members(reversed(entries), ()) == select_members(entries, ())
    addresses = [member.address for member in select_members(entries, ())]
    assert addresses == sorted(addresses)


def test_who_exits_or_is_excluded_is_no_member() -> None:
    first, second, *others = registrations(5)
    members = select_members([first.replace(exiting=True), second, *others], [second.address])
    assert [member.address for member in members] == [entry.address for entry in others]


@pytest.mark.parametrize(
    ("count", "quorum", "threshold", "jury"),
    [(1, 1, 1, 1), (2, 2, 1, 1), (3, 3, 1, 1), (4, 3, 2, 2), (5, 4, 2, 2), (6, 5, 3, 3), (7, 5, 3, 3), (10, 7, 5, 5)],
)
def test_quorum_threshold_and_jury(count: int, quorum: int, threshold: int, jury: int) -> None:
    epoch = an_epoch(count)
    assert (epoch.quorum, epoch.threshold, epoch.jury) == (quorum, threshold, jury)


def test_honest_members_alone_reach_every_number_and_byzantine_ones_reach_none() -> None:
    for count in range(1, params.MEMBER_COUNT_MAX + 1):
        byzantine = (count - 1) // 3
        honest = count - byzantine
        assert params.quorum(count) <= honest
        assert 2 * params.quorum(count) - count > byzantine
        assert byzantine < params.threshold(count) <= honest
        assert params.jury(count) > byzantine
        if count >= 3:
            # one of the two parties to an accusation is honest
            assert params.jury(count) <= honest - 1


def test_a_list_is_known_by_the_hash_that_the_contract_computes() -> None:
    epoch = an_epoch(4)
    assert epoch.list_hash == list_hash(epoch.addresses)
    assert [epoch.indices[address] for address in epoch.addresses] == [0, 1, 2, 3]
