import numpy as np
import pytest
import torch

from p2pdfl.base.task import Task, TaskError
from p2pdfl.learning import models
from p2pdfl.learning.learner import Learner


def learner_for(model: str, data: str = "digits") -> Learner:
    return Learner(Task(model=model, data=data, local_steps=2, batch_size=4))


def test_digits_mlp_has_17226_float64_parameters(learner: Learner) -> None:
    assert learner.dimension == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert learner.initial_state().parameters.dtype == np.float64


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(7)
    first = models.flatten(models.build("digits_mlp", 3))
    torch.manual_seed(8)
    assert models.flatten(models.build("digits_mlp", 3)).tobytes() == first.tobytes()
    assert models.flatten(models.build("digits_mlp", 4)).tobytes() != first.tobytes()


def test_initial_weights_are_the_same_bytes_everywhere(learner: Learner) -> None:
    assert learner.initial_state().digest().hex() == "10f35527f1e4479d4ca5948610985df37da148fa43500d70b1c1e642bc28bec8"


def test_initial_weights_are_bounded_by_fan_in_as_in_torch() -> None:
    module = models.build("digits_mlp", 0)
    for layer, fan_in in ((0, 64), (2, 128), (4, 64)):
        bound = 1 / fan_in**0.5
        assert 0.95 * bound < float(module.get_parameter(f"{layer}.weight").detach().abs().max()) <= bound
        assert 0.5 * bound < float(module.get_parameter(f"{layer}.bias").detach().abs().max()) <= bound


def test_building_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    models.build("digits_mlp", 0)
    assert torch.equal(torch.rand(1), expected)


def test_weights_that_the_function_fixes_stay() -> None:
    module = models.build("learning.custom:shipped_weights", 0)
    assert torch.equal(module.get_parameter("weight")[0, :3], torch.tensor([0, 1, 2]).float().div(640).double())


def test_norm_layers_keep_their_ones() -> None:
    module = models.build("learning.custom:convolutional", 0)
    assert module.get_parameter("2.weight").tolist() == [1.0] * 4


def test_flat_vectors_go_in_and_out_in_declared_order() -> None:
    module = models.build("digits_mlp", 0)
    vector = np.arange(17226.0)
    models.load_flat(module, vector)
    assert models.flatten(module).tobytes() == vector.tobytes()
    assert module.get_parameter("0.bias")[0] == 64 * 128


@pytest.mark.parametrize(
    ("model", "data"),
    [("learning.custom:convolutional", "digits"), ("learning.custom:next_token", "learning.custom:tokens")],
)
def test_a_tasks_own_model_trains_and_replays(model: str, data: str) -> None:
    one, other = learner_for(model, data), learner_for(model, data)
    assert one.reference_replay() == other.reference_replay()
    assert 0.0 <= one.evaluate(one.initial_state()) <= 1.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "mlp",
            "neither built in (char_transformer, cifar10_cnn, digits_cnn, digits_mlp, mnist_cnn) nor of the form",
        ),
        ("learning.custom:absent", "has no function 'absent'"),
        ("learning.custom:not_a_module", "must return a torch.nn.Module"),
        ("learning.custom:without_parameters", "has no parameters to train"),
        ("learning.custom:with_dropout", "layer '1' (Dropout) is random"),
        ("learning.custom:with_functional_dropout", "two passes differ"),
        ("learning.custom:with_batch_norm", "layer '1' (BatchNorm1d) keeps running statistics"),
        ("learning.custom:with_counter", "a pass changes a buffer"),
        ("learning.custom:with_frozen_random_layer", "'0.weight' is random and not trained"),
        ("learning.custom:other_input_size", "does not take the task's data"),
        ("learning.custom:too_few_classes", "gives 9 classes, the data has 10"),
    ],
)
def test_model__reject__cannot_be_replayed(name: str, reason: str) -> None:
    with pytest.raises(TaskError) as refusal:
        learner_for(name)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("model: ")


def test_model__reject__does_not_fit_the_classes() -> None:
    with pytest.raises(TaskError, match=r"^model: cannot be trained on the task's data"):
        learner_for("digits_mlp", "learning.custom:classes_of_another_shape")
