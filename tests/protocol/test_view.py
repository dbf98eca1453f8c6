"""Whoever looks at a member's open round cannot change it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence, MutableSet
from functools import cache

import pytest

from p2pdfl.protocol.view import RoundView

from .stage import Stage, in_propose_phase

NAMES = sorted(name for name, value in vars(RoundView).items() if isinstance(value, property))


@cache
def a_stage() -> Stage:
    """Shared: nothing here changes it."""
    return Stage(until=in_propose_phase(1), seed=5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_a_view_shows_can_be_changed(name: str) -> None:
    view = a_stage().open
    shown = getattr(view, name)
    assert not isinstance(shown, MutableMapping | MutableSequence | MutableSet)
    with pytest.raises(AttributeError):
        setattr(view, name, shown)


@pytest.mark.parametrize("name", ["epochs", "closed", "banned", "replays"])
def test_nothing_that_a_run_shows_can_be_changed(name: str) -> None:
    shown = getattr(a_stage().run, name)
    assert isinstance(shown, Mapping)
    assert not isinstance(shown, MutableMapping)


def test_a_view_shows_what_the_member_holds() -> None:
    stage = a_stage()
    assert {member for member, _ in stage.open.commits} == {0, 1, 2, 3}
    assert set(stage.open.packets) >= {held.packet for held in stage.open.commits.values()}
    contents, _, _ = stage.open.contents()
    assert {(entry.member, entry.update) for entry in contents.updates} == stage.open.updates
