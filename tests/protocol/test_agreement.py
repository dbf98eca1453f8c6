"""Simplex, once per round: one notarization, one CLOSE, one certificate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.base.types import ZERO_DIGEST, Certificate, Digest, Kind
from p2pdfl.protocol.agreement import Agreement, compute_level, is_certificate, is_justified

from .members import DOMAIN, HEAD, OTHER, TASK, a_certificate, an_epoch

N, QUORUM = 4, 3
VIEW_MS = 1_000


def an_agreement(level: int = 0) -> Agreement:
    return Agreement(epoch=an_epoch(N), round=0, view_ms=VIEW_MS, level=level)


def vote(agreement: Agreement, kind: Kind, head: Digest, voters: list[int], *, view: int = 0, now_ms: int = 0) -> None:
    for ballot in a_certificate(N, kind, head, voters=voters, view=view).ballots:
        agreement.add_vote(
            kind=kind, view=view, head=head, voter=ballot.member, signature=ballot.signature, now_ms=now_ms
        )


def is_valid(certificate: Certificate) -> bool:
    return is_certificate(certificate, DOMAIN, TASK, an_epoch(N))


# --- tallies -------------------------------------------------------------------------------------------------------


def test_a_quorum_of_notarize_is_a_notarization_that_verifies() -> None:
    agreement = an_agreement()
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 2, 3])
    assert agreement.notarizations[0].head == HEAD
    assert is_valid(agreement.notarizations[0])


def test_less_than_a_quorum_is_nothing() -> None:
    agreement = an_agreement()
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 1])
    vote(agreement, Kind.CLOSE, HEAD, [0, 1])
    vote(agreement, Kind.CLOSE, ZERO_DIGEST, [2, 3])
    assert (agreement.notarizations, agreement.skips, agreement.certificate) == ({}, {}, None)


def test_votes_for_two_heads_views_or_kinds_are_not_added_up() -> None:
    agreement = an_agreement()
    vote(agreement, Kind.CLOSE, HEAD, [0, 1])
    vote(agreement, Kind.CLOSE, OTHER, [2])
    vote(agreement, Kind.CLOSE, HEAD, [3], view=1)
    vote(agreement, Kind.NOTARIZE, HEAD, [2])
    assert agreement.certificate is None


def test_the_same_voter_again_does_not_count_again() -> None:
    agreement = an_agreement()
    vote(agreement, Kind.CLOSE, HEAD, [0, 1, 1, 0])
    assert agreement.certificate is None


def test_a_certificate_of_an_older_view_counts() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.CLOSE, ZERO_DIGEST, [0, 1, 2])
    assert agreement.advance(1)
    vote(agreement, Kind.CLOSE, HEAD, [0, 1, 2], view=0)
    assert agreement.certificate is not None
    assert agreement.certificate.view == 0


# --- certificates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "head"), [(Kind.NOTARIZE, HEAD), (Kind.CLOSE, HEAD), (Kind.CLOSE, ZERO_DIGEST)])
def test_a_quorum_certifies(kind: Kind, head: Digest) -> None:
    assert is_valid(a_certificate(N, kind, head, voters=[0, 1, 3], view=2, round=5))


def test_two_of_four_certify_nothing() -> None:
    assert not is_valid(a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1]))


def test_one_signature_twice_is_one() -> None:
    certificate = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1])
    assert not is_valid(certificate.replace(ballots=(*certificate.ballots, certificate.ballots[1])))


def test_the_same_ballots_have_one_order_only() -> None:
    certificate = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 3])
    assert not is_valid(certificate.replace(ballots=certificate.ballots[::-1]))


def test_a_ballot_under_anothers_name_does_not_count() -> None:
    certificate = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1])
    assert not is_valid(certificate.replace(ballots=(*certificate.ballots, certificate.ballots[1].replace(member=2))))


def test_a_ballot_of_a_member_that_does_not_exist_does_not_count() -> None:
    certificate = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 2])
    stretched = (*certificate.ballots[:2], certificate.ballots[2].replace(member=N))
    assert not is_valid(certificate.replace(ballots=stretched))


@pytest.mark.parametrize(
    "change",
    [
        {"head": OTHER},
        {"head": ZERO_DIGEST},
        {"view": 1},
        {"round": 1},
        {"round": 10},
        {"epoch": 1},
        {"kind": int(Kind.NOTARIZE)},
    ],
)
def test_signatures_for_anything_else_do_not_count(change: dict[str, object]) -> None:
    assert not is_valid(a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 2]).replace(**change))


@given(signature=st.binary(min_size=64, max_size=64))
def test_junk_for_a_signature_is_no_certificate(signature: bytes) -> None:
    certificate = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 2])
    junk = certificate.ballots[0].replace(signature=signature)
    assert not is_valid(certificate.replace(ballots=(junk, *certificate.ballots[1:])))


# --- close: exactly one of finalize and skip -----------------------------------------------------------------------


def test_who_sees_the_notarization_in_time_finalizes() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 1, 2], now_ms=VIEW_MS - 1)
    assert agreement.close_vote(VIEW_MS - 1) == HEAD


def test_who_sees_no_notarization_in_time_skips() -> None:
    agreement = an_agreement()
    agreement.start(0)
    assert agreement.close_vote(VIEW_MS - 1) is None
    assert agreement.close_vote(VIEW_MS) == ZERO_DIGEST


def test_who_sees_the_notarization_too_late_skips() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 1, 2], now_ms=VIEW_MS)
    assert agreement.close_vote(VIEW_MS) == ZERO_DIGEST


def test_nobody_skips_before_its_timer_has_started() -> None:
    assert an_agreement().close_vote(10**9) is None


def test_one_close_per_view() -> None:
    agreement = an_agreement()
    agreement.start(0)
    assert agreement.close_vote(VIEW_MS) == ZERO_DIGEST
    agreement.close_signed.add(0)
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 1, 2], now_ms=VIEW_MS)
    assert agreement.close_vote(VIEW_MS) is None


def test_a_view_left_without_its_close_is_never_closed_later() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.CLOSE, ZERO_DIGEST, [1, 2, 3], now_ms=10)
    assert agreement.advance(10)
    assert 0 in agreement.close_signed


# --- views ---------------------------------------------------------------------------------------------------------


def test_a_skip_certificate_opens_the_next_view_at_once() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.CLOSE, ZERO_DIGEST, [1, 2, 3], now_ms=10)
    assert agreement.advance(10)
    assert (agreement.view, agreement.deadline_ms) == (1, 10 + 2 * VIEW_MS)


def test_a_notarization_opens_the_next_view_after_the_close_timeout_whatever_was_signed() -> None:
    agreement = an_agreement()
    agreement.start(0)
    agreement.close_signed.add(0)
    vote(agreement, Kind.NOTARIZE, HEAD, [0, 1, 2], now_ms=50)
    assert not agreement.advance(50 + VIEW_MS - 1)
    assert agreement.advance(50 + VIEW_MS)


def test_nothing_opens_the_next_view_without_a_certificate_for_this_one() -> None:
    agreement = an_agreement()
    agreement.start(0)
    assert not agreement.advance(10**9)


def test_a_certified_round_opens_no_view() -> None:
    agreement = an_agreement()
    agreement.start(0)
    vote(agreement, Kind.CLOSE, ZERO_DIGEST, [0, 1, 2])
    vote(agreement, Kind.CLOSE, HEAD, [0, 1, 2], view=1)
    assert not agreement.advance(10**9)


@pytest.mark.parametrize("level", range(params.VIEW_LEVEL_MAX + 1))
def test_timers_double_from_their_level_up_to_a_limit(level: int) -> None:
    agreement = an_agreement(level)
    agreement.start(0)
    timers = []
    for view in range(params.VIEW_DOUBLINGS_MAX + 3):
        timers.append(agreement.deadline_ms // VIEW_MS)
        agreement.add_certificate(a_certificate(N, Kind.CLOSE, ZERO_DIGEST, voters=[0, 1, 2], view=view), 0)
        assert agreement.advance(0)
    assert timers[:3] == [1 << level, 2 << level, 4 << level]
    assert set(timers[params.VIEW_DOUBLINGS_MAX - level :]) == {2**params.VIEW_DOUBLINGS_MAX}


def test_members_of_all_levels_leave_a_notarized_view_together() -> None:
    for level in range(params.VIEW_LEVEL_MAX + 1):
        agreement = an_agreement(level)
        agreement.start(0)
        vote(agreement, Kind.NOTARIZE, HEAD, [0, 1, 2], now_ms=50)
        assert 50 + VIEW_MS in agreement.deadlines_ms()
        assert not agreement.advance(50 + VIEW_MS - 1)
        assert agreement.advance(50 + VIEW_MS)


# --- what a round teaches the next ---------------------------------------------------------------------------------


LEVELS = st.integers(0, params.VIEW_LEVEL_MAX)


def closed_level(level: int, *, view: int = 0, certified_ms: int, start_ms: int | None = 0) -> int:
    """The next round's, at a member that sees the certificate of that view then."""
    agreement = an_agreement(level)
    if start_ms is not None:
        agreement.start(start_ms)
    vote(agreement, Kind.CLOSE, HEAD, [0, 1, 2], view=view, now_ms=certified_ms)
    return agreement.next_level()


