"""What a vote for a head rests on is on disk before the vote leaves, so that a restart can show it (DESIGN 3.7).

Whoever voted for a head can't skip its view any more.  If all members go down, those that come back must be able to
show the notarization, and to compute the head again.
"""

from __future__ import annotations

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import ZERO_DIGEST, Close, Kind, Notarize, Propose
from p2pdfl.protocol.events import CertificateReceived, Effect, KeepNotarized, PacketReceived, Send, Tick

from .stage import Stage, head_of, with_contents
from .test_run import proposing, with_state


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
