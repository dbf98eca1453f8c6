from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.base.task import Task, TaskError
from p2pdfl.byzantine.updates import FlippedLabels, WithBackdoor
from p2pdfl.learning import data, draw
from p2pdfl.learning.learner import Learner
from p2pdfl.learning.shards import SHARD_DIVISOR, shard, urn

AUTHOR, OTHER = b"\1" * 20, b"\2" * 20
NON_IID = Task(dirichlet=0.3, local_steps=5)
CLASSES = np.arange(2000) % 10

alphas = st.integers(1, 10**6).map(lambda thousandths: thousandths / 1000)


def shares(alpha: float, author: int, size: int = 1000) -> list[float]:
    """Of each class in one author's shard, in falling order."""
    own = CLASSES[shard(CLASSES, alpha=alpha, size=size, task_seed=0, author=author.to_bytes(20, "big"))]
    return sorted((np.bincount(own, minlength=10) / size).tolist(), reverse=True)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), alphas, st.integers(1, 150), st.binary(max_size=20))
def test_a_shard_repeats_an_example_only_when_its_class_is_used_up(
    labels: list[int], alpha: float, size: int, author: bytes
) -> None:
    classes = np.array(labels)
    own = shard(classes, alpha=alpha, size=size, task_seed=1, author=author)
    assert own.tobytes() == shard(classes, alpha=alpha, size=size, task_seed=1, author=author).tobytes()
    assert own.size == size
    times = np.bincount(own, minlength=len(classes))
    for label in set(labels):
        of_class = times[classes == label]
        assert of_class.max() - of_class.min() <= 1


@given(st.integers(1, 8), alphas, st.integers(1, 80), st.binary(max_size=8))
def test_the_urn_is_that_of_the_wire_format(class_count: int, alpha: float, count: int, seed: bytes) -> None:
    """docs/wire.md 9, in the integers of Python."""
    weight = int(alpha * 1000 + 0.5)
    labels: list[int] = []
    for place, word in enumerate(draw.stream(b"urn", seed).random_raw(count).tolist()):
        rest = word % (class_count * weight + 1000 * place)
        labels.append(rest // weight if rest < class_count * weight else labels[(rest - class_count * weight) // 1000])
    drawn = urn(draw.stream(b"urn", seed), class_count=class_count, alpha=alpha, count=count)
    assert drawn.tolist() == labels


def test_labels_are_a_sample_of_dirichlet_proportions() -> None:
    """With alpha 1 and two classes, proportions are uniform, and so is the number of labels 0 among ten."""
    words, urns = draw.stream(b"many urns", b""), 4400
    zeros = Counter(urn(words, class_count=2, alpha=1.0, count=10).tolist().count(0) for _ in range(urns))
    deviation = (urns * (1 / 11) * (10 / 11)) ** 0.5
    assert all(abs(zeros[number] - urns / 11) < 4 * deviation for number in range(11))


def test_the_larger_alpha_the_more_alike_are_the_classes() -> None:
    largest = [np.mean([shares(alpha, author)[0] for author in range(20)]) for alpha in (0.001, 0.1, 1.0, 10.0, 1000.0)]
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > 0.95
    assert largest[-1] < 0.14


def test_shards_are_the_same_bytes_everywhere() -> None:
    own = shard(data.load("digits").y_train, alpha=0.3, size=89, task_seed=0, author=AUTHOR)
    digest = sha256(own.astype("<i8").tobytes()).hexdigest()
    assert digest == "db344b8d755cf5dd03b3f1bcb88bb42a5539529b2aa3b5009f8b2d391efb5b6c"


def test_a_shard_follows_from_seed_and_author_alone() -> None:
    def drawn(task_seed: int, author: bytes) -> bytes:
        return shard(CLASSES, alpha=0.3, size=100, task_seed=task_seed, author=author).tobytes()

    assert drawn(0, AUTHOR) == drawn(0, AUTHOR)
    assert len({drawn(0, AUTHOR), drawn(0, OTHER), drawn(1, AUTHOR)}) == 3


def test_a_class_without_examples_is_never_drawn() -> None:
    classes = np.array([0, 4, 4, 9])
    assert set(classes[shard(classes, alpha=1000.0, size=50, task_seed=0, author=AUTHOR)]) == {0, 4, 9}


# --- in training ---------------------------------------------------------------------------------------------------


def trained(learner: Learner, author: bytes) -> bytes:
    return learner.train(learner.initial_state(), seed=bytes(32), task_id=bytes(32), round=0, author=author)


def codes(update: bytes) -> bytes:
    """Without the header, which names the author."""
    return update[100:]


def test_authors_train_on_their_own_shards_and_auditors_on_the_same() -> None:
    trainer, auditor = Learner(NON_IID), Learner(NON_IID)
    assert trained(trainer, AUTHOR) == trained(auditor, AUTHOR)
    assert codes(trained(trainer, AUTHOR)) != codes(trained(trainer, OTHER))


def test_without_a_split_the_author_does_not_matter(learner: Learner) -> None:
    assert codes(trained(learner, AUTHOR)) == codes(trained(learner, OTHER))


def test_nothing_but_the_shard_is_trained_on() -> None:
    learner = Learner(NON_IID)
    expected = trained(learner, AUTHOR)
    own = shard(data.load("digits").y_train, alpha=0.3, size=1437 // SHARD_DIVISOR, task_seed=0, author=AUTHOR)
    others = np.setdiff1d(np.arange(1437), own)
    learner._x_train[others] = 0.5
    assert trained(learner, AUTHOR) == expected
    learner._x_train[own] = 0.5
    assert trained(learner, AUTHOR) != expected


@pytest.mark.parametrize("task", [NON_IID, Task()], ids=["shards", "iid"])
def test_a_poisoner_poisons_the_examples_that_it_has(task: Task) -> None:
    honest = Learner(task)
    own = honest._examples_of(AUTHOR)
    flipped, backdoored = FlippedLabels(task), WithBackdoor(task)
    assert flipped._examples_of(AUTHOR).tolist() == own.tolist()
    clean, marked = np.split(backdoored._examples_of(AUTHOR), 2)
    assert clean.tolist() == own.tolist()
    assert backdoored._x_train[clean].equal(honest._x_train[own])
    assert backdoored._x_train[marked][:, :-3].equal(honest._x_train[own][:, :-3])
    assert not backdoored._y_train[marked].any()


def test_learner__reject__shards_of_what_has_no_single_class() -> None:
    task = Task(model="learning.custom:next_token", data="learning.custom:tokens", dirichlet=0.3)
    with pytest.raises(TaskError, match=r"^dirichlet: needs data with one class per example"):
        Learner(task)
