"""Which proven cases a head may list, and when."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.base.types import Close, Contents, EquivocationProof, Head, Kind, Outcome, Propose, VerdictProof
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.evidence import SlotLedger
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.refusal import Reject
from p2pdfl.sim.world import stand_in_task
from protocol.members import DOMAIN, HEAD, OTHER, TASK, a_packet, an_epoch
from protocol.test_audit import a_proof as a_verdict
from protocol.test_audit import an_entry

N = 5
ADDRESSES = an_epoch(N).addresses


def a_pool() -> EvidencePool:
    config = RunConfig(task=stand_in_task(), task_id=TASK, domain=DOMAIN)
    return EvidencePool(config, {0: an_epoch(N), 1: an_epoch(N, epoch=1, first_round=10, last_round=19)})


def an_equivocation(member: int = 2, **slot: int) -> EquivocationProof:
    ledger = SlotLedger()
    for head in (HEAD, OTHER):
        proof = ledger.record(a_packet(N, member, Kind.CLOSE, Close(head=head), **slot), member)
    assert proof is not None
    return proof


def a_proposal(
    equivocations: tuple[EquivocationProof, ...] = (), verdicts: tuple[VerdictProof, ...] = (), **contents: Any
) -> Propose:
    listed = {
        "commits": (),
        "updates": (),
        "evidence": tuple(proof.entry for proof in equivocations),
        "verdicts": tuple(proof.entry for proof in verdicts),
        "banned": bytes(32),
    }
    words = dict.fromkeys(("task", "parent", "contents", "state", "next_members", "chain_block"), bytes(32))
    return Propose(
        contents=Contents(**{**listed, **contents}),
        head=Head(**words, epoch=0, round=0),
        notarization=None,
        skips=(),
        equivocations=equivocations,
        verdicts=verdicts,
    )


def reason(proposal: Propose, *, round: int = 5, banned: tuple[bytes, ...] = ()) -> str | None:
    try:
        a_pool().check(proposal, round, banned)
    except Reject as refusal:
        return refusal.reason
    return None


STALE = {"equivocation": "propose: evidence is stale or repeated", "verdict": "propose: verdict is stale or repeated"}


def a_case(kind: str, round: int = 5) -> Propose:
    if kind == "equivocation":
        return a_proposal((an_equivocation(round=round),))
    return a_proposal(verdicts=(a_verdict(N, [1, 3], an_entry(round=round, audited_round=round - 2)),))


@pytest.mark.parametrize("kind", ["equivocation", "verdict"])
def test_a_proven_case_is_listed_up_to_verdict_rounds_later(kind: str) -> None:
    case = a_case(kind)
    assert [reason(case, round=round) for round in (5, 9)] == [None, None]
    assert [reason(case, round=round) for round in (4, 10)] == [STALE[kind]] * 2


@pytest.mark.parametrize("kind", ["equivocation", "verdict"])
def test_who_is_banned_is_not_banned_again(kind: str) -> None:
    assert reason(a_case(kind), banned=(ADDRESSES[2],)) == STALE[kind]


def test_one_member_is_listed_once() -> None:
    both = a_proposal((an_equivocation(round=5),), (a_verdict(N, [1, 3]),))
    assert reason(both) == STALE["verdict"]
    twice = a_proposal(tuple(an_equivocation(round=5, view=view) for view in (0, 1)))
    assert reason(twice) == STALE["equivocation"]


def test_cases_are_sorted_and_distinct() -> None:
    first, second = an_equivocation(1, round=5), an_equivocation(2, round=5)
    assert reason(a_proposal((first, second))) is None
    assert reason(a_proposal((second, first))) == "propose: cases out of order"
    assert reason(a_proposal((first, first))) == "propose: cases out of order"


def test_a_case_without_its_proof_is_refused() -> None:
    case, verdict = an_equivocation(round=5), a_verdict(N, [1, 3])
    assert reason(a_proposal(evidence=(case.entry,))) == "propose: evidence without its proof"
    unlisted = a_proposal().replace(verdicts=(verdict,))
    assert reason(unlisted) == "propose: verdict without its proof"


def test_a_proof_that_does_not_verify_is_refused() -> None:
    case = an_equivocation(round=5)
    forged = case.replace(signature_low=case.signature_high)
    assert reason(a_proposal((forged,))) == "propose: evidence does not verify"
    assert reason(a_proposal(verdicts=(a_verdict(N, [1]),))) == "propose: verdict does not verify"


@pytest.mark.parametrize("change", [{"epoch": 1}, {"epoch": 7}, {"member": 200}])
def test_evidence_from_where_its_round_is_not_is_refused(change: dict[str, int]) -> None:
    case = an_equivocation(round=5)
    assert reason(a_proposal((case.replace(entry=case.entry.replace(**change)),))) == STALE["equivocation"]


@pytest.mark.parametrize("change", [{"epoch": 1}, {"epoch": 7}, {"accused": 200}, {"accuser": 250}])
def test_a_verdict_from_where_its_round_is_not_is_refused(change: dict[str, int]) -> None:
    case = a_verdict(N, [1, 3])
    assert reason(a_proposal(verdicts=(case.replace(entry=case.entry.replace(**change)),))) is not None


def test_evidence_of_the_last_epoch_counts_in_this_one() -> None:
    assert reason(a_proposal((an_equivocation(round=9),)), round=12) is None
    assert reason(a_proposal((an_equivocation(round=12, epoch=1),)), round=12) is None


def test_a_void_verdict_is_not_listed() -> None:
    void = a_verdict(N, [1, 3], an_entry(Outcome.VOID))
    assert reason(a_proposal(verdicts=(void,))) == STALE["verdict"]
    evidence_pool = a_pool()
    evidence_pool.file_verdict(void)
    assert evidence_pool.pending(5, ()) == ((), ())


def test_what_is_pending_passes_the_check() -> None:
    evidence_pool = a_pool()
    for member in (4, 3, 2):
        evidence_pool.file_equivocation(an_equivocation(member, round=5))
    evidence_pool.file_verdict(a_verdict(N, [1, 3]))
    evidence_pool.file_verdict(a_verdict(N, [3, 4], an_entry(Outcome.FALSE, accused=1, accuser=0)))
    equivocations, verdicts = evidence_pool.pending(5, ())
    assert (len(equivocations), len(verdicts)) == (3, 1)
    assert reason(a_proposal(equivocations, verdicts)) is None
    assert evidence_pool.pending_losers(5, ()) == {ADDRESSES[member] for member in (0, 2, 3, 4)}


def test_a_lapsed_case_does_not_hide_a_new_one() -> None:
    evidence_pool = a_pool()
    evidence_pool.file_equivocation(an_equivocation(round=0))
    evidence_pool.file_verdict(a_verdict(N, [1, 3]))
    assert evidence_pool.pending_losers(5, ()) == {ADDRESSES[2]}
    evidence_pool.file_equivocation(an_equivocation(round=5))
    assert evidence_pool.pending(5, ())[0] == (an_equivocation(round=5),)


def test_bans_say_whom_and_for_what() -> None:
    contents = a_proposal(
        (an_equivocation(4, round=5),), (a_verdict(N, [1, 3]), a_verdict(N, [1, 3], an_entry(Outcome.FALSE)))
    ).contents
    assert a_pool().bans(contents) == {
        ADDRESSES[4]: "equivocation",
        ADDRESSES[2]: "guilty",
        ADDRESSES[0]: "false",
    }


def test_old_cases_are_forgotten() -> None:
    evidence_pool = a_pool()
    evidence_pool.file_equivocation(an_equivocation(round=5))
    evidence_pool.forget_before(6)
    assert evidence_pool.pending(5, ()) == ((), ())
