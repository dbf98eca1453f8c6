"""Scores: who is refused, for how long, and who is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pdfl
from p2pdfl.net.limits.peer_score import EXCESS, GROSS, OFFENCES, PASSED_ON, REFUSE_AT, PeerScores, Sentence

SENTENCE = Sentence(half_life_s=60, refuse_s=30, refuse_s_max=300, forgive_s=1000)
SOURCES = Path(p2pdfl.__file__).parent

times = st.lists(st.integers(0, 500), max_size=60).map(lambda steps: list(_running(steps)))
weights = st.floats(0, 2 * REFUSE_AT)


def _running(steps: list[int]) -> Iterator[int]:
    now_s = 0
    for step in steps:
        now_s += step
        yield now_s


def scores(tracked_max: int = 100) -> PeerScores[str]:
    return PeerScores(SENTENCE, tracked_max=tracked_max)


def refuse(kept: PeerScores[str], name: str, now_s: float) -> None:
    assert kept.add(name, REFUSE_AT, now_s)


@given(times, st.data())
def test_a_score_is_never_negative_and_never_reaches_what_refuses(at_s: list[int], data: st.DataObject) -> None:
    kept = scores()
    for now_s in at_s:
        kept.add("one", data.draw(weights), now_s)
        assert 0 <= kept.score("one", now_s) < REFUSE_AT


@given(times, st.data())
def test_every_refusal_ends_within_the_longest(at_s: list[int], data: st.DataObject) -> None:
    kept = scores()
    for now_s in at_s:
        if kept.add("one", data.draw(weights), now_s):
            assert SENTENCE.refuse_s <= kept.refused_for_s("one", now_s) <= SENTENCE.refuse_s_max
        assert not kept.is_refused("one", now_s + SENTENCE.refuse_s_max)


@given(st.lists(weights, max_size=30))
def test_what_comes_while_it_is_refused_makes_it_no_longer(more: list[float]) -> None:
    kept = scores()
    refuse(kept, "one", 0.0)
    for weight in more:
        assert not kept.add("one", weight, 1.0)
    assert kept.refused_for_s("one", 1.0) == SENTENCE.refuse_s - 1
    assert kept.score("one", SENTENCE.refuse_s) == 0


@given(st.floats(0.1, GROSS), st.integers(1, 200))
def test_offences_as_far_apart_as_they_are_forgotten_add_up_to_no_refusal(weight: float, count: int) -> None:
    """At a rate at which the score loses between two what the next one adds."""
    kept = scores()
    apart_s = SENTENCE.half_life_s * 2 * weight / REFUSE_AT * 1.5
    assert not any(kept.add("one", weight, number * apart_s) for number in range(count))


def test_four_gross_offences_and_a_thousand_small_excesses_are_refused() -> None:
    kept = scores()
    assert [kept.add("gross", GROSS, 0.0) for _ in range(4)] == [False, False, False, True]
    assert [kept.add("excess", EXCESS, 0.0) for _ in range(1001)].index(True) in (999, 1000)


def test_refusals_double_up_to_the_longest_and_begin_anew_once_forgiven() -> None:
    kept, now_s = scores(), 0.0
    lengths = []
    for _ in range(6):
        refuse(kept, "one", now_s)
        lengths.append(kept.refused_for_s("one", now_s))
        now_s += lengths[-1]
    assert lengths == [30, 60, 120, 240, 300, 300]
    refuse(kept, "one", now_s + SENTENCE.forgive_s)
    assert kept.refused_for_s("one", now_s + SENTENCE.forgive_s) == 30


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), weights), max_size=200))
def test_only_so_many_are_remembered(offences: list[tuple[str, float]]) -> None:
    kept = scores(tracked_max=5)
    kept.keep({"a", "b"})
    for name, weight in offences:
        kept.add(name, weight, 0.0)
        assert len(kept) <= 5 + 2


def test_many_names_with_small_offences_do_not_displace_one_who_is_or_was_refused() -> None:
    kept = scores(tracked_max=16)
    refuse(kept, "refused", 0.0)
    refuse(kept, "was refused", 0.0)
    for number in range(1000):
        kept.add(f"made up {number}", REFUSE_AT - 1, 10.0)
    assert kept.is_refused("refused", 10.0)
    refuse(kept, "was refused", 31.0)
    assert kept.refused_for_s("was refused", 31.0) == 60
    assert len(kept) <= 16


def test_a_member_is_not_displaced_even_by_others_who_are_refused() -> None:
    kept = scores(tracked_max=16)
    kept.keep({"member"})
    refuse(kept, "member", 0.0)
    for number in range(1000):
        refuse(kept, f"made up {number}", 0.0)
    assert kept.is_refused("member", 0.0)


def test_one_is_not_charged_for_another() -> None:
    kept = scores()
    refuse(kept, "one", 0.0)
    assert not kept.is_refused("other", 0.0)
    assert kept.refused(0.0) == ["one"]


def test_no_reason_that_the_protocol_ignores_is_an_offence() -> None:
    assert not ignored() & OFFENCES.keys()


@pytest.mark.parametrize("reason", sorted(OFFENCES))
def test_an_offence_is_a_reason_that_something_gives(reason: str) -> None:
    """Else it was renamed, and nobody is blamed for it any more."""
    uses = [
        path for path in SOURCES.rglob("*.py") if path.name != "peer_score.py" and f'"{reason}"' in path.read_text()
    ]
    assert uses


def test_what_depends_on_the_round_that_a_peer_is_in_is_no_offence() -> None:
    """Of what the protocol rejects, only what is wrong whenever one looks."""
    assert OFFENCES.keys() >= PASSED_ON
    assert rejected() & OFFENCES.keys() == PASSED_ON | {"view is not zero", "payload is malformed", "notarize: no head"}


def rejected() -> set[str]:
    return reasons("Reject")


def ignored() -> set[str]:
    return reasons("Ignore")


def reasons(kind: str) -> set[str]:
    text = "".join(path.read_text() for path in (SOURCES / "protocol").glob("*.py"))
    found = set(re.findall(rf'raise {kind}\("([^"]+)"\)', text))
    assert found
    return found
