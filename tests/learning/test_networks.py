from pathlib import Path

import numpy as np
import pytest
import torch

from learning.image_files import digits_as_images, write_cifar10, write_mnist
from p2pdfl.base.task import Task
from p2pdfl.learning import data, images, models
from p2pdfl.learning.learner import Learner
from p2pdfl.learning.networks import BUILT_IN
from p2pdfl.learning.profiles import arithmetic
from p2pdfl.learning.sources import CONTEXT, VOCABULARY_SIZE

TEST_COUNT = 360
COUNTS = {
    "digits_mlp": 17_226,
    "digits_cnn": 1_386,
    "mnist_cnn": 9_146,
    "cifar10_cnn": 11_274,
    "char_transformer": 40_849,
}
TASKS = [("digits_cnn", "digits"), *((model, name) for name, model in data.MODELS.items())]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits in the files of the image sets."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("mnist", "fashion_mnist"):
        write_mnist(folder / name, *digits_as_images(28), TEST_COUNT, compress=True)
    pixels, labels = digits_as_images(32)
    write_cifar10(folder / "cifar10", np.repeat(pixels[:, np.newaxis], 3, axis=1), labels, TEST_COUNT)
    return folder


@pytest.fixture(autouse=True)
def _in_image_folder(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(images.FOLDER_VARIABLE, str(image_folder))


def after(task: Task, author_count: int = 1) -> float:
    """Accuracy at the end, with some authors in every round."""
    learner = Learner(task)
    state = learner.initial_state()
    for round in range(task.training_rounds):
        updates = [
            learner.train(
                state,
                seed=bytes([round, author]) * 16,
                task_id=bytes(32),
                round=round,
                author=bytes([author]) * 20,
            )
            for author in range(author_count)
        ]
        state = learner.aggregate(state, updates)
    return learner.evaluate(state)


@pytest.mark.parametrize("name", BUILT_IN)
def test_models_have_the_parameters_that_they_say(name: str) -> None:
    assert models.flatten(models.build(name, 0)).size == COUNTS[name]
    assert f"{COUNTS[name]:,} parameters".replace(",", " ") in (BUILT_IN[name].__doc__ or "")


def test_all_built_in_data_have_a_model_and_all_models_data() -> None:
    assert data.MODELS.keys() == data.BUILT_IN.keys()
    assert {model for model, _ in TASKS} == BUILT_IN.keys()


@pytest.mark.parametrize(("model", "name"), TASKS)
def test_two_machines_compute_the_same_rounds(model: str, name: str) -> None:
    task = Task(model=model, data=name, local_steps=2, batch_size=4, training_rounds=2)
    one, other = Learner(task), Learner(task)
    states = []
    for learner in (one, other):
        state = learner.initial_state()
        for round in range(task.training_rounds):
            update = learner.train(state, seed=bytes(32), task_id=bytes(32), round=round, author=bytes(20))
            state = learner.aggregate(state, [update])
        states.append(state.digest())
    assert states[0] == states[1] != one.initial_state().digest()


@pytest.mark.slow
def test_digits_cnn_learns() -> None:
    assert after(Task(model="digits_cnn")) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), [("mnist_cnn", "mnist"), ("cifar10_cnn", "cifar10")])
def test_image_models_learn(model: str, name: str) -> None:
    assert after(Task(model=model, data=name, learning_rate=0.1, local_steps=10, training_rounds=6)) > 0.8


@pytest.mark.slow
def test_the_transformer_learns_more_than_the_most_frequent_character() -> None:
    classes = data.load("stdlib").y_test
    baseline = np.bincount(classes.reshape(-1)).max() / classes.size
    task = Task(model="char_transformer", data="stdlib", training_rounds=5)
    assert after(task) > baseline + 0.04


def test_the_transformer_does_not_look_ahead() -> None:
    arithmetic("exact").enter()
    module = models.build("char_transformer", 0)
    tokens = torch.arange(CONTEXT).remainder(VOCABULARY_SIZE)[None]
    changed = tokens.clone()
    changed[0, 40:] = 1
    with torch.no_grad():
        expected, found = module(tokens), module(changed)
    assert expected.shape == (1, VOCABULARY_SIZE, CONTEXT)
    assert torch.equal(expected[..., :40], found[..., :40])
    assert not torch.equal(expected[..., 40:], found[..., 40:])


def test_the_transformer_attends_to_what_was_before() -> None:
    arithmetic("exact").enter()
    module = models.build("char_transformer", 0)
    tokens = torch.zeros(1, CONTEXT, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 0] = 1
    with torch.no_grad():
        assert not torch.equal(module(tokens)[..., -1], module(changed)[..., -1])
