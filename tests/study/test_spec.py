from __future__ import annotations

from pathlib import Path

import pytest

from p2pdfl.study.cell import cells
from p2pdfl.study.spec import Attack, Study, StudyError, find, load

STUDIES = Path(__file__).resolve().parents[2] / "studies"

TEXT = """
name = "small"
peers = 4
byzantine = 1
seeds = 2
rules = ["mean"]
audits = [0, 0.5]
attacks = ["none", { behaviour = "ipm", factor = 0.1, every = 3 }]

[task]
training_rounds = 3
"""


def study_of(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load(path)


def test_a_study_is_all_combinations_seed_by_seed(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT)
    assert [cell.key for cell in cells(study)][:4] == [
        ("none", "mean", 0.0, 0),
        ("ipm x0.1 every 3", "mean", 0.0, 0),
        ("none", "mean", 0.5, 0),
        ("ipm x0.1 every 3", "mean", 0.5, 0),
    ]
    assert len(cells(study)) == 8


def test_seeds_are_a_number_of_them_or_which(tmp_path: Path) -> None:
    assert study_of(tmp_path, TEXT).seeds == (0, 1)
    assert study_of(tmp_path, TEXT.replace("seeds = 2", "seeds = [7, 9]")).seeds == (7, 9)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("peers = 4", "peers = 1", "peers: "),
        ("byzantine = 1", "byzantine = 4", "4 of 4 peers leaves nobody honest"),
        ("peers = 4", "peers = 4\ncolour = 1", "colour: there is no such field"),
        ('"none", {', '"nap", {', r"attacks\.0\.behaviour: Input should be 'none', 'sign_flip', .*'backdoor'"),
        ("factor = 0.1", "factor = nan", r"attacks\.1\.factor"),
        ("every = 3", "every = 0", r"attacks\.1\.every"),
        ('"none", {', '{ behaviour = "none", every = 2 }, {', "none: has no rounds"),
        ('"none", {', '{ behaviour = "zero", factor = 2 }, {', "zero: takes no factor"),
        ('"none", {', '{ behaviour = "delay", factor = 2.5 }, {', "delay: its factor is a whole number of rounds"),
        ("every = 3", "from_round = 3", "attacks: ipm x0.1 from 3: the last round with training is 2"),
        ('"none", {', '"none", "none", {', "attacks: names one twice"),
        ("[0, 0.5]", "[0, 0.0]", "audits: names one twice"),
        ("[0, 0.5]", "[2]", r"audits\.0"),
        ("seeds = 2", "seeds = 0", "seeds: "),
        ("seeds = 2", "seeds = 1000000", "seeds: "),
        ("seeds = 2", "seeds = true", "seeds: "),
        ('["mean"]', '["median_of_nothing"]', r"toml: rules\.0: there is mean, [^;]*, not 'median_of_nothing'$"),
        ('["mean"]', "[]", "rules: "),
        ("training_rounds = 3", 'rule = "mean"', r"task\.rule: is for the study to set"),
        ("training_rounds = 3", "training_round = 3", r"task\.training_round: there is no such field"),
        ("name", "name = ", "not readable as TOML"),
    ],
)
def test_a_study_that_cannot_be_run_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_of(tmp_path, TEXT.replace(old, new, 1))


def test_the_names_of_attacks_tell_them_apart() -> None:
    assert Attack(behaviour="sign_flip").name == "sign_flip"
    assert Attack(behaviour="scale", factor=-1000, from_round=5, every=10).name == "scale x-1000 from 5 every 10"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_those_that_come_along_are_found_and_read(path: Path) -> None:
    assert load(find(path.stem)).name == path.stem


def test_a_study_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(StudyError, match="there are: bans, byzantine, dirichlet, undefended"):
        find("nonesuch")
