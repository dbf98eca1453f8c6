"""The formulas beside the draw itself."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev

import pytest

from p2pdfl.protocol.assignment import compute_assignment
from p2pdfl.protocol.audit_economics import HEADINGS, Audits, cells


def found_in(seed: str, unbanned: list[int], byzantine: set[int], audit_fraction: float) -> set[int]:
    """Whom a round's honest auditors find."""
    audits = compute_assignment(
        beacon=sha256(seed.encode()).digest(),
        unbanned=unbanned,
        present=unbanned,
        audit_fraction=audit_fraction,
        audited=unbanned,
        is_training_round=True,
    ).audits
    return {target for auditor, target in audits.items() if auditor not in byzantine and target in byzantine}


def rounds_until_all_are_out(audits: Audits, seed: int) -> int:
    unbanned, byzantine = list(range(audits.peers)), set(range(audits.byzantine))
    rounds = 0
    while byzantine:
        found = found_in(f"{seed}/{rounds}", unbanned, byzantine, audits.audit_fraction)
        unbanned = [member for member in unbanned if member not in found]
        byzantine -= found
        rounds += 1
    return rounds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peers", "byzantine", "audit_fraction"),
    [(16, 7, 0.05), (16, 7, 0.25), (16, 1, 0.25), (16, 5, 0.3), (7, 3, 1.0), (2, 1, 0.5)],
)
def test_a_bad_update_is_found_as_often_as_the_draw_says(peers: int, byzantine: int, audit_fraction: float) -> None:
    audits = Audits(peers=peers, byzantine=byzantine, audit_fraction=audit_fraction)
    draws = 4000
    found = [
        len(found_in(f"{draw}", list(range(peers)), set(range(byzantine)), audit_fraction)) / byzantine
        for draw in range(draws)
    ]
    assert fmean(found) == pytest.approx(audits.chance, abs=4 * stdev(found) / math.sqrt(draws))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peers", "byzantine", "audit_fraction"),
    [(16, 7, 0.05), (16, 7, 0.25), (16, 7, 1.0), (16, 5, 0.3), (16, 1, 0.25), (5, 2, 0.6)],
)
def test_all_are_found_after_as_many_rounds_as_the_draw_takes(
    peers: int, byzantine: int, audit_fraction: float
) -> None:
    audits = Audits(peers=peers, byzantine=byzantine, audit_fraction=audit_fraction)
    runs = [rounds_until_all_are_out(audits, seed) for seed in range(600)]
    error = stdev(runs) / math.sqrt(len(runs))
    # exact where there is one auditor at a time, else nearly (`audit_economics._found_in_a_round`)
    nearly = 0 if audits.auditors == 1 else 0.03
    assert fmean(runs) == pytest.approx(audits.rounds_to_catch_all, abs=3 * error, rel=nearly)


def test_the_figures_that_the_literature_and_the_design_name() -> None:
    one = Audits(peers=16, byzantine=7, audit_fraction=0.05)
    assert one.auditors == 1
    assert one.rounds_to_catch_all == pytest.approx(sum((9 + b) * (8 + b) / (9 * b) for b in range(1, 8)))
    assert one.rounds_to_catch_all == pytest.approx(37.1, abs=0.05)
    assert one.rounds_of_coin_flips == pytest.approx(73, abs=0.1)
    assert one.rounds_to_catch_one == pytest.approx(16 * 15 / 9)


def test_who_cheats_alone_is_found_with_the_audit_fraction() -> None:
    alone = Audits(peers=16, byzantine=1, audit_fraction=0.25)
    assert alone.chance == pytest.approx(0.25)
    assert alone.rounds_to_catch_all == pytest.approx(alone.rounds_to_catch_one) == pytest.approx(4)
    assert alone.overhead == 0.25


def test_without_audits_nobody_is_found() -> None:
    none = Audits(peers=16, byzantine=7, audit_fraction=0)
    assert none.chance == 0
    assert none.rounds_to_catch_one == none.rounds_to_catch_all == none.rounds_of_coin_flips == math.inf


def test_without_cheaters_there_is_nothing_to_wait_for() -> None:
    honest = Audits(peers=3, byzantine=0, audit_fraction=0.5)
    assert honest.rounds_to_catch_all == honest.rounds_of_coin_flips == 0


def test_the_largest_list_has_figures() -> None:
    large = Audits(peers=256, byzantine=127, audit_fraction=0.25)
    assert large.rounds_to_catch_one < large.rounds_to_catch_all < large.rounds_of_coin_flips < 1000


def test_attacks_in_some_rounds_only_take_so_much_longer() -> None:
    alone = Audits(peers=16, byzantine=1, audit_fraction=0.25)
    assert alone.rounds_to_catch(1) == alone.rounds_to_catch_all
    assert alone.rounds_to_catch(5) == pytest.approx(16)  # the first, and three times five more


def test_who_sends_bad_updates_until_banned_pays_one_slash_for_some_more_than_are_audited() -> None:
    assert Audits(peers=16, byzantine=1, audit_fraction=0.25).penalty == pytest.approx(1 / (4 + 3))
    assert Audits(peers=16, byzantine=1, audit_fraction=0).penalty == 0


def test_the_table_in_the_docs_is_what_the_formulas_say() -> None:
    lines = (Path(__file__).resolve().parents[2] / "docs" / "audits.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["n, b", *HEADINGS]
    for members, *told in rows[2:]:
        peers, byzantine = members.split(", ")
        audits = Audits(peers=int(peers), byzantine=int(byzantine), audit_fraction=float(told[0]))
        assert tuple(told) == cells(audits)
    assert len(rows) > 20


@pytest.mark.parametrize(
    ("peers", "byzantine", "audit_fraction"), [(3, 3, 0.5), (3, -1, 0.5), (3, 1, 1.1), (0, 0, 0), (257, 1, 0.5)]
)
def test_what_cannot_be_is_refused(peers: int, byzantine: int, audit_fraction: float) -> None:
    with pytest.raises(ValueError, match=r"honest|audit_fraction|at most"):
        Audits(peers=peers, byzantine=byzantine, audit_fraction=audit_fraction)
