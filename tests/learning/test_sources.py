import platform
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base.task import Task, TaskError
from p2pdfl.learning import data, sources
from p2pdfl.learning.learner import DigestMismatch, Learner


def text(tokens: np.ndarray) -> str:
    return "".join("�" if token == sources.OTHER else sources.VOCABULARY[token] for token in tokens)


@given(st.text())
def test_what_the_vocabulary_has_not_is_one_token(characters: str) -> None:
    expected = "".join(character if character in sources.VOCABULARY else "�" for character in characters)
    assert text(sources.tokens(characters)) == expected


def test_classes_are_the_next_characters_of_the_modules_in_order() -> None:
    stdlib = data.load("stdlib")
    assert stdlib.x_train.shape == stdlib.y_train.shape
    assert stdlib.x_train.shape[1] == sources.CONTEXT
    source = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text(encoding="utf-8")
    assert text(stdlib.x_train[0]) == source[: sources.CONTEXT]
    assert text(stdlib.y_train[2]) == source[2 * sources.CONTEXT + 1 : 3 * sources.CONTEXT + 1]
    assert (stdlib.x_train.reshape(-1)[1:] == stdlib.y_train.reshape(-1)[:-1]).all()


def test_its_size_is_that_of_a_megabyte_of_text() -> None:
    stdlib = data.load("stdlib")
    assert 0.8e6 < stdlib.x_train.size < 1.6e6
    assert 2e4 < stdlib.x_test.size < 1e5
    assert stdlib.class_count <= sources.VOCABULARY_SIZE
    assert set(sources.TRAIN_MODULES).isdisjoint(sources.TEST_MODULES)
    assert list(sources.TRAIN_MODULES) == sorted(sources.TRAIN_MODULES)


def test_the_same_python_has_the_same_digest() -> None:
    assert data.load("stdlib").digest() == data.load("stdlib").digest()


def test_another_pythons_sources_are_refused_with_the_version_of_these() -> None:
    task = Task(model="char_transformer", data="stdlib", data_digest=bytes(32))
    with pytest.raises(DigestMismatch) as refusal:
        Learner(task)
    assert f"standard library of Python {platform.python_version()}" in str(refusal.value)
    assert "run exactly the publisher's version" in str(refusal.value)


def test_a_python_without_sources_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(TaskError, match=r"^data: stdlib: .*argparse\.py cannot be read .*needs a Python with"):
        data.load("stdlib")
    (tmp_path / "argparse.py").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match=r"argparse\.py cannot be read"):
        data.load("stdlib")
