"""What a member proposes, notarizes and closes, and what that rests on."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import ZERO_DIGEST, Close, CommitEntry, Kind, Notarize, Propose
from p2pdfl.protocol.events import (
    Aggregated,
    CertificateReceived,
    Effect,
    KeepNotarized,
    PacketReceived,
    Resync,
    Send,
    Tick,
)

from .members import OTHER
from .stage import Stage, head_of, proposing, sent, with_contents, with_state


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


# --- what a vote rests on ------------------------------------------------------------------------------------------
#
# Whoever voted for a head can't skip its view any more.  If all members go down, those that come back must be able to
# show the notarization, and to compute the head again (DESIGN 3.7).


def a_vote_for_a_head() -> tuple[Stage, Propose, list[Effect]]:
    """Round 0, and the effects of what made member 0 sign CLOSE for the proposal's head."""
    stage = proposing(0, audit_fraction=0.0)
    propose = with_state(stage)
    stage.take(stage.packet(stage.leader(), propose))
    votes = [stage.packet(voter, Notarize(head=head_of(propose))) for voter in (1, 2, 3)]
    return stage, propose, stage.take(*votes)


def closes(effects: list[Effect]) -> list[tuple[int, bytes]]:
    """The position and the head of each CLOSE sent."""
    return [
        (place, vote.head)
        for place, effect in enumerate(effects)
        if isinstance(effect, Send) and isinstance(vote := decode_payload(effect.packet), Close)
    ]


def test_what_a_vote_for_a_head_rests_on_is_kept_before_the_vote_is_sent() -> None:
    _, propose, effects = a_vote_for_a_head()
    head = head_of(propose)
    [(sent_at, closed)] = closes(effects)
    [(kept_at, kept)] = [(at, effect) for at, effect in enumerate(effects) if isinstance(effect, KeepNotarized)]
    assert closed == head
    assert kept_at < sent_at
    certificate = kept.certificate
    assert (certificate.kind, certificate.head, certificate.view) == (Kind.NOTARIZE, head, 0)
    named = {entry.body for entry in propose.contents.commits}
    assert {packet.envelope.body for packet in kept.packets if packet.envelope.kind == Kind.COMMIT} == named
    assert [decode_payload(packet) for packet in kept.packets if packet.envelope.kind == Kind.PROPOSE] == [propose]
    assert len(named) == 4


def test_a_vote_to_skip_rests_on_nothing() -> None:
    stage = proposing(0, audit_fraction=0.0)
    stage.now_ms = stage.open.view_deadline_ms
    effects = stage.take(Tick())
    assert [head for _, head in closes(effects)] == [ZERO_DIGEST]
    assert not any(isinstance(effect, KeepNotarized) for effect in effects)


def test_a_restart_can_show_what_its_vote_rests_on() -> None:
    """From what it signed and what it kept, though every other member has lost its store."""
    stage, _, effects = a_vote_for_a_head()
    kept = next(effect for effect in effects if isinstance(effect, KeepNotarized))
    keys = stage.world.peers[0].keys
    signed = [effect.packet for effect in effects if isinstance(effect, Send)]
    restarted = stage.world.make_run(keys, [*stage.world.peers[0].sent, *signed])
    restarted.start(stage.now_ms)
    for packet in kept.packets:
        restarted.handle(PacketReceived(packet=packet), stage.now_ms)
    restarted.handle(CertificateReceived(certificate=kept.certificate), stage.now_ms)
    empty = stage.world.make_run(stage.world.peers[1].keys)
    empty.start(stage.now_ms)
    reply = restarted.resync_reply(empty.resync_request(), lambda round: None)
    assert kept.certificate in reply.certificates
    assert set(kept.packets) <= set(reply.packets)


def test_a_head_that_cannot_be_computed_here_gets_no_vote() -> None:
    """A quorum notarized it, and one of the COMMITs that it names is not here."""
    stage = proposing(0, audit_fraction=0.0)
    propose = with_state(stage)
    first, *others = propose.contents.commits
    unknown = with_contents(propose, commits=(first.replace(body=b"\x22" * 32), *others))
    votes = [stage.packet(voter, Notarize(head=head_of(unknown))) for voter in (1, 2, 3)]
    effects = stage.take(stage.packet(stage.leader(), unknown), *votes)
    assert closes(effects) == []
