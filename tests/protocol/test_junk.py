"""Whatever a member signs and sends: taken or refused, nothing else; and no honest slot gets a second body."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.base.codec import digest_of
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Ballot,
    Certificate,
    Close,
    Commit,
    EquivocationEntry,
    EquivocationProof,
    Judge,
    Kind,
    Notarize,
    Packet,
    Propose,
    UpdateEntry,
    VerdictEntry,
    VerdictProof,
)
from p2pdfl.protocol.audit import judge_view
from p2pdfl.protocol.events import CertificateReceived, Effect, PacketReceived, Send, Tick
from p2pdfl.protocol.refusal import Refusal
from p2pdfl.sim.check import find_violations

from .freeze import RESYNC_SOONER, freeze
from .stage import N, Stage, head_of, in_commit_phase, in_propose_phase

CHEAT = 3
NOISY_MS = 97


PLACES: list[dict[str, Any]] = [
    {"until": in_commit_phase(0), "seed": 5},
    {"until": in_propose_phase(0), "seed": 6},
    {"until": in_propose_phase(1), "seed": 5},
    {"until": in_propose_phase(2), "seed": 6},
    {"until": in_commit_phase(3), "seed": 7},
    {"until": in_propose_phase(4), "seed": 7, "epoch_rounds": 3},
]
"""Each stage goes through all examples, so that junk meets junk."""


digests = st.one_of(st.sampled_from([ZERO_DIGEST, b"\x11" * 32, b"\xff" * 32]), st.binary(min_size=32, max_size=32))
rounds = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
views = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
members = st.one_of(st.integers(0, 5), st.integers(0, params.MEMBER_COUNT_MAX - 1))
signatures = st.binary(min_size=64, max_size=64)
kinds = st.integers(1, 6)


@st.composite
def ballots(draw: st.DrawFn, stage: Stage, packet: Packet | None) -> tuple[Ballot, ...]:
    made = []
    for _ in range(draw(st.integers(1, 5))):
        member = draw(members)
        signature = draw(signatures)
        if packet is not None and member < len(stage.world.peers) and draw(st.booleans()):
            signature = stage.signer(member).sign(stage.run.config.domain, packet.envelope)
        made.append(Ballot(member=member, signature=signature))
    return tuple(made)


@st.composite
def certificates(draw: st.DrawFn, stage: Stage) -> Certificate:
    head = draw(st.one_of(digests, st.just(head_of(stage.proposal()))))
    votes: list[Notarize | Close] = [Notarize(head=head), Close(head=head)]
    vote = draw(st.sampled_from(votes))
    view = draw(st.integers(0, 3))
    certificate = Certificate(
        epoch=stage.run.epoch.epoch,
        round=stage.run.round,
        view=view,
        kind=int(Kind.NOTARIZE if isinstance(vote, Notarize) else Kind.CLOSE),
        head=head,
        ballots=draw(ballots(stage, stage.packet(CHEAT, vote, view=view))),
    )
    changes = {"epoch": rounds, "round": rounds, "view": views, "kind": st.integers(3, 4), "head": digests}
    return certificate.replace(**_some(draw, changes))


def _some(draw: st.DrawFn, changes: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """Usually none, sometimes one or two of the fields."""
    names = draw(st.lists(st.sampled_from(sorted(changes)), max_size=2, unique=True))
    return {name: draw(changes[name]) for name in names}


@st.composite
def equivocations(draw: st.DrawFn, stage: Stage) -> EquivocationProof:
    pair = [stage.packet(CHEAT, Close(head=bytes([fill]) * 32), view=draw(st.integers(0, 2))) for fill in (1, 2)]
    low, high = sorted(pair, key=lambda packet: packet.envelope.body)
    envelope = low.envelope
    entry = EquivocationEntry(
        member=CHEAT,
        epoch=envelope.epoch,
        round=envelope.round,
        view=envelope.view,
        kind=envelope.kind,
        body_low=low.envelope.body,
        body_high=high.envelope.body,
    )
    changes = {"member": members, "epoch": rounds, "round": rounds, "view": views, "kind": kinds, "body_low": digests}
    return EquivocationProof(
        entry=entry.replace(**_some(draw, changes)), signature_low=low.signature, signature_high=high.signature
    )


@st.composite
def verdicts(draw: st.DrawFn, stage: Stage) -> VerdictProof:
    entry = VerdictEntry(
        epoch=stage.run.epoch.epoch,
        round=stage.run.round,
        accused=draw(members),
        accuser=draw(members),
        audited_round=draw(rounds),
        outcome=draw(st.integers(1, 4)),
    )
    judge = Judge(
        accused=entry.accused, accuser=entry.accuser, audited_round=entry.audited_round, outcome=entry.outcome
    )
    proof = VerdictProof(entry=entry, ballots=draw(ballots(stage, stage.packet(CHEAT, judge, view=judge_view(entry)))))
    return proof.replace(entry=entry.replace(**_some(draw, {"epoch": rounds, "round": rounds, "accused": members})))


@st.composite
def proposals(draw: st.DrawFn, stage: Stage, view: int) -> Propose:
    """Justified and well-formed but for up to two things."""
    propose = stage.proposal()
    broken = draw(st.lists(st.sampled_from(["contents", "head", "notarization", "skips", "proofs"]), max_size=2))
    proofs = tuple(draw(st.lists(equivocations(stage), max_size=2)))
    judged = tuple(draw(st.lists(verdicts(stage), max_size=2)))
    contents = propose.contents.replace(
        evidence=tuple(proof.entry for proof in proofs), verdicts=tuple(proof.entry for proof in judged)
    )
    if "contents" in broken:
        named = draw(st.integers(0, len(contents.commits)))
        unpromised = st.builds(lambda member, update: (UpdateEntry(member=member, update=update),), members, digests)
        contents = contents.replace(
            commits=contents.commits[:named], updates=draw(st.sampled_from([contents.updates, ()]) | unpromised)
        )
    words = {"epoch": rounds, "round": rounds} | dict.fromkeys(
        ["task", "parent", "contents", "state", "next_members", "chain_block"], digests
    )
    head = propose.head.replace(contents=digest_of(contents))
    skips = tuple(stage.certificate(Close(head=ZERO_DIGEST), [0, 1, 2], view=earlier) for earlier in range(view))
    return Propose(
        contents=contents,
        head=head.replace(**_some(draw, words)) if "head" in broken else head,
        notarization=draw(certificates(stage)) if "notarization" in broken else None,
        skips=tuple(draw(st.lists(certificates(stage), max_size=2))) if "skips" in broken else skips,
        equivocations=() if "proofs" in broken else proofs,
        verdicts=() if "proofs" in broken else judged,
    )


def commits(stage: Stage) -> st.SearchStrategy[Commit]:
    held = (list(stage.open.commits.values()) or _some_commits())[-1].commit
    share = held.share or _some_commits()[0].commit.share
    assert share is not None
    return st.builds(
        lambda parent, update, broken, has_share, count: held.replace(
            parent=parent,
            update=update,
            share=(share.replace(response=broken) if broken else share) if has_share else None,
            dealing=held.dealing.replace(
                encrypted_shares=held.dealing.encrypted_shares[:count] + (b"\x07" * 33,) * (count > 3)
            ),
        ),
        st.just(stage.open.context.parent) | digests,
        digests,
        st.none() | digests,
        st.booleans(),
        st.integers(1, 5),
    )


@lru_cache
def _some_commits() -> list[Any]:
    return list(Stage(until=in_propose_phase(1), seed=5).open.commits.values())


@st.composite
def packets(draw: st.DrawFn, stage: Stage) -> Packet:
    """Signed by the cheat, in a slot that it has, but for one in four."""
    led = [view for view in range(2 * N) if stage.leader(view) == CHEAT] or [0]
    view = draw(st.sampled_from([0, *led]))
    heads = digests | st.just(head_of(stage.proposal()))
    payload: Any = draw(
        st.one_of(
            proposals(stage, view),
            commits(stage),
            st.builds(Notarize, head=heads),
            st.builds(Close, head=heads),
            st.builds(Accuse, accused=members, audited_round=rounds),
            st.builds(Judge, accused=members, accuser=members, audited_round=rounds, outcome=st.integers(1, 4)),
            _cases(stage),
        )
    )
    slot: dict[str, Any] = {"view": view}
    if isinstance(payload, Commit | Accuse):
        slot = {}
    if isinstance(payload, Judge):
        slot["view"] = draw(st.sampled_from([payload.accuser, params.MEMBER_COUNT_MAX + payload.accused]))
    junk = draw(st.sampled_from(["", "", "", "", "", "", "slot", "round", "signature", "payload"]))
    if junk == "slot":
        slot |= _some(draw, {"view": views, "kind": kinds, "task": digests})
    if junk == "round":
        round = draw(rounds)
        slot |= {"round": round, "epoch": draw(st.just(stage.run.config.task.epoch_of(round)) | rounds)}
    packet = stage.packet(CHEAT, payload, **slot)
    if junk == "signature":
        packet = packet.replace(signature=draw(signatures))
    if junk == "payload":
        packet = packet.replace(payload=draw(st.binary(min_size=1, max_size=64)))
    return packet


def _cases(stage: Stage) -> st.SearchStrategy[Any]:
    """Accusations and judgements as assigned, and objective ones."""
    cases: list[Any] = [
        Judge(accused=member, accuser=member, audited_round=stage.run.round, outcome=4) for member in range(N)
    ]
    for auditor, target in stage.open.context.assignment.audits.items():
        audited = stage.run.round - params.AUDIT_LAG
        cases.append(Accuse(accused=target, audited_round=audited))
        cases += [
            Judge(accused=target, accuser=auditor, audited_round=audited, outcome=outcome) for outcome in range(1, 5)
        ]
    return st.sampled_from(cases)


def _own_slots(effects: list[Effect]) -> list[tuple[tuple[int, int, int], bytes]]:
    envelopes = [effect.packet.envelope for effect in effects if isinstance(effect, Send)]
    return [((each.round, each.view, each.kind), each.body) for each in envelopes]


JUNK = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_junk_is_taken_or_refused_and_a_refusal_changes_nothing(place: dict[str, Any]) -> None:
    stage = Stage(**place)
    signed = {
        (packet.envelope.round, packet.envelope.view, packet.envelope.kind): packet.envelope.body
        for packet in stage.world.peers[0].sent
    }

    @JUNK
    @given(st.data())
    def meet(data: st.DataObject) -> None:
        stage.now_ms += NOISY_MS
        stage.take(Tick())
        event: Any = data.draw(
            st.one_of(
                packets(stage).map(lambda packet: PacketReceived(packet=packet)),
                packets(stage).map(lambda packet: PacketReceived(packet=packet)),
                packets(stage).map(lambda packet: PacketReceived(packet=packet)),
                certificates(stage).map(lambda certificate: CertificateReceived(certificate=certificate)),
            )
        )
        before = freeze(stage.run, RESYNC_SOONER)
        try:
            effects = stage.take(event)
        except Refusal:
            effects = None
        if effects is None:
            assert freeze(stage.run, RESYNC_SOONER) == before
            return
        for slot, body in _own_slots(effects):
            assert signed.setdefault(slot, body) == body

    meet()
    assert stage.run.banned == {}


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_honest_members_agree_on_every_round_in_a_rain_of_junk(data: st.DataObject) -> None:
    stage = Stage(until=in_commit_phase(0), seed=data.draw(st.integers(1, 20)), training_rounds=1)
    world = stage.world
    for _ in range(12):
        for _ in range(3):
            packet = data.draw(packets(stage))
            for receiver in data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1)):
                world.deliver(receiver, PacketReceived(packet=packet))
        world.run(until_ms=world.now_ms + 40)
        if stage.run.is_finished:
            break
        stage.now_ms = world.now_ms
    world.run(until_ms=900_000, until=lambda: all(peer.run.is_finished for peer in world.peers[:3]))
    assert find_violations(world, byzantine=[CHEAT]) == []
