"""When a round's phases end, and that work is asked for once."""

from __future__ import annotations

from p2pdfl.base.types import UpdateEntry
from p2pdfl.protocol.events import Aggregate, Effect, Notice, Tick, UpdateHeld

from .stage import Stage, fresh_commit, proposing, quiet


def phases(effects: list[Effect]) -> list[object]:
    """Those that begin."""
    return [effect.fields["phase"] for effect in effects if isinstance(effect, Notice) and effect.name == "phase"]


def begun_at(stage: Stage, now_ms: int) -> list[object]:
    stage.now_ms = now_ms
    return phases(stage.take(Tick()))


def test_phases_in_which_something_is_missing_end_at_their_deadlines() -> None:
    """Three of four COMMITs come, and two updates that they promise do not."""
    stage = quiet()
    task = stage.run.config.task
    stage.take(fresh_commit(stage, 1), fresh_commit(stage, 2))
    assert len(stage.open.commits) == 3
    assert begun_at(stage, task.commit_ms - 1) == []
    assert begun_at(stage, task.commit_ms) == ["reveal"]
    assert begun_at(stage, task.commit_ms + task.reveal_ms - 1) == []
    assert begun_at(stage, task.commit_ms + task.reveal_ms) == ["propose"]


def test_phases_in_which_nothing_is_missing_end_at_once() -> None:
    stage = quiet()
    commits = [fresh_commit(stage, member) for member in (1, 2, 3)]
    assert phases(stage.take(*commits)) == ["reveal"]
    awaited = sorted({held.promised for held in stage.open.commits.values() if held.promised} - stage.open.updates)
    told = [
        phases(stage.take(UpdateHeld(round=0, author=stage.run.epoch.addresses[member], update=update, valid=True)))
        for member, update in awaited
    ]
    assert told == [[]] * (len(awaited) - 1) + [["propose"]]


def test_an_aggregate_is_asked_for_once() -> None:
    def aggregates(effects: list[Effect]) -> list[tuple[UpdateEntry, ...]]:
        return [effect.updates for effect in effects if isinstance(effect, Aggregate)]

    stage = proposing()
    propose = stage.proposal()
    assert aggregates(stage.take(stage.packet(stage.leader(), propose))) == [propose.contents.updates]
    assert aggregates(stage.take(Tick())) == []
