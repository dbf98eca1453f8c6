"""Token buckets, and the promise that an honest peer never empties one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.net.limits.rates import PASS_ON, Buckets, Rate

RATE = Rate(per_s=10, burst=40)


def buckets(rate: Rate = RATE, names_max: int = 100) -> Buckets[str]:
    return Buckets(rate, names_max=names_max)


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.1, 5))
def test_no_more_passes_than_the_burst_and_the_rate(steps: list[float], count: float) -> None:
    bucket, now_s, passed = buckets(), 0.0, 0.0
    for step in steps:
        now_s += step
        if bucket.take("one", count, now_s):
            passed += count
        assert passed <= RATE.burst + RATE.per_s * now_s + 1e-6


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.99 * RATE.burst / RATE.per_s)), max_size=300))
def test_who_passes_on_no_more_than_it_may_is_within_the_rate_of_the_next_also_behind_a_stalled_link(
    steps: list[tuple[float, float]],
) -> None:
    """Messages arrive in order, each up to a burst's worth of seconds late."""
    sender, receiver = buckets(RATE.times(PASS_ON)), buckets()
    sent_s = arrived_s = 0.0
    for step_s, late_s in steps:
        sent_s += step_s
        if sender.take("next", 1, sent_s):
            arrived_s = max(arrived_s, sent_s + late_s)
            assert receiver.take("honest", 1, arrived_s)


def test_what_is_over_the_rate_takes_nothing() -> None:
    bucket = buckets()
    assert bucket.take("one", 40, 0.0)
    assert not any(bucket.take("one", 1, 0.05) for _ in range(100))
    assert bucket.take("one", 1, 0.1)


def test_one_does_not_use_up_what_another_has() -> None:
    bucket = buckets()
    assert bucket.take("one", 40, 0.0)
    assert bucket.take("other", 40, 0.0)


def test_a_debt_is_waited_for() -> None:
    bucket = buckets()
    assert bucket.owe("one", 40, 0.0) == 0
    assert bucket.owe("one", 20, 0.0) == 2
    assert bucket.owe("one", 0, 2.0) == 0
    assert not bucket.take("one", 1, 2.0)


@given(st.lists(st.integers(0, 30), max_size=100))
def test_only_so_many_names_are_remembered(names: list[int]) -> None:
    bucket = buckets(names_max=5)
    for name in names:
        bucket.take(str(name), 1, 0.0)
        assert len(bucket) <= 5
