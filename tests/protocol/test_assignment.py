"""From a beacon: leaders, trainers, auditors and their targets."""

from __future__ import annotations

import math
from collections import Counter
from hashlib import sha256
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.protocol.assignment import Assignment, batch_seed, compute_assignment, shuffled, turn_ms

beacons = st.binary(min_size=32, max_size=32)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    count = draw(st.integers(1, 24))
    unbanned = sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))
    return {
        "beacon": draw(beacons),
        "unbanned": unbanned,
        "present": draw(st.sets(st.integers(0, count - 1))),
        "audit_fraction": draw(st.floats(0, 1)),
        "audited": draw(st.sets(st.sampled_from(unbanned))),
        "is_training_round": draw(st.booleans()),
    }


def a_draw(seed: int, **fields: object) -> Assignment:
    case: dict[str, object] = {
        "beacon": sha256(b"%d" % seed).digest(),
        "unbanned": list(range(4)),
        "present": set(range(4)),
        "audit_fraction": 0.25,
        "audited": set(range(4)),
        "is_training_round": True,
    }
    return compute_assignment(**{**case, **fields})  # type: ignore[arg-type]


@given(cases())
def test_as_many_auditors_as_there_are_targets_for(case: dict[str, Any]) -> None:
    audits = compute_assignment(**case).audits
    asked = min(math.ceil(case["audit_fraction"] * len(case["unbanned"])), len(case["audited"]))
    alone = len(case["unbanned"]) == 1
    assert len(audits) == (0 if alone else asked)


@given(cases())
def test_targets_are_distinct_audited_and_never_oneself(case: dict[str, Any]) -> None:
    audits = compute_assignment(**case).audits
    assert len(set(audits.values())) == len(audits)
    assert set(audits.values()) <= set(case["audited"])
    assert set(audits) <= set(case["unbanned"])
    assert all(auditor != target for auditor, target in audits.items())


@given(cases())
def test_all_train_who_are_not_banned_auditors_among_them(case: dict[str, Any]) -> None:
    assignment = compute_assignment(**case)
    assert assignment.trainers == (set(case["unbanned"]) if case["is_training_round"] else set())


@given(cases())
def test_every_unbanned_member_leads_once_in_a_cycle_the_absent_ones_last(case: dict[str, Any]) -> None:
    assignment = compute_assignment(**case)
    count = len(case["unbanned"])
    assert sorted(assignment.leaders) == case["unbanned"]
    assert [assignment.leader(view) for view in range(2 * count)] == list(assignment.leaders) * 2
    is_absent = [leader not in case["present"] for leader in assignment.leaders]
    assert is_absent == sorted(is_absent)


@given(cases())
def test_the_draw_is_the_same_everywhere(case: dict[str, Any]) -> None:
    again = {**case, "audited": sorted(case["audited"], reverse=True), "present": frozenset(case["present"])}
    assert compute_assignment(**case) == compute_assignment(**again)


def test_nobody_audits_in_rounds_without_audited_updates() -> None:
    assert a_draw(1, audited=set()).audits == {}


def test_one_audit_a_round_takes_place_in_every_round() -> None:
    assert all(len(a_draw(seed).audits) == 1 for seed in range(200))


def test_pairs_are_uniform() -> None:
    draws = 6_000
    pairs = Counter(pair for seed in range(draws) for pair in a_draw(seed).audits.items())
    expected = draws / 12
    assert len(pairs) == 12
    # the sum of squares over expectation: 11 degrees of freedom, 99.9 % below 31.3
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 31.3


def test_leaders_are_uniform() -> None:
    draws = 4_000
    firsts = Counter(a_draw(seed).leader(0) for seed in range(draws))
    assert sum((count - draws / 4) ** 2 / (draws / 4) for count in firsts.values()) < 16.3


@given(beacons, st.integers(0, 60))
def test_a_shuffle_keeps_every_item(beacon: bytes, count: int) -> None:
    assert sorted(shuffled(beacon, b"test", range(count))) == list(range(count))


def test_draws_for_different_purposes_are_independent() -> None:
    beacon = sha256(b"beacon").digest()
    assert shuffled(beacon, b"leaders", range(50)) != shuffled(beacon, b"auditors", range(50))


def test_batches_differ_by_task_round_author_and_beacon() -> None:
    base = (b"\1" * 32, b"\2" * 32, 3, b"\4" * 20)
    others = [
        (b"\5" * 32, *base[1:]),
        (base[0], b"\5" * 32, *base[2:]),
        (*base[:2], 4, base[3]),
        (*base[:3], b"\5" * 20),
    ]
    assert len({batch_seed(*each) for each in (base, *others)}) == 5


THREE_LEAD = Assignment(leaders=(3, 0, 2), audits={}, trainers=frozenset())


def test_members_take_turns_in_leader_order() -> None:
    assert [turn_ms(THREE_LEAD, member) for member in (3, 0, 2)] == [
        0,
        params.ANCHOR_STAGGER_MS,
        2 * params.ANCHOR_STAGGER_MS,
    ]


def test_who_does_not_lead_sends_nothing() -> None:
    assert turn_ms(THREE_LEAD, 1) is None
    assert turn_ms(THREE_LEAD, None) is None