@pytest.mark.parametrize(
    ("level", "view", "certified_ms", "following"),
    [
        (0, 1, 9, 1),
        (0, 2, 9 * VIEW_MS, 2),
        (1, 1, 9 * VIEW_MS, 2),
        (2, 20, 9 * VIEW_MS, params.VIEW_LEVEL_MAX),
        (0, 0, VIEW_MS, 1),
        (0, 0, VIEW_MS - 1, 0),
        (2, 0, 4 * VIEW_MS, 3),
        (2, 0, 4 * VIEW_MS - 1, 2),
        (2, 0, VIEW_MS + 1, 2),
        (2, 0, VIEW_MS, 1),
        (0, 0, 1, 0),
    ],
)
def test_skipped_views_raise_the_level_and_quick_rounds_lower_it(
    level: int, view: int, certified_ms: int, following: int
) -> None:
    assert closed_level(level, view=view, certified_ms=certified_ms) == following


def test_the_time_that_counts_is_that_of_the_views_alone() -> None:
    assert closed_level(1, certified_ms=10**6 + 500, start_ms=10**6) == 0
    assert closed_level(1, certified_ms=10**6 + 501, start_ms=10**6) == 1


def test_who_sees_the_certificate_before_its_own_timer_runs_needs_no_longer_one() -> None:
    assert closed_level(1, certified_ms=10**6, start_ms=None) == 0
    assert closed_level(1, certified_ms=10, start_ms=20) == 0


