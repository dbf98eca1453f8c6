"""Every reason for which a packet is not taken, and that not taking it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

import pytest

from p2pdfl.base import params
from p2pdfl.base.codec import encode
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Close,
    Commit,
    CommitEntry,
    Judge,
    Kind,
    Notarize,
    Outcome,
    Packet,
    UpdateEntry,
)
from p2pdfl.crypto.envelope import Signer
from p2pdfl.protocol.events import CertificateReceived, Notice, PacketReceived

from .freeze import RESYNC_SOONER, freeze
from .stage import Stage, head_of, in_commit_phase, in_propose_phase, with_contents
from .test_audit import an_entry
from .test_evidence_pool import an_equivocation

HEAD, OTHER = b"\x11" * 32, b"\x22" * 32


@lru_cache
def a_stage() -> Stage:
    """Round 2, everything held, nothing proposed.  Shared: every packet here is refused, so it stays as it is."""
    stages = (Stage(until=in_propose_phase(2), seed=seed) for seed in range(5, 30))
    return next(
        stage
        for stage in stages
        if stage.leader() != 0 and not stage.open.proposals and stage.open.context.assignment.audits
    )


def refused(stage: Stage, packet: Any, ignoring: Collection[str] = ()) -> str | None:
    before = freeze(stage.run, ignoring)
    reason = stage.reason(packet)
    assert freeze(stage.run, ignoring) == before
    return reason


def a_commit(stage: Stage, **changes: Any) -> Commit:
    held = next(held for held in stage.open.commits.values() if held.member == 1)
    return held.commit.replace(**changes)


# --- the envelope --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ({"task": OTHER}, "Reject: other task"),
        ({"epoch": 1}, "Reject: epoch is not the round's"),
        ({"epoch": 2**32 - 1}, "Reject: epoch is not the round's"),
        ({"round": 2**32 - 1, "epoch": 1}, "Reject: epoch is not the round's"),
        ({"round": 8, "epoch": 1}, "Ignore: epoch not known yet"),
        ({"round": 4}, "Ignore: round not open yet"),
        ({"view": params.VIEWS_AHEAD_MAX + 1}, "Ignore: view far ahead"),
        ({"view": 2**32 - 1}, "Ignore: view far ahead"),
        ({"round": 1, "view": params.VIEWS_AHEAD_MAX + 1}, "Ignore: view far ahead"),
    ],
)
def test_a_vote_from_elsewhere(slot: dict[str, Any], reason: str) -> None:
    stage = a_stage()
    assert refused(stage, stage.packet(1, Close(head=HEAD), **slot), RESYNC_SOONER) == reason


@pytest.mark.slow
def test_an_old_rounds_packet_is_long_closed() -> None:
    stage = Stage(until=in_commit_phase(9), seed=5, training_rounds=8, audit_fraction=0.0)
    assert stage.run.config.history_rounds == 8
    assert refused(stage, stage.packet(1, Close(head=HEAD), round=0, epoch=0)) == "Ignore: round long closed"


def test_a_signature_that_is_none() -> None:
    stage = a_stage()
    packet = stage.packet(1, Close(head=HEAD))
    assert refused(stage, packet.replace(signature=b"\xff" * 64)) == "Reject: signature does not verify"


def test_a_signature_by_nobody_on_the_list() -> None:
    stage = a_stage()
    packet = stage.packet(1, Close(head=HEAD))
    stranger = Signer(b"\x01" * 32).sign(stage.run.config.domain, packet.envelope)
    assert refused(stage, packet.replace(signature=stranger)) == "Reject: signer is not a member"


def test_a_payload_that_is_not_the_signed_body() -> None:
    stage = a_stage()
    packet = stage.packet(1, Close(head=HEAD), view=3)
    assert refused(stage, packet.replace(payload=encode(Close(head=OTHER)))) == "Reject: payload is malformed"


def test_junk_under_a_signature_does_not_keep_out_what_it_is_for() -> None:
    """Found by the simulator (seed 16039): else whoever passes on an equivocator's second COMMIT with another payload
    leaves the receiver behind for ever, once a head names that COMMIT."""
    stage = Stage(until=in_propose_phase(2), seed=5)
    first, second = (stage.packet(1, Close(head=head), view=3) for head in (HEAD, OTHER))
    stage.run.handle(PacketReceived(packet=first), 0)
    assert refused(stage, second.replace(payload=first.payload)) == "Reject: payload is malformed"
    notices = stage.run.handle(PacketReceived(packet=second), 0)
    assert [notice.name for notice in notices if isinstance(notice, Notice)] == ["equivocation"]
    assert second in stage.open.packets


def test_a_payload_of_another_kind() -> None:
    stage = a_stage()
    packet = stage.packet(1, Close(head=HEAD), kind=int(Kind.PROPOSE))
    assert refused(stage, packet) == "Reject: payload is malformed"


def test_what_was_taken_before() -> None:
    stage = a_stage()
    for packet in stage.open.packets:
        assert refused(stage, packet) == "Ignore: seen before"


# --- COMMIT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slot", "reason"),
    [
        ({"parent": OTHER}, {}, "commit: other parent"),
        ({"share": None}, {}, "commit: share missing or unasked for"),
        ({}, {"view": 1}, "view is not zero"),
    ],
)
def test_commit__reject(changes: dict[str, Any], slot: dict[str, int], reason: str) -> None:
    stage = Stage(until=in_commit_phase(1), seed=5)
    commit = a_commit(a_stage()).replace(**{"parent": stage.open.context.parent, **changes})
    assert refused(stage, stage.packet(1, commit, **slot)) == f"Reject: {reason}"


def test_commit__reject__a_share_in_round_zero() -> None:
    stage = Stage(until=in_commit_phase(0), seed=5)
    commit = a_commit(a_stage()).replace(parent=stage.open.context.parent)
    assert refused(stage, stage.packet(1, commit)) == "Reject: commit: share missing or unasked for"


# --- PROPOSE -------------------------------------------------------------------------------------------------------


def test_propose__reject__not_the_leader() -> None:
    stage = a_stage()
    other = next(member for member in (1, 2, 3) if member != stage.leader())
    assert refused(stage, stage.packet(other, stage.proposal())) == "Reject: propose: not this view's leader"


@pytest.mark.parametrize("field", ["task", "parent"])
def test_propose__reject__another_head(field: str) -> None:
    stage = a_stage()
    propose = stage.proposal()
    changed = propose.replace(head=propose.head.replace(**{field: OTHER}))
    assert refused(stage, stage.packet(stage.leader(), changed)) == "Reject: propose: head of another round"


@pytest.mark.parametrize("field", ["epoch", "round"])
def test_propose__reject__another_rounds_head(field: str) -> None:
    stage = a_stage()
    propose = stage.proposal()
    changed = propose.replace(head=propose.head.replace(**{field: 2**32 - 1}))
    assert refused(stage, stage.packet(stage.leader(), changed)) == "Reject: propose: head of another round"


def test_propose__reject__contents_that_are_not_the_heads() -> None:
    stage = a_stage()
    propose = stage.proposal()
    changed = propose.replace(contents=propose.contents.replace(updates=()))
    assert refused(stage, stage.packet(stage.leader(), changed)) == "Reject: propose: contents are not the head's"


def _contents_of(what: str, stage: Stage) -> dict[str, Any]:
    contents = stage.proposal().contents
    commits, updates = contents.commits, contents.updates
    ghost = CommitEntry(member=250, body=OTHER)
    changes: dict[str, dict[str, Any]] = {
        "none": {"commits": (), "updates": ()},
        "an equivocation": {"evidence": (an_equivocation(round=2).entry,)},
        "a verdict": {"verdicts": (an_entry(round=2, audited_round=0),)},
        "two": {"commits": commits[:2], "updates": ()},
        "backwards": {"commits": commits[::-1]},
        "twice": {"commits": (commits[0], *commits)},
        "ghost": {"commits": (*commits, ghost)},
        "updates backwards": {"updates": updates[::-1]},
        "updates twice": {"updates": (updates[0], *updates)},
        "update of nobody": {"updates": (UpdateEntry(member=250, update=OTHER),)},
    }
    return changes[what]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("none", "fewer than a quorum of commits"),
        ("two", "fewer than a quorum of commits"),
        ("backwards", "commits out of order"),
        ("twice", "commits out of order"),
        ("ghost", "commits out of order"),
        ("updates backwards", "updates out of order"),
        ("updates twice", "updates out of order"),
        ("update of nobody", "updates out of order"),
        ("an equivocation", "evidence without its proof"),
        ("a verdict", "verdict without its proof"),
    ],
)
def test_propose__reject__contents(what: str, reason: str) -> None:
    stage = a_stage()
    changed = with_contents(stage.proposal(), **_contents_of(what, stage))
    assert refused(stage, stage.packet(stage.leader(), changed)) == f"Reject: propose: {reason}"


@pytest.mark.parametrize("banned", [ZERO_DIGEST, OTHER])
def test_propose__reject__others_banned(banned: bytes) -> None:
    stage = a_stage()
    changed = with_contents(stage.proposal(), banned=banned)
    assert refused(stage, stage.packet(stage.leader(), changed)) == "Reject: propose: others are banned"


def test_propose__reject__a_later_view_without_justification() -> None:
    stage = a_stage()
    packet = stage.packet(stage.leader(1), stage.proposal(), view=1)
    assert refused(stage, packet) == "Reject: propose: not justified"


def _justified(stage: Stage, what: str) -> Packet:
    propose = stage.proposal()
    notarization = stage.certificate(Notarize(head=head_of(propose)), [1, 2, 3])
    skip = stage.certificate(Close(head=ZERO_DIGEST), [1, 2, 3])
    match what:
        case "too few":
            propose = propose.replace(skips=(skip.replace(ballots=skip.ballots[:2]),))
        case "another round":
            propose = propose.replace(skips=(skip.replace(round=1),))
        case "another epoch":
            propose = propose.replace(notarization=notarization.replace(epoch=1))
        case "a forged ballot":
            forged = notarization.ballots[0].replace(signature=b"\x01" * 64)
            propose = propose.replace(notarization=notarization.replace(ballots=(forged, *notarization.ballots[1:])))
    return stage.packet(stage.leader(1), propose, view=1)


@pytest.mark.parametrize("what", ["too few", "another round", "another epoch", "a forged ballot"])
def test_propose__reject__a_justification_that_does_not_verify(what: str) -> None:
    stage = a_stage()
    assert refused(stage, _justified(stage, what)) == "Reject: propose: justification does not verify"


# --- votes ---------------------------------------------------------------------------------------------------------


def test_notarize__reject__no_head() -> None:
    stage = a_stage()
    assert refused(stage, stage.packet(1, Notarize(head=ZERO_DIGEST))) == "Reject: notarize: no head"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda stage: stage.certificate(Close(head=HEAD), [1, 2]), "Reject: certificate: no quorum of signatures"),
        (
            lambda stage: stage.certificate(Close(head=HEAD), [1, 2, 3]).replace(head=OTHER),
            "Reject: certificate: no quorum of signatures",
        ),
        (
            lambda stage: stage.certificate(Close(head=HEAD), [1, 2, 3]).replace(round=1),
            "Ignore: certificate of another round",
        ),
        (
            lambda stage: stage.certificate(Close(head=HEAD), [1, 2, 3]).replace(round=2**32 - 1),
            "Ignore: certificate of another round",
        ),
    ],
)
def test_a_certificate_that_is_none(make: Callable[[Stage], Any], reason: str) -> None:
    stage = a_stage()
    assert refused(stage, CertificateReceived(certificate=make(stage))) == reason


# --- ACCUSE, JUDGE -------------------------------------------------------------------------------------------------


def _audit(stage: Stage) -> tuple[int, int]:
    """By another than member 0, who may sign nothing that it does not know of."""
    return next(pair for pair in stage.open.context.assignment.audits.items() if pair[0] != 0)


@pytest.mark.parametrize("change", [{"accused": 200}, {"audited_round": 1}, {"audited_round": 2**32 - 1}])
def test_accuse__reject__not_as_assigned(change: dict[str, int]) -> None:
    stage = a_stage()
    auditor, target = _audit(stage)
    accuse = Accuse(accused=target, audited_round=0).replace(**change)
    assert refused(stage, stage.packet(auditor, accuse)) == "Reject: accuse: not the assigned auditor"


def test_accuse__reject__who_does_not_audit() -> None:
    stage = a_stage()
    _, target = _audit(stage)
    idle = next(member for member in (1, 2, 3) if member not in stage.open.context.assignment.audits)
    accuse = Accuse(accused=target, audited_round=0)
    assert refused(stage, stage.packet(idle, accuse)) == "Reject: accuse: not the assigned auditor"


def a_judgement(stage: Stage, **changes: Any) -> tuple[int, Judge]:
    auditor, target = _audit(stage)
    juror = next(member for member in (3, 2, 1) if member not in (auditor, target))
    judge = Judge(accused=target, accuser=auditor, audited_round=0, outcome=int(Outcome.GUILTY))
    return juror, judge.replace(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"accused": 200},
        {"accuser": 200},
        {"audited_round": 1},
        {"outcome": int(Outcome.OBJECTIVE)},
    ],
)
def test_judge__reject__no_such_case(changes: dict[str, int]) -> None:
    stage = a_stage()
    juror, judge = a_judgement(stage, **changes)
    assert refused(stage, stage.packet(juror, judge, view=judge.accuser)) == "Reject: judge: no such case"


@pytest.mark.parametrize("view", [3, 4, 2**32 - 1])
def test_judge__reject__another_slot(view: int) -> None:
    stage = a_stage()
    juror, judge = a_judgement(stage)
    if view == judge.accuser:
        view = 2
    assert refused(stage, stage.packet(juror, judge, view=view)) == "Reject: judge: no such case"


def test_judge__reject__a_party() -> None:
    stage = a_stage()
    _, judge = a_judgement(stage)
    for party in {judge.accused, judge.accuser} - {0}:
        assert refused(stage, stage.packet(party, judge, view=judge.accuser)) == "Reject: judge: no such case"


def test_an_objective_fault_of_nobody_is_no_case() -> None:
    stage = a_stage()
    judge = Judge(accused=200, accuser=200, audited_round=2, outcome=int(Outcome.OBJECTIVE))
    assert refused(stage, stage.packet(1, judge, view=200)) == "Reject: judge: no such case"


@pytest.mark.slow
@pytest.mark.parametrize(("round", "reason"), [(6, None), (7, "Ignore: case has lapsed")])
def test_a_case_lapses_after_verdict_rounds(round: int, reason: str | None) -> None:
    stage = Stage(until=in_commit_phase(round), seed=5, training_rounds=3, verdict_rounds=4)
    audits = stage.run.closed[2].assignment.audits
    auditor, target = next(pair for pair in audits.items() if pair[0] != 0)
    packet = stage.packet(auditor, Accuse(accused=target, audited_round=0), round=2, epoch=0)
    assert (refused(stage, packet) if reason else stage.reason(packet)) == reason
