"""When a member does its own part of a round, and when it commits."""

from __future__ import annotations

from p2pdfl.base.types import Close
from p2pdfl.protocol.events import (
    CertificateReceived,
    Deal,
    Resync,
    Resynced,
    Tick,
    Train,
)

from .stage import head_of, proposing, with_state

HEAD, OTHER = b"\x11" * 32, b"\x22" * 32


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
