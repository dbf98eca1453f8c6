"""Which COMMITs and updates of a round count."""

from __future__ import annotations

from p2pdfl.base.codec import body_digest, decode_payload
from p2pdfl.base.types import ZERO_DIGEST, Commit
from p2pdfl.protocol.events import (
    CheckCommits,
    CommitsChecked,
    PacketReceived,
    Send,
    Tick,
    UpdateHeld,
    WantUpdate,
)

from .members import OTHER
from .stage import fresh_commit, proposing, quiet


def test_a_signed_copy_of_anothers_commit_does_not_displace_it() -> None:
    """ATTACK: same payload, so same body digest; under the copier's name the dealing does not verify."""
    stage = quiet()
    original = fresh_commit(stage, 1)
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
    victim = fresh_commit(stage, 1)
    commit = decode_payload(victim)
    assert isinstance(commit, Commit)
    assert commit.update != ZERO_DIGEST
    copy = fresh_commit(stage, 2, update=commit.update)
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


def test_a_commit_under_an_own_name_is_verified_like_any_other() -> None:
    stage = quiet()
    forged = decode_payload(fresh_commit(stage, 1))
    effects = stage.run.handle(PacketReceived(packet=stage.packet(0, forged)), stage.now_ms)
    assert any(isinstance(effect, CheckCommits) for effect in effects)
    assert [held.packet.envelope.body for held in stage.open.commits.values() if held.member == 0] != [
        body_digest(forged)
    ]