@given(level=LEVELS, view=st.integers(0, 100), elapsed_ms=st.integers(0, 10**7), timer_ms=st.integers(1, 10**6))
def test_a_level_stays_within_its_bounds(level: int, view: int, elapsed_ms: int, timer_ms: int) -> None:
    assert 0 <= compute_level(level, view=view, elapsed_ms=elapsed_ms, timer_ms=timer_ms) <= params.VIEW_LEVEL_MAX


@given(level=LEVELS)
def test_quick_rounds_bring_any_level_down(level: int) -> None:
    for _ in range(params.VIEW_LEVEL_MAX):
        level = compute_level(level, view=0, elapsed_ms=VIEW_MS // 4, timer_ms=VIEW_MS << level)
    assert level == 0


@given(level=LEVELS, notarized_ms=st.integers(1, VIEW_MS << params.VIEW_LEVEL_MAX), vote_ms=st.integers(0, 10**4))
def test_a_steady_network_is_learnt_once_and_for_all(level: int, notarized_ms: int, vote_ms: int) -> None:
    levels = []
    for _ in range(4 * params.VIEW_LEVEL_MAX):
        view = next(view for view in range(10) if VIEW_MS << (level + view) >= notarized_ms)
        level = compute_level(
            level, view=view, elapsed_ms=notarized_ms + min(vote_ms, notarized_ms), timer_ms=VIEW_MS << level
        )
        levels.append(level)
    assert len(set(levels[2 * params.VIEW_LEVEL_MAX :])) == 1
    assert VIEW_MS << level >= notarized_ms


def test_views_within_reach_of_a_certificate_are_taken() -> None:
    agreement = an_agreement()
    assert agreement.view_max() == params.VIEWS_AHEAD_MAX
    agreement.add_certificate(a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 2], view=20), 0)
    assert agreement.view_max() == 20 + params.VIEWS_AHEAD_MAX


# --- justification -------------------------------------------------------------------------------------------------


def a_notarization(view: int, head: Digest = HEAD) -> Certificate:
    return a_certificate(N, Kind.NOTARIZE, head, voters=[0, 1, 2], view=view)


def a_skip(view: int) -> Certificate:
    return a_certificate(N, Kind.CLOSE, ZERO_DIGEST, voters=[0, 1, 2], view=view)


