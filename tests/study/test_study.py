"""Tables of small runs, and that what is finished is kept."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console, Group

from p2pdfl import cli
from p2pdfl.base.task import Task
from p2pdfl.byzantine.machine import UpdateBehaviour
from p2pdfl.learning import networks as models
from p2pdfl.protocol.audit_economics import ROUNDS_WITHOUT_AUDITS, Audits
from p2pdfl.study import Attack, Row, Study, StudyError, run
from p2pdfl.study.cell import _measured as measured
from p2pdfl.study.cell import cells, run_cell
from p2pdfl.study.results import Results, report

pytestmark = pytest.mark.slow

STUDY = Study(
    name="small",
    peers=5,
    byzantine=2,
    seeds=(0,),
    rules=("clip_nnm_trimmed_mean", "mean"),
    audits=(0.0, 0.6),
    attacks=(Attack(behaviour="none"), Attack(behaviour="scale")),
    task=Task(training_rounds=6, verdict_rounds=2, local_steps=20),
)
DIGESTS = STUDY.model_copy(update={"learning": "stand-in"})


def _interrupt(row: Row, done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, float], Row]:
    directory = tmp_path_factory.mktemp("study")
    found = run(STUDY, directory)
    assert (directory / "accuracy.png").stat().st_size > 1000
    return {row.key[:3]: row for row in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Path]:
    """All rows of DIGESTS, and where they are."""
    directory = tmp_path_factory.mktemp("whole")
    return run(DIGESTS, directory), directory


@pytest.fixture
def there(whole: tuple[list[Row], Path], tmp_path: Path) -> Path:
    """A directory with all of them, to be written to."""
    return shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)


def test_the_mean_falls_to_an_attack_that_the_default_rule_bears(rows: dict[tuple[str, str, float], Row]) -> None:
    assert min(rows["none", rule, 0.0].accuracy or 0 for rule in STUDY.rules) > 0.7
    assert (rows["scale", "mean", 0.0].accuracy or 1) < 0.3
    assert (rows["scale", "clip_nnm_trimmed_mean", 0.0].accuracy or 0) > 0.7


def test_audits_ban_all_who_attack_and_nobody_else(rows: dict[tuple[str, str, float], Row]) -> None:
    for (attack, _, audits), row in rows.items():
        assert row.banned == (2 if attack == "scale" and audits else 0)
        assert row.honest_banned == 0
        assert (row.all_banned_after is not None) == (row.banned == 2)


def test_a_cell_gives_the_same_row_again(rows: dict[tuple[str, str, float], Row]) -> None:
    cell = cells(STUDY)[-1]
    assert run_cell(STUDY, cell) == rows[cell.key[:3]]


@pytest.mark.parametrize("behaviour", ["label_flip", "backdoor", "ipm"])
def test_audits_of_shards_ban_all_who_attack_and_nobody_else(behaviour: UpdateBehaviour) -> None:
    task = STUDY.task.model_copy(update={"training_rounds": 12, "dirichlet": 0.3})
    attacks = (Attack(behaviour=behaviour),)
    study = STUDY.model_copy(update={"attacks": attacks, "rules": STUDY.rules[:1], "audits": (0.6,), "task": task})
    (cell,) = cells(study)
    row = run_cell(study, cell)
    assert (row.banned, row.honest_banned) == (2, 0)


def test_a_cell_of_digits_cnn_learns() -> None:
    task = STUDY.task.model_copy(update={"model": "digits_cnn"})
    study = STUDY.model_copy(update={"task": task, "rules": STUDY.rules[:1], "audits": (0.6,)})
    assert (run_cell(study, cells(study)[0]).accuracy or 0) > 0.7


def test_a_backdoor_has_a_success_rate() -> None:
    attack = Attack(behaviour="backdoor", factor=3)
    task = STUDY.task.model_copy(update={"training_rounds": 15})
    study = STUDY.model_copy(update={"attacks": (attack,), "rules": ("mean",), "audits": (0.0,), "task": task})
    (cell,) = cells(study)
    assert (run_cell(study, cell).backdoor_success or 0) > 0.5


def test_a_row_tells_what_an_update_costs(rows: dict[tuple[str, str, float], Row]) -> None:
    assert {row.bytes_per_update for row in rows.values()} == {17_311.0}
    task = STUDY.task.model_copy(update={"codes": "int4", "compression": "zstd", "training_rounds": 2})
    study = STUDY.model_copy(update={"task": task})
    assert 3_000 < (run_cell(study, cells(study)[0]).bytes_per_update or 0) < 6_000


def test_the_example_has_its_own_model_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    study = importlib.import_module("own_study").STUDY
    row = run_cell(study, cells(study)[0])
    assert row.attack == "sign_flip"
    assert (row.accuracy or 0) > 0.8


def test_several_processes_find_what_one_does(whole: tuple[list[Row], Path], tmp_path: Path) -> None:
    alone = whole[0]
    together = run(DIGESTS, tmp_path, processes=2)
    assert sorted(row.key for row in alone) == sorted(row.key for row in together)
    assert set(alone) == set(together)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_an_interrupt_it_goes_on_where_it_was(tmp_path: Path, processes: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(DIGESTS, tmp_path, processes=processes, on_row=_interrupt)
    assert multiprocessing.active_children() == []
    told: list[int] = []
    rows = run(DIGESTS, tmp_path, on_row=lambda row, done, total: told.append(done))
    assert told == list(range(2, 9))
    assert [row.key for row in run(DIGESTS, tmp_path, on_row=_interrupt)] == [row.key for row in rows]


def test_a_row_that_was_cut_off_is_run_again(whole: tuple[list[Row], Path], there: Path) -> None:
    path = there / "results.csv"
    path.write_bytes(path.read_bytes()[:-5])
    told: list[int] = []
    assert set(run(DIGESTS, there, on_row=lambda row, done, total: told.append(done))) == set(whole[0])
    assert told == [8]


def test_more_seeds_are_added_to_what_is_there(there: Path) -> None:
    told: list[int] = []
    run(DIGESTS.model_copy(update={"seeds": (0, 1)}), there, on_row=lambda row, done, total: told.append(done))
    assert told == list(range(9, 17))


def test_results_of_another_study_are_not_mixed_in(there: Path) -> None:
    other = DIGESTS.model_copy(update={"task": Task(training_rounds=7)})
    with pytest.raises(StudyError, match=r"task\.training_rounds was 6, is 7.*--fresh"):
        run(other, there)
    assert len(run(other, there, fresh=True)) == 8


@pytest.mark.parametrize("text", ["attack,rule\nnone,mean\n", "\x00", None])
def test_a_results_file_that_is_none_is_left_alone(there: Path, text: str | None) -> None:
    path = there / "results.csv"
    if text is None:
        text = path.read_text().replace(",0.6,", ",much,")
    path.write_text(text + "\n")
    with pytest.raises(StudyError, match=r"results\.csv: "):
        run(DIGESTS, there)
    assert path.read_text() == text + "\n"


def test_one_study_at_a_time_writes_there(tmp_path: Path) -> None:
    with Results(tmp_path, DIGESTS), pytest.raises(StudyError, match="another study is running there"):
        Results(tmp_path, DIGESTS)


# --- rounds to catch ---------------------------------------------------------------------------------------------


def test_one_audit_per_round_catches_all_about_when_it_should() -> None:
    study = Study(
        name="bans",
        peers=6,
        byzantine=2,
        seeds=tuple(range(30)),
        audits=(0.1,),
        attacks=(Attack(behaviour="sign_flip"),),
        learning="stand-in",
        task=Task(training_rounds=100),
    )
    rows = [run_cell(study, cell) for cell in cells(study)]
    assert all(row.banned == 2 and row.honest_banned == 0 for row in rows)
    measured = fmean(row.all_banned_after or 0 for row in rows)
    audits = Audits(peers=6, byzantine=2, audit_fraction=0.1)
    assert measured - ROUNDS_WITHOUT_AUDITS == pytest.approx(audits.rounds_to_catch_all, rel=0.25)


def test_the_report_has_the_formula_beside_what_was_measured() -> None:
    """By hand: (16, 7) takes 37.1 rounds with one auditor, 1 + 3 (E - 1) where each third round is attacked."""
    attacks = (
        Attack(behaviour="none"),
        Attack(behaviour="zero", from_round=4),
        Attack(behaviour="scale", from_round=4),
        Attack(behaviour="zero", every=3),
    )
    study = Study(name="bans", seeds=(0, 1), audits=(0.0, 0.05), attacks=attacks)
    rows = [
        Row(
            attack=attack.name,
            rule=study.rules[0],
            audits=audits,
            seed=seed,
            rounds=60,
            accuracy=0.9,
            backdoor_success=None,
            bytes_per_update=None,
            banned=7,
            honest_banned=0,
            all_banned_after=40 + 2 * seed if audits and attack.behaviour != "none" else None,
        )
        for attack in attacks
        for audits in study.audits
        for seed in study.seeds
    ]
    rows[-1] = replace(rows[-1], all_banned_after=None)
    lines = _printed(report(study, rows)).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["always", "0.05", "1", "37.1 + 3", "37.0 ± 0.6", "38", "4/4", "72.9"] in cells
    assert ["1 in 3", "0.05", "1", "109.2 + 3", "40.0", "-", "1/2", "72.9"] in cells
    assert sum("72.9" in cell for cell in cells) == 2


def test_a_study_in_which_nobody_was_banned_reports_no_bans(rows: dict[tuple[str, str, float], Row]) -> None:
    unbanned = [row for row in rows.values() if not row.audits]
    assert "rounds until all" in _printed(report(STUDY, list(rows.values())))
    assert "rounds until all" not in _printed(report(STUDY, unbanned))


def test_80_columns_hold_the_tables(rows: dict[tuple[str, str, float], Row]) -> None:
    found = [replace(row, backdoor_success=0.5, seed=seed) for row in rows.values() for seed in (0, 1)]
    attacks = (*STUDY.attacks, Attack(behaviour="backdoor"))
    printed = _printed(report(STUDY.model_copy(update={"attacks": attacks, "seeds": (0, 1)}), found), width=80)
    assert "…" not in printed
    assert "backdoor" in printed
    for rule in STUDY.rules:
        assert f"rule {rule}, seeds 2" in printed
    assert "honest members banned: 0" in printed


def test_the_table_leaves_out_what_no_line_has(rows: dict[tuple[str, str, float], Row]) -> None:
    header = _printed(report(STUDY, [row for row in rows.values() if row.attack == "scale"]))
    assert "accuracy" in header
    assert "worst seed" not in header
    assert "backdoor" not in header


def _printed(group: Group, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(group)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_leaves_a_table_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        'name = "tiny"\npeers = 4\nbyzantine = 1\nseeds = 1\naudits = [0.5]\nattacks = ["sign_flip"]\n'
        'learning = "stand-in"\n[task]\ntraining_rounds = 30\n'
    )
    assert cli.main(["study", str(path), "--out", str(tmp_path), "--processes", "1"]) == cli.EXIT_OK
    told = capsys.readouterr().out
    assert "tiny: 1 of 4 peers attack" in told
    assert str(tmp_path / "study-tiny" / "results.csv") in told


def test_own_model_and_data_stand_beside_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_study.py").write_text(
        "import numpy as np\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(2, 2)\n"
        "def data(): return np.eye(2), np.arange(2), np.eye(2), np.arange(2)\n"
    )
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "own"\npeers = 3\nbyzantine = 1\nseeds = 1\naudits = [0.0]\nattacks = ["none"]\n'
        '[task]\nmodel = "beside_the_study:model"\ndata = "beside_the_study:data"\n'
        "training_rounds = 1\nlocal_steps = 1\n"
    )
    assert cli.main(["study", str(path), "--out", str(tmp_path), "--processes", "1"]) == cli.EXIT_OK


def test_another_model_of_the_same_name_is_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_round = STUDY.task.model_copy(update={"training_rounds": 1, "local_steps": 1})
    study = STUDY.model_copy(
        update={"attacks": STUDY.attacks[:1], "rules": ("mean",), "audits": (0.0,), "task": one_round}
    )
    run(study, tmp_path)
    monkeypatch.setitem(models.BUILT_IN, "digits_mlp", models.BUILT_IN["digits_cnn"])
    measured.cache_clear()
    with pytest.raises(StudyError, match="model's first update was"):
        run(study, tmp_path)
    measured.cache_clear()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('name = "odd"\nattacks = ["none"]\n[task]\nmodel = "nothing"\n')
    assert cli.main(["study", str(path), "--out", str(tmp_path), "--processes", "1"]) == cli.EXIT_USAGE
    assert cli.main(["study", "nonesuch"]) == cli.EXIT_USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("p2pdfl: model: 'nothing' is neither built in (char_transformer, ")
    assert first.endswith("nor of the form package.module:function")
    assert "no study 'nonesuch'" in second
