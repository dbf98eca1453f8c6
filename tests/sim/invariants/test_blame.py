"""Nobody honest is blamed, falls silent or breaks; and whoever is proven to cheat is banned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Ballot,
    EquivocationEntry,
    EquivocationProof,
    Judge,
    Kind,
    Outcome,
    VerdictEntry,
    VerdictProof,
)
from p2pdfl.protocol.events import Notice, SubmitEquivocation, SubmitVerdict
from p2pdfl.sim.invariants.nobody_honest_blamed import NobodyHonestBlamed
from p2pdfl.sim.invariants.nobody_honest_breaks import NobodyHonestBreaks
from p2pdfl.sim.invariants.proven_is_banned import ProvenIsBanned
from p2pdfl.sim.invariants.silent_only_without_disk import SilentOnlyWithoutDisk

from .fabricated import ADDRESSES, BYZANTINE, SIGNATURE, Fabricated, a_head

CHEAT = BYZANTINE[0]
BALLOTS = (Ballot(member=0, signature=SIGNATURE),)


def a_judge(accused: int, accuser: int, outcome: Outcome) -> Judge:
    return Judge(accused=accused, accuser=accuser, audited_round=1, outcome=outcome)


def a_verdict(accused: int, accuser: int, outcome: Outcome) -> SubmitVerdict:
    entry = VerdictEntry(epoch=1, round=3, accused=accused, accuser=accuser, audited_round=1, outcome=outcome)
    return SubmitVerdict(proof=VerdictProof(entry=entry, ballots=BALLOTS), members=ADDRESSES, delay_ms=0)


def an_equivocation(member: int) -> SubmitEquivocation:
    entry = EquivocationEntry(
        member=member, epoch=0, round=0, view=0, kind=Kind.COMMIT, body_low=ZERO_DIGEST, body_high=b"\x01" * 32
    )
    proof = EquivocationProof(entry=entry, signature_low=SIGNATURE, signature_high=SIGNATURE)
    return SubmitEquivocation(proof=proof, accused=ADDRESSES[member], delay_ms=0)


@pytest.mark.parametrize("accused", [2, CHEAT])
def test_an_accusation_of_somebody_honest(accused: int) -> None:
    world = Fabricated(NobodyHonestBlamed)
    world.sends(0, Accuse(accused=accused, audited_round=1), Kind.ACCUSE, round=3)
    assert [violation.split(" guilty")[0] for violation in world.violations] == (
        [] if accused == CHEAT else ["peer0 finds the honest peer2"]
    )


@pytest.mark.parametrize(
    ("accused", "accuser", "outcome", "blamed"),
    [
        (2, CHEAT, Outcome.GUILTY, 2),
        (2, CHEAT, Outcome.OBJECTIVE, 2),
        (2, CHEAT, Outcome.FALSE, None),
        (2, CHEAT, Outcome.VOID, None),
        (CHEAT, 2, Outcome.FALSE, 2),
        (CHEAT, 2, Outcome.GUILTY, None),
    ],
)
def test_a_finding_and_a_slash_against_somebody_honest(
    accused: int, accuser: int, outcome: Outcome, blamed: int | None
) -> None:
    judged, slashed = Fabricated(NobodyHonestBlamed), Fabricated(NobodyHonestBlamed)
    judged.sends(0, a_judge(accused, accuser, outcome), Kind.JUDGE, round=3, view=accuser)
    slashed.checkers.on_submitted(0, a_verdict(accused, accuser, outcome))
    found = [] if blamed is None else [f"peer0 finds the honest peer{blamed}"]
    assert [violation.split(" guilty")[0] for violation in judged.violations] == found
    assert slashed.violations == (
        [] if blamed is None else [f"peer0 has the honest peer{blamed} slashed: SubmitVerdict"]
    )


def test_a_slash_for_an_equivocation_of_somebody_honest() -> None:
    world = Fabricated(NobodyHonestBlamed)
    world.checkers.on_submitted(0, an_equivocation(CHEAT))
    assert world.violations == []
    world.checkers.on_submitted(0, an_equivocation(4))
    assert world.violations == ["peer0 has the honest peer4 slashed: SubmitEquivocation"]


def test_a_ban_of_somebody_honest() -> None:
    world = Fabricated(NobodyHonestBlamed)
    world.closes(0, a_head(0), banned=frozenset([ADDRESSES[CHEAT]]))
    assert world.violations == []
    world.closes(1, a_head(1), banned=frozenset([ADDRESSES[CHEAT], ADDRESSES[3]]))
    assert world.violations == ["round 1: peer1 banned the honest peer3"]


def test_a_ban_that_no_round_closed_with() -> None:
    world = Fabricated(NobodyHonestBlamed)
    world.peers[2].banned = {ADDRESSES[CHEAT]: "guilty", ADDRESSES[0]: "equivocation"}
    world.checkers.at_end(is_live=False)
    assert world.violations == ["peer2 banned the honest peer0: equivocation"]


def test_what_the_byzantine_find_is_nobodys_promise() -> None:
    world = Fabricated(NobodyHonestBlamed)
    world.sends(CHEAT, Accuse(accused=0, audited_round=1), Kind.ACCUSE, round=3)
    world.closes(CHEAT, a_head(0), banned=frozenset([ADDRESSES[0]]))
    world.checkers.on_submitted(CHEAT, an_equivocation(0))
    assert world.violations == []


def test_silence_of_a_peer_whose_disk_is_whole() -> None:
    world = Fabricated(SilentOnlyWithoutDisk, amnesiacs=(1,))
    world.peers[1].is_muted = world.peers[2].is_muted = True
    world.closes(1, a_head(0))
    assert world.violations == []
    world.closes(2, a_head(0))
    assert world.violations == ["round 0: peer2 fell silent though its disk is whole"]


def test_a_process_that_breaks() -> None:
    world = Fabricated(NobodyHonestBreaks)
    world.checkers.on_broken(CHEAT, ValueError("its own fault"))
    assert world.violations == []
    world.checkers.on_broken(1, ValueError("no such head"))
    assert world.violations == ["peer1 broke: ValueError: no such head"]


# --- proven to cheat, and banned --------------------------------------------------------

Fields = dict[str, str | int | float | Sequence[str] | None]
CAUGHT = "0x" + ADDRESSES[CHEAT].hex()
AFTER_CALM_MS = 501


def proven(world: Fabricated, indices: tuple[int, ...], *, open_round: int, proven_round: int) -> None:
    for index in indices:
        world.peers[index].round = open_round
        fields: Fields = {"round": proven_round, "member": CAUGHT, "kind": int(Kind.CLOSE)}
        world.checkers.on_notice(index, Notice(name="equivocation", fields=fields))


def test_whoever_three_of_seven_can_prove_to_cheat_is_banned_a_round_later() -> None:
    """Without them four are left, and a quorum is five."""
    world = Fabricated(ProvenIsBanned)
    world.now_ms = AFTER_CALM_MS
    proven(world, (0, 1, 2), open_round=0, proven_round=0)
    for round in (0, 1):
        world.closes(0, a_head(round))
        world.closes(3, a_head(round))
    assert world.violations == []
    world.closes(3, a_head(2), banned=frozenset([ADDRESSES[CHEAT]]))
    assert world.violations == []
    world.closes(0, a_head(2))
    assert world.violations == [
        f"round 2: peer0 has not banned {CAUGHT}, of which 3 of 7 members had the proof before round 1"
    ]


@pytest.mark.parametrize(
    ("indices", "proven_round", "now_ms", "view"),
    [
        ((0, 1), 0, AFTER_CALM_MS, 0),  # a quorum can be had without them
        ((0, 1, 2), 0, AFTER_CALM_MS, 7),  # from view n on nobody insists
        ((0, 1, 2), 0, AFTER_CALM_MS - 1, 0),  # some may have crashed since
        ((0, 1, 2), -1, AFTER_CALM_MS, 0),  # it has lapsed
    ],
)
def test_else_nobody_has_to_be_banned(indices: tuple[int, ...], proven_round: int, now_ms: int, view: int) -> None:
    world = Fabricated(ProvenIsBanned)
    world.now_ms = now_ms
    proven(world, indices, open_round=0, proven_round=proven_round)
    for round in range(3):
        world.closes(0, a_head(round), view=view)
    assert world.violations == []


@pytest.mark.parametrize(
    ("accused", "accuser", "outcome", "banned"),
    [
        (CHEAT, 0, "guilty", True),
        (CHEAT, CHEAT, "objective", True),
        (0, CHEAT, "false", True),
        (CHEAT, 0, "void", False),
    ],
)
def test_a_verdict_is_a_proof_against_its_loser(accused: int, accuser: int, outcome: str, banned: bool) -> None:
    world = Fabricated(ProvenIsBanned)
    world.now_ms = AFTER_CALM_MS
    names = ["0x" + ADDRESSES[index].hex() for index in (accused, accuser)]
    for index in (0, 1, 2):
        fields: Fields = {"round": 0, "accused": names[0], "accuser": names[1], "audited_round": 0, "outcome": outcome}
        world.checkers.on_notice(index, Notice(name="verdict", fields=fields))
    for round in range(3):
        world.closes(0, a_head(round))
    assert [CAUGHT in violation for violation in world.violations] == [True] * banned
