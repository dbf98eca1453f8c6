"""When a member does its own part of a round, and when it commits."""

from __future__ import annotations

from p2pdfl.base.types import ZERO_DIGEST, Close, Commit, Kind
from p2pdfl.protocol.contribution import Contribution
from p2pdfl.protocol.events import (
    CertificateReceived,
    Deal,
    Resync,
    Resynced,
    Tick,
    Train,
)

from .stage import Stage, commits_of, head_of, in_propose_phase, proposing, with_state


def test_who_follows_works_once_nobody_asked_knows_the_round_closed() -> None:
    """A member that was away closes round after round; what it would train for those comes too late."""
    stage = proposing()
    propose = with_state(stage)
    certificate = stage.certificate(Close(head=head_of(propose)), [1, 2, 3])
    effects = stage.take(CertificateReceived(certificate=certificate), stage.packet(stage.leader(), propose))
    assert stage.run.round == 2
    assert Resync(round=2) in effects
    assert not any(isinstance(effect, Deal | Train) for effect in effects)
    assert stage.take(Resynced(round=1)) == []
    work = stage.take(Resynced(round=2))
    assert {Deal, Train} <= {type(effect) for effect in work}


def test_who_follows_and_gets_no_answer_works_all_the_same() -> None:
    stage = proposing()
    propose = with_state(stage)
    certificate = stage.certificate(Close(head=head_of(propose)), [1, 2, 3])
    stage.take(CertificateReceived(certificate=certificate), stage.packet(stage.leader(), propose))
    stage.now_ms = stage.run.next_deadline_ms(stage.now_ms)
    assert any(isinstance(effect, Train) for effect in stage.take(Tick()))


# --- its COMMIT ----------------------------------------------------------------------------------------------------


def a_contribution(*, round: int = 1, me: int | None = 0) -> tuple[Contribution, Commit]:
    """Of an open round that begins now, at 0 ms; and the parts that it will be made of."""
    stage = Stage(until=in_propose_phase(round), seed=5)
    mine = commits_of(stage, 0)[0][1]
    contribution = Contribution(stage.run.config, stage.open.context, me, 0, is_behind=False)
    contribution.begin()
    return contribution, mine


def test_a_member_commits_once_all_parts_are_there() -> None:
    contribution, mine = a_contribution()
    contribution.on_dealt(mine.dealing)
    contribution.on_trained(mine.update)
    assert contribution.commit(0) is None
    assert mine.share is not None
    contribution.on_decrypted(mine.share)
    vote = contribution.commit(0)
    assert vote is not None
    assert (vote.kind, vote.round, vote.view, vote.payload) == (Kind.COMMIT, 1, 0, mine)
    assert contribution.commit(0) is None


def test_there_is_no_share_in_round_zero() -> None:
    contribution, mine = a_contribution(round=0)
    contribution.on_dealt(mine.dealing)
    contribution.on_trained(mine.update)
    vote = contribution.commit(0)
    assert vote is not None
    assert vote.payload == mine


def test_a_member_that_trains_too_long_commits_without_an_update() -> None:
    """Its dealing and its share are needed, and there must be time for them to arrive."""
    contribution, mine = a_contribution(round=0)
    contribution.on_dealt(mine.dealing)
    deadline_ms = Stage(until=in_propose_phase(0), seed=5).run.config.task.commit_ms * 3 // 4
    assert contribution.commit(deadline_ms - 1) is None
    vote = contribution.commit(deadline_ms)
    assert vote is not None
    assert vote.payload == mine.replace(update=ZERO_DIGEST)


def test_an_observer_commits_nothing() -> None:
    contribution, mine = a_contribution(round=0, me=None)
    contribution.on_dealt(mine.dealing)
    contribution.on_trained(mine.update)
    assert contribution.commit(10**6) is None
