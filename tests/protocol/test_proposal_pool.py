"""What a proposal lacks here, and whether its head follows."""

from __future__ import annotations

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import Commit, CommitEntry, Kind, UpdateEntry
from p2pdfl.protocol.events import (
    Aggregate,
    Resync,
    Tick,
    WantUpdate,
)

from .members import OTHER
from .stage import fresh_commit, proposing, quiet, sent, with_contents, with_state


def test_updates_that_no_commit_promises_are_never_aggregated() -> None:
    stage = proposing(2)
    first, *others = stage.proposal().contents.updates
    wrong = with_contents(stage.proposal(), updates=(UpdateEntry(member=first.member, update=OTHER), *others))
    effects = stage.take(stage.packet(stage.leader(), wrong))
    assert not any(isinstance(effect, Aggregate | WantUpdate) for effect in effects)
    assert sent(effects, Kind.NOTARIZE) == []


def test_what_a_proposal_lacks_is_asked_for_once_per_resync() -> None:
    stage = proposing()
    propose = with_state(stage)
    commits = propose.contents.commits
    unknown = with_contents(propose, commits=(CommitEntry(member=commits[0].member, body=OTHER), *commits[1:]))
    assert Resync(round=1) in stage.take(stage.packet(stage.leader(), unknown))
    assert Resync(round=1) not in stage.take(Tick())
    stage.now_ms += stage.run.config.task.resync_ms
    assert Resync(round=1) in stage.take(Tick())


def test_an_invalid_commit_makes_a_proposal_that_names_it_unsound_not_pending() -> None:
    stage = quiet()
    broken = fresh_commit(stage, 1)
    commit = decode_payload(broken)
    assert isinstance(commit, Commit)
    dealing = commit.dealing.replace(response=(b"\1" * 32, b"\2" * 32))
    bad = stage.packet(1, commit.replace(dealing=dealing))
    stage.take(bad, fresh_commit(stage, 2), fresh_commit(stage, 3))
    assert (1, bad.envelope.body) in stage.open.invalid_commits
    propose = stage.proposal()
    commits = sorted(
        {*propose.contents.commits, CommitEntry(member=1, body=bad.envelope.body)}, key=lambda entry: entry.member
    )
    effects = stage.take(stage.packet(stage.leader(), with_contents(propose, commits=tuple(commits), updates=())))
    assert Resync(round=0) not in effects
