"""What one member does with what others send: taken, wanted, signed."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.base import params
from p2pdfl.base.codec import body_digest, decode_payload
from p2pdfl.base.types import ZERO_DIGEST, Close, Commit, CommitEntry, Kind, Notarize, Packet, Propose, UpdateEntry
from p2pdfl.protocol.events import (
    Aggregate,
    Aggregated,
    CertificateReceived,
    CheckCommits,
    CommitsChecked,
    Deal,
    Effect,
    PacketReceived,
    Resync,
    Resynced,
    Send,
    Tick,
    Train,
    UpdateHeld,
    WantUpdate,
)
from p2pdfl.protocol.run import Run
from p2pdfl.sim.network import PlainNetwork

from .freeze import freeze
from .stage import Stage, head_of, in_commit_phase, in_propose_phase, with_contents

HEAD, OTHER = b"\x11" * 32, b"\x22" * 32


def proposing(round: int = 1, **task: Any) -> Stage:
    """Everything of the round held, nothing proposed, and member 0 does not lead view 0."""
    stages = (Stage(until=in_propose_phase(round), seed=seed, **task) for seed in range(4, 12))
    return next(stage for stage in stages if stage.leader() != 0)


def sent(effects: list[Effect], kind: Kind) -> list[Packet]:
    return [
        effect.packet for effect in effects if isinstance(effect, Send) and effect.packet.envelope.kind == int(kind)
    ]


def commits_of(stage: Stage, member: int) -> list[tuple[Packet, Commit]]:
    return [(held.packet, held.commit) for held in stage.open.commits.values() if held.member == member]


def with_state(stage: Stage) -> Propose:
    """A proposal whose state this member computes too."""
    propose = stage.proposal()
    state = b"\x44" * 32
    if propose.contents.updates not in stage.open.states:
        stage.take(Aggregated(round=stage.run.round, updates=propose.contents.updates, state=state))
    return stage.proposal()


# --- notarize ------------------------------------------------------------------------------------------------------


def test_a_proposal_whose_head_follows_is_notarized() -> None:
    stage = proposing()
    propose = with_state(stage)
    effects = stage.take(stage.packet(stage.leader(), propose))
    assert [decode_payload(packet) for packet in sent(effects, Kind.NOTARIZE)] == [Notarize(head=head_of(propose))]


def test_one_head_is_notarized_per_view() -> None:
    stage = proposing(audit_fraction=0.0)
    propose = with_state(stage)
    stage.take(stage.packet(stage.leader(), propose))
    fewer = with_contents(propose, updates=propose.contents.updates[:1])
    assert sent(stage.take(stage.packet(stage.leader(), fewer)), Kind.NOTARIZE) == []


@pytest.mark.parametrize("field", ["state", "next_members", "chain_block"])
def test_a_head_that_does_not_follow_is_not_notarized(field: str) -> None:
    stage = proposing()
    propose = with_state(stage)
    wrong = propose.replace(head=propose.head.replace(**{field: OTHER}))
    assert sent(stage.take(stage.packet(stage.leader(), wrong)), Kind.NOTARIZE) == []


def test_updates_that_no_commit_promises_are_never_aggregated() -> None:
    stage = proposing(2)
    first, *others = stage.proposal().contents.updates
    wrong = with_contents(stage.proposal(), updates=(UpdateEntry(member=first.member, update=OTHER), *others))
    effects = stage.take(stage.packet(stage.leader(), wrong))
    assert not any(isinstance(effect, Aggregate | WantUpdate) for effect in effects)
    assert sent(effects, Kind.NOTARIZE) == []


@pytest.mark.parametrize("what", ["commit", "update"])
def test_a_fresh_proposal_that_omits_what_was_held_in_time_is_refused_in_views_below_n(what: str) -> None:
    stage = proposing(audit_fraction=0.0)
    contents = with_state(stage).contents
    omitted: dict[str, Any] = {"updates": contents.updates[1:]}
    if what == "commit":
        omitted["commits"] = contents.commits[1:]
    propose = with_contents(stage.proposal(), **omitted)
    stage.take(Aggregated(round=1, updates=propose.contents.updates, state=propose.head.state))
    for view in range(5):
        skips = tuple(stage.certificate(Close(head=ZERO_DIGEST), [1, 2, 3], view=earlier) for earlier in range(view))
        leader = stage.leader(view)
        if leader == 0:
            for skip in skips:
                stage.reason(CertificateReceived(certificate=skip))
            continue
        effects = stage.take(stage.packet(leader, propose.replace(skips=skips), view=view))
        assert len(sent(effects, Kind.NOTARIZE)) == (1 if view >= 4 else 0)
    assert stage.open.view == 4


def test_a_proposal_that_waits_does_not_hide_the_other_one_of_its_leader() -> None:
    stage = proposing()
    propose = with_state(stage)
    commits = propose.contents.commits
    unknown = with_contents(propose, commits=(CommitEntry(member=commits[0].member, body=OTHER), *commits[1:]))
    effects = stage.take(stage.packet(stage.leader(), unknown))
    assert Resync(round=1) in effects
    assert sent(stage.take(stage.packet(stage.leader(), propose)), Kind.NOTARIZE) != []


def test_what_a_proposal_lacks_is_asked_for_once_per_resync() -> None:
    stage = proposing()
    propose = with_state(stage)
    commits = propose.contents.commits
    unknown = with_contents(propose, commits=(CommitEntry(member=commits[0].member, body=OTHER), *commits[1:]))
    assert Resync(round=1) in stage.take(stage.packet(stage.leader(), unknown))
    assert Resync(round=1) not in stage.take(Tick())
    stage.now_ms += stage.run.config.task.resync_ms
    assert Resync(round=1) in stage.take(Tick())


# --- COMMITs and bodies --------------------------------------------------------------------------------------------


def _fresh_commit(stage: Stage, member: int, **changes: Any) -> Packet:
    """What the member sent in round 0, or that with changes."""
    peer = stage.world.peers[member]
    found = next(packet for packet in peer.sent if packet.envelope.kind == Kind.COMMIT and packet.envelope.round == 0)
    commit = decode_payload(found)
    assert isinstance(commit, Commit)
    return stage.packet(member, commit.replace(**changes))


def quiet() -> Stage:
    """Round 0, and everybody else's COMMIT known to the test but not to member 0."""
    stage = Stage(until=in_commit_phase(0), seed=5, audit_fraction=0.0)
    world = stage.world
    world.network = PlainNetwork(latency_ms=(5, 40), is_lost=lambda sender, receiver, now_ms: receiver == 0)
    world.run(until_ms=60, until=lambda: all(peer.sent for peer in world.peers[1:]))
    stage.now_ms = world.now_ms
    return stage


