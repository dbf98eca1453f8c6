"""Four peers, three epochs of four rounds: the lists of epochs 1 and 2 are chosen in rounds 2 and 6."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from p2pdfl.scenario.aftermath import Aftermath
from p2pdfl.scenario.course import Course
from p2pdfl.scenario.faults import Strike
from p2pdfl.scenario.judge import judge_faults
from p2pdfl.scenario.spec import PHASES, Fault, Phase, Place, Scenario

ROUNDS = 12
OTHERS = {"0xa", "0xb", "0xc"}
STRUCK = "0xd"


def after(
    kind: str,
    struck: tuple[int, Phase] | None,
    back: int | None = None,
    *,
    named: Collection[int] = (),
    listed: Collection[int] = (0, 1, 2),
    leavers: Collection[str] = (),
    **fields: Any,
) -> Aftermath:
    """back: the others' round when it was.  named: rounds whose heads name its COMMIT.  listed: epochs that name it."""
    lasts = {"seconds": 5} if kind in ("stop", "unplug") or (kind == "kill" and back is not None) else {}
    scenario = Scenario.model_validate(
        {"name": "small", "peers": 4, "task": {"training_rounds": 8, "verdict_rounds": 2, "epoch_rounds": 4}}
    )
    fault = Fault.model_validate({"peer": 3, "kind": kind, "at_round": 1, **lasts, **fields})
    strike = Strike(fault)
    if struck is not None:
        round, phase = struck
        strike.began_s, strike.began_at = 1.0, Place(round, [*PHASES].index(phase))
    if back is not None:
        strike.ended_s, strike.ended_round = 2.0, back
    course = Course(
        committed={round: frozenset(OTHERS | ({STRUCK} if round in named else set())) for round in range(ROUNDS)},
        members={epoch: frozenset(OTHERS | ({STRUCK} if epoch in listed else set())) for epoch in (0, 1, 2)},
        leavers=frozenset(leavers),
    )
    return Aftermath(name="peer3", address=STRUCK, scenario=scenario, strike=strike, course=course)


def failures(item: Aftermath) -> list[str]:
    return [expected.what for expected in judge_faults({item.name: item}, []) if not expected.held]


AWAY = "COMMITs in heads of peers that were away"
NOTHING = "faults that came to nothing"
SILENT = "peers that were back and took no part any more"


def test_who_is_killed_for_good_is_in_no_later_head() -> None:
    assert failures(after("kill", (3, "commit"), named=range(4))) == []
    assert failures(after("kill", (3, "commit"), named=[*range(4), 7])) == [AWAY]


@pytest.mark.parametrize("phase", PHASES)
def test_who_had_told_of_no_more_than_training_had_not_committed(phase: Phase) -> None:
    struck_in_3 = after("stop", (3, phase), 6, named=[0, 1, 2, 3, 8])
    assert failures(struck_in_3) == ([AWAY] if phase == "train" else [])
    assert struck_in_3.missed == [4, 5, 6, 7, 9, 10, 11]


def test_who_is_back_takes_part_again_in_some_round_in_which_it_is_a_member() -> None:
    assert failures(after("kill", (3, "commit"), 6, named=[0, 1, 2, 3, 8])) == []
    assert failures(after("kill", (3, "commit"), 6, named=[0, 1, 2, 3])) == [SILENT]
    assert failures(after("kill", (3, "commit"), 6, named=[0, 1, 2, 3, 5])) == [AWAY, SILENT]


def test_a_round_that_was_open_all_the_while_may_name_it() -> None:
    assert failures(after("stop", (3, "train"), 3, named=range(ROUNDS))) == []


def test_who_is_back_and_on_no_list_any_more_shows_nothing() -> None:
    assert failures(after("kill", (1, "commit"), 5, named=[0, 1], listed=[0])) == [NOTHING]


def test_who_lost_its_disk_is_silent_until_a_list_that_was_chosen_after_it_was_back() -> None:
    early, late = after("kill", (1, "commit"), 2, lose_disk=True), after("kill", (1, "commit"), 3, lose_disk=True)
    assert (early.away, late.away) == (range(2, 4), range(2, 8))
    assert (early.due, late.due) == ([*range(4, ROUNDS)], [*range(8, ROUNDS)])
    off_the_list = after("kill", (1, "commit"), 3, named=[0, 1], listed=[0, 1], lose_disk=True)
    assert (off_the_list.due, failures(off_the_list)) == ([], [])
    assert failures(after("kill", (1, "commit"), 3, named=[0, 1, 5], listed=[0, 1], lose_disk=True)) == [AWAY]


def test_who_lost_its_disk_at_the_end_is_silent_to_the_end() -> None:
    assert after("kill", (9, "commit"), ROUNDS - 1, lose_disk=True).away == range(10, ROUNDS)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (after("kill", None), "nobody came so far"),
        (after("join", None), "nobody came so far"),
        (after("kill", (ROUNDS, "train")), "struck in round 12, train, when the run was over"),
        (after("stop", (3, "commit")), "the run was over before it was back"),
        (after("leave", (3, "train")), "it asked to leave too late for any list"),
        (after("join", (3, "train"), listed=[]), "it was registered too late for any list"),
    ],
)
def test_a_fault_that_came_to_nothing_is_told_with_the_reason(item: Aftermath, why: str) -> None:
    (failed,) = (expected for expected in judge_faults({item.name: item}, []) if not expected.held)
    assert failed.what == NOTHING
    assert failed.seen == [f"peer3 {item.strike.fault}: {why}"]


def test_who_left_or_joined_in_time_is_as_expected() -> None:
    assert failures(after("leave", (3, "train"), named=range(8), leavers=[STRUCK])) == []
    assert failures(after("join", (3, "train"), named=[5], listed=[1])) == []
    assert failures(after("join", (3, "train"), listed=[1])) == [SILENT]
