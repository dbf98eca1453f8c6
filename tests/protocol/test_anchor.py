from __future__ import annotations

from p2pdfl import params
from p2pdfl.protocol.anchor import turn_ms
from p2pdfl.protocol.assignment import Assignment

ASSIGNMENT = Assignment(leaders=(3, 0, 2), audits={}, trainers=frozenset())


def test_members_take_turns_in_leader_order() -> None:
    assert [turn_ms(ASSIGNMENT, member) for member in (3, 0, 2)] == [
        0,
        params.ANCHOR_STAGGER_MS,
        2 * params.ANCHOR_STAGGER_MS,
    ]


def test_who_does_not_lead_sends_nothing() -> None:
    assert turn_ms(ASSIGNMENT, 1) is None
    assert turn_ms(ASSIGNMENT, None) is None