def test_a_signed_copy_of_anothers_commit_does_not_displace_it() -> None:
    """ATTACK: same payload, so same body digest; under the copier's name the dealing does not verify."""
    stage = quiet()
    original = _fresh_commit(stage, 1)
    commit = decode_payload(original)
    effects = stage.run.handle(PacketReceived(packet=original), stage.now_ms)
    effects += stage.run.handle(PacketReceived(packet=stage.packet(2, commit)), stage.now_ms)  # while that is verified
    body = original.envelope.body
    first = [effect for effect in effects if isinstance(effect, CheckCommits)]
    assert len(first) == 1
    stage.take(CommitsChecked(round=0, checked=(body,), invalid=frozenset()))
    assert (1, body) in stage.open.commits
    assert (2, body) in stage.open.invalid_commits


def test_the_update_of_who_was_copied_still_counts() -> None:
    """ATTACK: the digest is committed by two, and the bytes decode under one header only."""
    stage = quiet()
    victim = _fresh_commit(stage, 1)
    commit = decode_payload(victim)
    assert isinstance(commit, Commit)
    assert commit.update != ZERO_DIGEST
    copy = _fresh_commit(stage, 2, update=commit.update)
    stage.take(copy, victim)
    addresses = stage.run.epoch.addresses
    stage.take(UpdateHeld(round=0, author=addresses[2], update=commit.update, valid=False))
    effects = stage.take(Tick())
    stage.take(UpdateHeld(round=0, author=addresses[1], update=commit.update, valid=True))
    assert [member for member, _ in stage.open.updates] == [1]
    assert [member for member, _ in stage.open.bad_updates] == [2]
    assert not any(isinstance(effect, WantUpdate) and effect.author == addresses[2] for effect in effects)


