"""JUDGEs make a verdict: floor(n/2) of them, equal, by members who are no party."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.base.types import Ballot, Judge, Kind, Outcome, VerdictEntry, VerdictProof
from p2pdfl.protocol.audit import Jury, is_party, is_verdict, judge_envelope, judge_view, loser

from .members import DOMAIN, OTHER, TASK, a_packet, an_epoch

ACCUSED, ACCUSER = 2, 0


def an_entry(outcome: Outcome = Outcome.GUILTY, **fields: Any) -> VerdictEntry:
    accuser = ACCUSED if outcome is Outcome.OBJECTIVE else ACCUSER
    base = VerdictEntry(epoch=0, round=5, accused=ACCUSED, accuser=accuser, audited_round=3, outcome=int(outcome))
    return base.replace(**fields)


def a_ballot(count: int, juror: int, entry: VerdictEntry) -> Ballot:
    judge = Judge(
        accused=entry.accused, accuser=entry.accuser, audited_round=entry.audited_round, outcome=entry.outcome
    )
    packet = a_packet(count, juror, Kind.JUDGE, judge, round=entry.round, view=judge_view(entry), epoch=entry.epoch)
    return Ballot(member=juror, signature=packet.signature)


def a_proof(count: int, jurors: Iterable[int], entry: VerdictEntry | None = None) -> VerdictProof:
    case = entry or an_entry()
    return VerdictProof(entry=case, ballots=tuple(a_ballot(count, juror, case) for juror in jurors))


def proves(proof: VerdictProof, count: int = 5) -> bool:
    return is_verdict(proof, DOMAIN, TASK, an_epoch(count))


def test_jurors_sign_the_envelope_that_the_entry_determines() -> None:
    entry = an_entry()
    judge = Judge(accused=ACCUSED, accuser=ACCUSER, audited_round=3, outcome=int(Outcome.GUILTY))
    assert a_packet(5, 1, Kind.JUDGE, judge, round=5, view=ACCUSER).envelope == judge_envelope(TASK, entry)


@pytest.mark.parametrize(("count", "jurors"), [(3, [1]), (4, [1, 3]), (5, [1, 3]), (6, [1, 3, 4]), (7, [1, 3, 4])])
def test_half_the_members_are_a_jury(count: int, jurors: list[int]) -> None:
    assert proves(a_proof(count, jurors), count)
    if len(jurors) > 1:
        assert not proves(a_proof(count, jurors[1:]), count)


def test_parties_are_not_counted() -> None:
    assert not proves(a_proof(5, [1, ACCUSER]))
    assert not proves(a_proof(5, [1, ACCUSED]))
    assert not proves(a_proof(5, [1, 3, ACCUSED]))


def test_the_accused_of_an_objective_fault_does_not_judge_itself() -> None:
    entry = an_entry(Outcome.OBJECTIVE)
    assert proves(a_proof(5, [0, 1], entry))
    assert not proves(a_proof(5, [0, ACCUSED], entry))


def test_a_juror_twice_is_one() -> None:
    assert not proves(a_proof(5, [1, 1]))


def test_a_juror_that_does_not_exist_is_none() -> None:
    proof = a_proof(5, [1, 3])
    assert not proves(proof.replace(ballots=(proof.ballots[0], proof.ballots[1].replace(member=5))))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": int(Outcome.FALSE)},
        {"accused": 4},
        {"accuser": 4},
        {"audited_round": 4},
        {"round": 6},
        {"epoch": 1},
    ],
)
def test_judges_of_another_case_or_outcome_do_not_count(change: dict[str, Any]) -> None:
    assert not proves(a_proof(5, [1, 3]).replace(entry=an_entry(**change)))


@given(st.binary(min_size=64, max_size=64))
def test_junk_for_a_signature_does_not_count(junk: bytes) -> None:
    proof = a_proof(5, [1, 3])
    assert not proves(proof.replace(ballots=(proof.ballots[0], Ballot(member=3, signature=junk))))


def test_a_verdict_holds_for_its_task_only() -> None:
    assert not is_verdict(a_proof(5, [1, 3]), DOMAIN, OTHER, an_epoch(5))


@pytest.mark.parametrize(
    ("outcome", "who"),
    [(Outcome.GUILTY, ACCUSED), (Outcome.FALSE, ACCUSER), (Outcome.VOID, None), (Outcome.OBJECTIVE, ACCUSED)],
)
def test_who_loses(outcome: Outcome, who: int | None) -> None:
    assert loser(an_entry(outcome)) == who


def test_both_are_parties_and_nobody_else() -> None:
    assert [is_party(an_entry(), member) for member in range(5)] == [True, False, True, False, False]


# --- the tally -----------------------------------------------------------------------------------------------------


def test_a_verdict_is_proven_once_by_its_first_jurors() -> None:
    jury, entry = Jury(), an_entry()
    proofs = [jury.add(entry, juror, a_ballot(5, juror, entry).signature, params.jury(5)) for juror in (4, 1, 3)]
    assert proofs[0] is None
    assert proofs[1] == a_proof(5, [1, 4])
    assert proofs[2] is None


def test_different_outcomes_are_not_added_up() -> None:
    jury = Jury()
    for juror, outcome in ((1, Outcome.GUILTY), (3, Outcome.VOID), (4, Outcome.FALSE)):
        entry = an_entry(outcome)
        assert jury.add(entry, juror, a_ballot(5, juror, entry).signature, 2) is None


def test_old_cases_are_forgotten() -> None:
    jury, entry = Jury(), an_entry()
    jury.add(entry, 1, a_ballot(5, 1, entry).signature, 2)
    jury.forget_before(entry.round + 1)
    assert jury.add(entry, 3, a_ballot(5, 3, entry).signature, 2) is None


def test_no_two_cases_of_a_round_share_a_slot() -> None:
    """Else an auditor could commit an objective fault beside its false accusation, and split its jurors."""
    count = params.MEMBER_COUNT_MAX
    accusations = [an_entry(Outcome.GUILTY, accuser=accuser, accused=0) for accuser in range(count)]
    faults = [an_entry(Outcome.OBJECTIVE, accuser=accused, accused=accused) for accused in range(count)]
    assert len({judge_view(entry) for entry in (*accusations, *faults)}) == 2 * count
