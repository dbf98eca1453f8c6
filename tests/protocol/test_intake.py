"""Which packets are taken, and what else they show: equivocations, a second process with the key."""

from __future__ import annotations

import pytest

from p2pdfl.base import params
from p2pdfl.base.types import ZERO_DIGEST, Close, Notarize
from p2pdfl.protocol.events import (
    CertificateReceived,
    Send,
)

from .freeze import freeze
from .members import HEAD, OTHER
from .stage import (
    Stage,
    commits_of,
    fresh_commit,
    head_of,
    in_commit_phase,
    in_propose_phase,
    proposing,
    quiet,
    with_contents,
    with_state,
)


def test_a_third_commit_is_ignored_until_a_proposal_names_it() -> None:
    stage = quiet()
    bodies = [fresh_commit(stage, 1, update=bytes([fill]) * 32) for fill in (1, 2, 3)]
    stage.take(bodies[0], bodies[1], fresh_commit(stage, 2), fresh_commit(stage, 3))
    assert stage.reason(bodies[2]) == "Ignore: equivocation proven before"
    propose = stage.proposal()
    named = tuple(
        entry.replace(body=bodies[2].envelope.body) if entry.member == 1 else entry
        for entry in propose.contents.commits
    )
    leader = stage.leader()
    assert leader != 0
    stage.take(stage.packet(leader, with_contents(propose, commits=named, updates=())))
    assert stage.reason(bodies[2]) is None
    assert (1, bodies[2].envelope.body) in stage.open.commits
    assert stage.reason(bodies[2]) == "Ignore: seen before"


def test_a_third_proposal_is_ignored_until_its_head_is_certified() -> None:
    stage = proposing()
    propose = with_state(stage)
    leader = stage.leader()
    junk = [propose.replace(head=propose.head.replace(state=bytes([fill]) * 32)) for fill in (1, 2)]
    stage.take(*(stage.packet(leader, each) for each in junk))
    packet = stage.packet(leader, propose)
    assert stage.reason(packet) == "Ignore: equivocation proven before"
    stage.take(CertificateReceived(certificate=stage.certificate(Close(head=head_of(propose)), [1, 2, 3])))
    assert stage.run.round == 1
    stage.take(packet)
    assert stage.run.round == 2


def test_a_proposal_of_a_far_view_is_taken_once_its_head_is_certified_there() -> None:
    stage = proposing()
    view = params.VIEWS_AHEAD_MAX + 3
    skips = tuple(stage.certificate(Close(head=ZERO_DIGEST), [1, 2, 3], view=earlier) for earlier in range(view))
    propose = with_state(stage).replace(skips=skips)
    packet = stage.packet(stage.leader(view), propose, view=view)
    assert stage.reason(packet) == "Ignore: view far ahead"
    certificate = stage.certificate(Close(head=head_of(propose)), [1, 2, 3], view=view)
    stage.take(CertificateReceived(certificate=certificate))
    if stage.leader(view) != 0:
        stage.take(packet)
        assert stage.run.round == 2


def test_messages_of_the_next_round_wait_bounded_per_member() -> None:
    stage = Stage(until=in_commit_phase(0), seed=5)
    votes = [stage.packet(1, Notarize(head=HEAD), round=1, view=view) for view in range(20)]
    refusals = [stage.reason(packet) for packet in votes]
    assert refusals.count(None) == params.EARLY_MESSAGES_PER_MEMBER_MAX
    assert set(refusals) == {None, "Ignore: round not open yet"}
    assert stage.reason(stage.packet(2, Notarize(head=HEAD), round=1)) is None


def test_an_early_message_again_takes_no_place() -> None:
    stage = Stage(until=in_commit_phase(0), seed=5)
    packet = stage.packet(1, Notarize(head=HEAD), round=1)
    assert stage.reason(packet) is None
    assert stage.reason(packet) == "Ignore: seen before"


def test_an_own_envelope_that_it_did_not_sign_makes_a_member_silent() -> None:
    stage = proposing()
    propose = with_state(stage)
    stage.take(stage.packet(0, Close(head=HEAD), view=5))
    effects = stage.take(stage.packet(stage.leader(), propose))
    assert not any(isinstance(effect, Send) for effect in effects)


def test_another_body_in_an_own_slot_makes_a_member_silent() -> None:
    """Another process has the key."""
    stage = proposing()
    propose = with_state(stage)
    mine = commits_of(stage, 0)[0][1]
    stage.take(stage.packet(0, mine.replace(update=OTHER)))
    effects = stage.take(stage.packet(stage.leader(), propose))
    assert not any(isinstance(effect, Send) for effect in effects)


@pytest.mark.slow
def test_an_own_envelope_of_an_old_round_does_not_end_the_silence() -> None:
    stage = Stage(until=in_propose_phase(4), seed=5, epoch_rounds=3, training_rounds=6, audit_fraction=0.0)
    for round in (4, 1):
        stage.take(stage.packet(0, Close(head=HEAD), round=round, epoch=round // 3, view=5))
    leader = stage.leader()
    assert leader != 0
    effects = stage.take(stage.packet(leader, with_state(stage)))
    assert not any(isinstance(effect, Send) for effect in effects)


def test_an_equivocation_in_a_closed_round_still_counts() -> None:
    stage = proposing(2)
    effects = stage.take(*(stage.packet(3, Close(head=head), round=0, view=1) for head in (HEAD, OTHER)))
    assert stage.run.evidence_pool.pending_losers(2, ()) == {stage.run.epoch.addresses[3]}
    assert [effect.name for effect in effects if hasattr(effect, "name")] == ["equivocation"]


def test_a_second_body_that_is_refused_is_evidence_and_nothing_else() -> None:
    stage = proposing()
    stage.take(stage.packet(3, Notarize(head=HEAD), view=1))
    before = freeze(stage.open, ["evidence_pool"])
    assert stage.reason(stage.packet(3, Notarize(head=ZERO_DIGEST), view=1)) is None
    assert freeze(stage.open, ["evidence_pool"]) == before
    assert stage.run.evidence_pool.pending_losers(1, ()) == {stage.run.epoch.addresses[3]}