def test_an_update_that_nobody_promised_is_neither_held_nor_a_fault() -> None:
    stage = proposing()
    author = stage.run.epoch.addresses[1]
    held = set(stage.open.updates)
    for valid in (True, False):
        effects = stage.take(UpdateHeld(round=1, author=author, update=OTHER, valid=valid))
        assert not any(isinstance(effect, Send) for effect in effects)
    assert (stage.open.updates, stage.open.bad_updates) == (held, set())


def test_a_third_commit_is_ignored_until_a_proposal_names_it() -> None:
    stage = quiet()
    bodies = [_fresh_commit(stage, 1, update=bytes([fill]) * 32) for fill in (1, 2, 3)]
    stage.take(bodies[0], bodies[1], _fresh_commit(stage, 2), _fresh_commit(stage, 3))
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


def test_an_invalid_commit_makes_a_proposal_that_names_it_unsound_not_pending() -> None:
    stage = quiet()
    broken = _fresh_commit(stage, 1)
    commit = decode_payload(broken)
    assert isinstance(commit, Commit)
    dealing = commit.dealing.replace(response=(b"\1" * 32, b"\2" * 32))
    bad = stage.packet(1, commit.replace(dealing=dealing))
    stage.take(bad, _fresh_commit(stage, 2), _fresh_commit(stage, 3))
    assert (1, bad.envelope.body) in stage.open.invalid_commits
    propose = stage.proposal()
    commits = sorted(
        {*propose.contents.commits, CommitEntry(member=1, body=bad.envelope.body)}, key=lambda entry: entry.member
    )
    effects = stage.take(stage.packet(stage.leader(), with_contents(propose, commits=tuple(commits), updates=())))
    assert Resync(round=0) not in effects


# --- early messages ------------------------------------------------------------------------------------------------


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


# --- one slot, one envelope ----------------------------------------------------------------------------------------


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


def test_a_commit_under_an_own_name_is_verified_like_any_other() -> None:
    stage = quiet()
    forged = decode_payload(_fresh_commit(stage, 1))
    effects = stage.run.handle(PacketReceived(packet=stage.packet(0, forged)), stage.now_ms)
    assert any(isinstance(effect, CheckCommits) for effect in effects)
    assert [held.packet.envelope.body for held in stage.open.commits.values() if held.member == 0] != [
        body_digest(forged)
    ]


def test_a_restart_sends_the_stored_bytes() -> None:
    stage = Stage(until=in_propose_phase(0), seed=5)
    before = [packet for packet in stage.world.peers[0].sent if packet.envelope.kind == Kind.COMMIT]
    stage.world.restart(0)
    stage.world.run(until_ms=stage.now_ms + 15)
    after = [packet for packet in stage.world.peers[0].sent if packet.envelope.kind == Kind.COMMIT]
    assert len(after) == 2
    assert after == before * 2


# --- evidence ------------------------------------------------------------------------------------------------------


def test_evidence_spreads_with_the_proposal_that_lists_it() -> None:
    teller = proposing()
    teller.take(*(teller.packet(3, Close(head=head)) for head in (HEAD, OTHER)))
    proof = next(iter(teller.run.evidence_pool.equivocations.values()))
    stage = proposing()
    propose = with_state(stage)
    listing = with_contents(propose, evidence=(proof.entry,)).replace(equivocations=(proof,))
    stage.take(stage.packet(stage.leader(), listing))
    assert stage.run.evidence_pool.pending_losers(1, ()) == {stage.run.epoch.addresses[3]}


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


# --- time, chain, resync -------------------------------------------------------------------------------------------


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
