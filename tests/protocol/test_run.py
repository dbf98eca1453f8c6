"""What outlives a round, and what one member has for another."""

from __future__ import annotations

from p2pdfl.base import params
from p2pdfl.base.types import ZERO_DIGEST, Close, Kind, Notarize
from p2pdfl.protocol.events import (
    Tick,
)
from p2pdfl.protocol.run import Run

from .members import HEAD, OTHER
from .stage import Stage, in_commit_phase, in_propose_phase, proposing, with_contents, with_state


def test_a_restart_sends_the_stored_bytes() -> None:
    stage = Stage(until=in_propose_phase(0), seed=5)
    before = [packet for packet in stage.world.peers[0].sent if packet.envelope.kind == Kind.COMMIT]
    stage.world.restart(0)
    stage.world.run(until_ms=stage.now_ms + 15)
    after = [packet for packet in stage.world.peers[0].sent if packet.envelope.kind == Kind.COMMIT]
    assert len(after) == 2
    assert after == before * 2


def test_evidence_spreads_with_the_proposal_that_lists_it() -> None:
    teller = proposing()
    teller.take(*(teller.packet(3, Close(head=head)) for head in (HEAD, OTHER)))
    proof = next(iter(teller.run.evidence_pool.equivocations.values()))
    stage = proposing()
    propose = with_state(stage)
    listing = with_contents(propose, evidence=(proof.entry,)).replace(equivocations=(proof,))
    stage.take(stage.packet(stage.leader(), listing))
    assert stage.run.evidence_pool.pending_losers(1, ()) == {stage.run.epoch.addresses[3]}


def test_a_deadline_that_passed_during_refused_messages_is_due_at_once() -> None:
    stage = Stage(until=in_commit_phase(0), seed=5)
    due = stage.run.next_deadline_ms(stage.now_ms)
    stage.now_ms = due + 50
    assert stage.reason(stage.packet(1, Notarize(head=ZERO_DIGEST))) == "Reject: notarize: no head"
    assert stage.run.next_deadline_ms(stage.now_ms) == stage.now_ms
    stage.take(Tick())
    assert stage.run.next_deadline_ms(stage.now_ms) > stage.now_ms


def test_who_is_a_round_behind_gets_what_the_head_names_and_the_certificate() -> None:
    stage = proposing(1)
    behind = stage.world.make_run(stage.world.peers[1].keys)
    behind.start(0)
    reply = stage.run.resync_reply(behind.resync_request(), lambda round: None)
    assert [certificate.head for certificate in reply.certificates] == [stage.run.head]
    kinds = [packet.envelope.kind for packet in reply.packets]
    assert kinds == sorted(kinds)
    assert {packet.envelope.body for packet in reply.packets if packet.envelope.kind == Kind.COMMIT} == {
        entry.body for entry in stage.run.closed[0].contents.commits
    }


def test_a_resync_for_another_task_or_a_later_round_gets_nothing() -> None:
    stage = proposing(1)
    request = stage.run.resync_request()
    for other in (request.replace(task=OTHER), request.replace(round=2), request.replace(round=2**32 - 1)):
        reply = stage.run.resync_reply(other, lambda round: None)
        assert (reply.packets, reply.certificates) == ((), ())


def test_a_resync_request_names_what_is_here() -> None:
    stage = proposing(1)
    reply = stage.run.resync_reply(stage.run.resync_request(), lambda round: None)
    assert reply.packets == ()


def test_history_reaches_as_far_as_the_tasks_verdicts() -> None:
    run: Run = Stage(until=in_commit_phase(0), verdict_rounds=16).run
    assert run.config.history_rounds >= 16 + params.AUDIT_LAG