@pytest.mark.parametrize(
    ("view", "notarized", "skipped", "is_justified_"),
    [
        (0, None, [], True),
        (0, None, [0], False),
        (1, None, [], False),
        (1, None, [0], True),
        (2, None, [0], False),
        (2, None, [1], False),
        (2, None, [0, 1], True),
        (2, None, [1, 0], False),
        (2, None, [0, 0, 1], False),
        (2, None, [0, 1, 2], False),
        (1, 0, [], True),
        (1, 0, [0], False),
        (2, 0, [], False),
        (2, 0, [1], True),
        (3, 1, [2], True),
        (3, 1, [0, 2], False),
        (1, 1, [], False),
        (1, 2, [], False),
        (0, 0, [], False),
    ],
)
def test_a_leader_shows_a_notarized_head_and_skips_of_every_view_after_it(
    view: int, notarized: int | None, skipped: list[int], is_justified_: bool
) -> None:
    notarization = None if notarized is None else a_notarization(notarized)
    skips = tuple(a_skip(each) for each in skipped)
    assert is_justified(view=view, head=HEAD, notarization=notarization, skips=skips) is is_justified_


def test_a_leader_must_propose_the_notarized_head_again() -> None:
    assert not is_justified(view=1, head=OTHER, notarization=a_notarization(0), skips=())


def test_a_certificate_of_a_head_is_no_skip_and_a_close_no_notarization() -> None:
    finalized = a_certificate(N, Kind.CLOSE, HEAD, voters=[0, 1, 2])
    assert not is_justified(view=1, head=HEAD, notarization=None, skips=(finalized,))
    assert not is_justified(view=1, head=HEAD, notarization=finalized, skips=())


@given(st.lists(st.sampled_from(["skip", "notarized", "both", "neither"]), max_size=6))
def test_what_a_leader_shows_is_what_others_ask_for(views: list[str]) -> None:
    agreement = an_agreement()
    for view, seen in enumerate(views):
        if seen in ("skip", "both"):
            agreement.add_certificate(_unsigned(Kind.CLOSE, ZERO_DIGEST, view), 0)
        if seen in ("notarized", "both"):
            agreement.add_certificate(_unsigned(Kind.NOTARIZE, HEAD, view), 0)
    justification = agreement.justification(len(views))
    if justification is not None:
        assert is_justified(view=len(views), head=HEAD, notarization=justification[0], skips=justification[1])
    else:
        assert "neither" in views


def test_more_skips_than_a_proposal_holds_are_no_justification() -> None:
    agreement = an_agreement()
    for view in range(params.VIEW_COUNT_MAX + 1):
        agreement.add_certificate(_unsigned(Kind.CLOSE, ZERO_DIGEST, view), 0)
    assert agreement.justification(params.VIEW_COUNT_MAX) is not None
    assert agreement.justification(params.VIEW_COUNT_MAX + 1) is None


def _unsigned(kind: Kind, head: Digest, view: int) -> Certificate:
    ballots = a_certificate(N, Kind.CLOSE, HEAD, voters=[0]).ballots
    return Certificate(epoch=0, round=0, view=view, kind=int(kind), head=head, ballots=ballots)


# --- the point of it -----------------------------------------------------------------------------------------------


@given(st.data())
def test_no_view_has_both_a_certificate_and_a_skip_certificate(data: st.DataObject) -> None:
    """Three honest members vote as the machine tells them; the fourth signs everything."""
    agreements = [an_agreement() for _ in range(3)]
    closes: list[Digest] = []
    for agreement in agreements:
        agreement.start(data.draw(st.integers(0, VIEW_MS)))
        notarized_ms = data.draw(st.integers(0, 3 * VIEW_MS))
        times = sorted([*data.draw(st.lists(st.integers(0, 3 * VIEW_MS), max_size=4)), notarized_ms, 4 * VIEW_MS])
        for now_ms in times:
            if now_ms == notarized_ms:
                agreement.add_certificate(_unsigned(Kind.NOTARIZE, HEAD, 0), now_ms)
            head = agreement.close_vote(now_ms)
            if head is not None:
                agreement.close_signed.add(0)
                closes.append(head)
    assert len(closes) == 3
    byzantine = 1
    assert not (closes.count(HEAD) + byzantine >= QUORUM and closes.count(ZERO_DIGEST) + byzantine >= QUORUM)
