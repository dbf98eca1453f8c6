from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.scenario.faults import Cut, Outage, Step, Strike
from p2pdfl.scenario.spec import PHASES, ChainOutage, Fault, Partition, Phase, Place

AT_ROUND = 4


def at(round: int, phase: Phase = "train") -> Place:
    return Place(round, [*PHASES].index(phase))


def strike(kind: str, **fields: Any) -> Strike:
    return Strike(Fault.model_validate({"peer": 1, "kind": kind, "at_round": AT_ROUND, **fields}))


def test_a_peer_is_struck_once_when_it_tells_of_the_round() -> None:
    fault = strike("kill")
    assert fault.step(None, 6, 0.0) is None
    assert fault.step(at(3, "close"), 6, 1.0) is None
    assert not fault.is_on
    assert fault.step(at(4), 6, 2.0) is Step.BEGIN
    assert fault.is_on
    assert fault.step(at(4), 6, 3.0) is None


@pytest.mark.parametrize("phase", PHASES)
def test_a_peer_is_struck_when_it_tells_of_the_phase(phase: Phase) -> None:
    fault = strike("kill", phase=phase)
    for earlier in PHASES[: [*PHASES].index(phase)]:
        assert fault.step(at(4, earlier), 4, 1.0) is None
    assert fault.step(at(4, phase), 4, 2.0) is Step.BEGIN
    assert (fault.began_at, fault.began_round) == (at(4, phase), 4)


@pytest.mark.parametrize("place", [at(4, "reveal"), at(5), at(7, "close")])
def test_a_peer_that_passed_the_phase_over_is_struck_where_it_is(place: Place) -> None:
    fault = strike("stop", phase="commit", seconds=1)
    assert fault.step(place, 7, 0.0) is Step.BEGIN
    assert fault.began_at == place


def test_a_killed_peer_that_is_to_come_back_does_so() -> None:
    fault = strike("kill", seconds=3)
    assert fault.step(at(4), 4, 0.0) is Step.BEGIN
    assert fault.step(at(4), 6, 3.0) is Step.END
    assert fault.ended_round == 6


def test_a_kill_has_no_end() -> None:
    fault = strike("kill")
    fault.step(at(4), 4, 0.0)
    assert fault.step(at(4), 99, 1e6) is None
    assert fault.is_on


def test_a_stop_ends_once_after_its_seconds() -> None:
    fault = strike("stop", seconds=12)
    assert fault.step(at(4), 4, 100.0) is Step.BEGIN
    assert fault.step(at(4), 9, 111.0) is None
    assert fault.step(at(4), 9, 112.0) is Step.END
    assert not fault.is_on
    assert fault.step(at(5), 9, 200.0) is None


def test_an_unplugging_ends_when_the_others_have_got_so_many_rounds_further() -> None:
    fault = strike("unplug", rounds=2)
    assert fault.step(at(4), 5, 0.0) is Step.BEGIN
    assert fault.step(at(4), 6, 1000.0) is None
    assert fault.step(at(4), 7, 1001.0) is Step.END


@pytest.mark.parametrize(("others_round", "now_s"), [(9, 11.0), (6, 1000.0)])
def test_what_has_seconds_and_rounds_lasts_for_both(others_round: int, now_s: float) -> None:
    fault = strike("stop", seconds=12, rounds=2)
    assert fault.step(at(4), 5, 0.0) is Step.BEGIN
    assert fault.step(at(4), others_round, now_s) is None
    assert fault.step(at(4), 7, 12.0) is Step.END


def test_an_outage_knows_the_rounds_that_were_closed_in_it() -> None:
    outage = Outage(ChainOutage(at_round=4, seconds=12))
    assert outage.step(at(4), 4, 0.0) is Step.BEGIN
    assert list(outage.rounds_closed) == []
    assert outage.step(at(7), 7, 12.0) is Step.END
    assert list(outage.rounds_closed) == [4, 5, 6]


def test_while_nobody_gets_further_a_cut_closes_no_round() -> None:
    cut = Cut(Partition(peers=(1,), at_round=4, seconds=12))
    cut.step(at(4), 4, 0.0)
    cut.step(at(4, "propose"), 4, 12.0)
    assert list(cut.rounds_closed) == []
