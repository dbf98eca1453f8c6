from __future__ import annotations

from typing import Any

from p2pdfl.scenario.faults import Outage, Step, Strike
from p2pdfl.scenario.spec import ChainOutage, Fault


def strike(kind: str, **lasts: Any) -> Strike:
    return Strike(Fault.model_validate({"peer": 1, "kind": kind, "at_round": 4, **lasts}))


def test_a_peer_is_struck_once_when_it_enters_the_round() -> None:
    fault = strike("kill")
    assert fault.step(None, 6, 0.0) is None
    assert fault.step(3, 6, 1.0) is None
    assert not fault.is_on
    assert fault.step(4, 6, 2.0) is Step.BEGIN
    assert fault.is_on
    assert fault.step(4, 6, 3.0) is None


def test_a_peer_that_jumped_over_the_round_is_struck_all_the_same() -> None:
    assert strike("stop", seconds=1).step(7, 7, 0.0) is Step.BEGIN


def test_an_instant_within_the_round_comes_after_its_delay() -> None:
    fault = Strike(strike("kill").fault, delay_s=1.5)
    assert fault.step(4, 4, 10.0) is None
    assert fault.step(5, 5, 11.0) is None
    assert fault.step(5, 5, 11.5) is Step.BEGIN


def test_a_killed_peer_that_is_to_come_back_does_so() -> None:
    fault = strike("kill", seconds=3)
    assert fault.step(4, 4, 0.0) is Step.BEGIN
    assert fault.step(4, 4, 3.0) is Step.END


def test_a_kill_has_no_end() -> None:
    fault = strike("kill")
    fault.step(4, 4, 0.0)
    assert fault.step(4, 99, 1e6) is None
    assert fault.is_on


def test_a_stop_ends_once_after_its_seconds() -> None:
    fault = strike("stop", seconds=12)
    assert fault.step(4, 4, 100.0) is Step.BEGIN
    assert fault.step(4, 9, 111.0) is None
    assert fault.step(4, 9, 112.0) is Step.END
    assert not fault.is_on
    assert fault.step(5, 9, 200.0) is None


def test_an_unplugging_ends_when_the_others_have_got_so_many_rounds_further() -> None:
    fault = strike("unplug", rounds=2)
    assert fault.step(4, 5, 0.0) is Step.BEGIN
    assert fault.step(4, 6, 1000.0) is None
    assert fault.step(4, 7, 1001.0) is Step.END


def test_an_outage_knows_the_rounds_that_were_closed_in_it() -> None:
    outage = Outage(ChainOutage(at_round=4, seconds=12))
    assert outage.step(4, 4, 0.0) is Step.BEGIN
    outage.closed_before = 4
    assert list(outage.rounds_closed) == []
    assert outage.step(9, 9, 12.0) is Step.END
    outage.closed = 3
    assert list(outage.rounds_closed) == [4, 5, 6]
