import dataclasses

import numpy as np
import pytest

from p2pdfl.base.task import TaskError
from p2pdfl.learning import data


def test_digits_are_split_1437_to_360_and_scaled() -> None:
    digits = data.load("digits")
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert (digits.x_train.min(), digits.x_train.max()) == (0.0, 1.0)
    assert digits.class_count == 10


def test_digits_are_the_same_bytes_everywhere() -> None:
    assert data.load("digits").digest().hex() == "ac6b411aa208af61311ce3692554d0b1f4781c726341e89e85d52649dc3a160e"


def test_no_example_is_in_both_sets() -> None:
    digits = data.load("digits")
    train = {row.tobytes() for row in digits.x_train}
    assert not any(row.tobytes() in train for row in digits.x_test)


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_a_changed_value_changes_the_digest(name: str) -> None:
    digits = data.load("digits")
    array = getattr(digits, name).copy()
    array[-1] = array[-1] + 1
    assert dataclasses.replace(digits, **{name: array}).digest() != digits.digest()


def test_tokens_are_accepted() -> None:
    tokens = data.load("learning.custom:tokens")
    assert tokens.x_train.dtype == np.int64
    assert tokens.y_train.shape == (5, 11)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "digit",
            "'digit' is neither built in (cifar10, digits, fashion_mnist, mnist, stdlib) nor of the form",
        ),
        ("os.path:", "nor of the form"),
        ("a b:c", "nor of the form"),
        ("no_such_package.module:function", "cannot import 'no_such_package.module'"),
        ("learning.custom:absent", "'learning.custom' has no function 'absent'"),
        ("learning.custom:NOT_A_FUNCTION", "has no function 'NOT_A_FUNCTION'"),
        ("learning.custom:not_a_module", "must return the arrays x_train, y_train, x_test, y_test"),
        ("learning.custom:missing_file", "'learning.custom:missing_file' failed: FileNotFoundError"),
        ("learning.custom:three_arrays", "must return the arrays x_train, y_train, x_test, y_test"),
        ("learning.custom:with_nan", "x_train holds NaN or infinity"),
        ("learning.custom:different_lengths", "inputs and classes differ in number"),
        ("learning.custom:float_classes", "y_train must hold class numbers from 0"),
    ],
)
def test_data__reject__unusable(name: str, reason: str) -> None:
    with pytest.raises(TaskError) as refusal:
        data.load(name)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("data: ")
