"""What closed rounds leave for the next one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from p2pdfl.base.types import ZERO_DIGEST, Commit, Digest, MemberIndex, UpdateEntry
from p2pdfl.protocol.history import ClosedRound, History

from .members import HEAD, OTHER
from .stage import Stage, in_propose_phase


@cache
def _stage() -> Stage:
    return Stage(until=in_propose_phase(1), seed=5)


def a_round(*, revealed: tuple[MemberIndex, ...] = ()) -> tuple[ClosedRound, Commit]:
    """Round 0 of a run, its contents changed; and some COMMIT."""
    closed = _stage().run.closed[0]
    updates = tuple(UpdateEntry(member=member, update=HEAD) for member in revealed)
    commit = next(iter(_stage().open.commits.values())).commit
    return replace(closed, contents=closed.contents.replace(updates=updates)), commit


def a_history() -> History:
    return History(closed={}, beacons={}, head=OTHER, state=OTHER)


@pytest.mark.parametrize(
    ("update", "revealed", "is_undelivered"),
    [(HEAD, (), True), (HEAD, (1,), False), (ZERO_DIGEST, (), False)],
)
def test_whoever_committed_to_an_update_that_is_not_in_the_head_has_not_delivered(
    update: Digest, revealed: tuple[MemberIndex, ...], *, is_undelivered: bool
) -> None:
    closed, commit = a_round(revealed=revealed)
    history = a_history()
    history.append(closed, HEAD, [(1, commit.replace(update=update))], None)
    assert (closed.epoch.addresses[1] in history.undelivered) is is_undelivered


@pytest.mark.parametrize(("update", "is_undelivered"), [(HEAD, False), (ZERO_DIGEST, True)])
def test_only_an_update_that_comes_makes_up_for_one_that_did_not(update: Digest, *, is_undelivered: bool) -> None:
    history = a_history()
    closed, commit = a_round()
    history.append(closed, HEAD, [(1, commit.replace(update=HEAD))], None)
    closed, _ = a_round(revealed=() if update == ZERO_DIGEST else (1,))
    history.append(closed, HEAD, [(1, commit.replace(update=update))], None)
    assert (closed.epoch.addresses[1] in history.undelivered) is is_undelivered


def test_the_next_round_starts_from_the_last_head_and_its_state() -> None:
    closed, _ = a_round()
    history = a_history()
    history.append(closed, HEAD, [], None)
    assert (history.head, history.state, history.closed) == (HEAD, closed.state, {0: closed})


def test_old_rounds_and_beacons_are_forgotten() -> None:
    closed, _ = a_round()
    history = History(
        closed={round: replace(closed, round=round) for round in range(4)},
        beacons=dict.fromkeys(range(6), HEAD),
        head=HEAD,
        state=HEAD,
    )
    history.forget_before(2)
    assert (sorted(history.closed), sorted(history.beacons)) == ([2, 3], [2, 3, 4, 5])
