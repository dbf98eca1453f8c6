from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from p2pdfl.learning.learner import Learner, State, StateError, load_state, save_state
from p2pdfl.learning.networks import DigitsMLP


@pytest.fixture
def state(learner: Learner) -> State:
    draw = np.random.default_rng(0)
    return State(parameters=draw.standard_normal(learner.dimension), momentum=draw.standard_normal(learner.dimension))


def test_a_saved_state_comes_back(tmp_path: Path, learner: Learner, state: State) -> None:
    save_state(tmp_path / "deep" / "state.safetensors", state, learner)
    assert load_state(tmp_path / "deep" / "state.safetensors", learner).digest() == state.digest()


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path, learner: Learner, state: State) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, learner.initial_state(), learner)
    save_state(path, state, learner)
    assert load_state(path, learner).digest() == state.digest()
    assert list(tmp_path.iterdir()) == [path]


def test_parameters_have_the_names_that_torch_expects(tmp_path: Path, learner: Learner, state: State) -> None:
    save_state(tmp_path / "state", state, learner)
    assert set(DigitsMLP().state_dict()) <= set(load_file(tmp_path / "state"))


EIGHT_BITS = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
NOT_SAFETENSORS = [
    b"",
    b"junk" * 10,
    (2**60).to_bytes(8, "little") + b"{}",
    len(EIGHT_BITS).to_bytes(8, "little") + EIGHT_BITS + bytes(1),
]


@pytest.mark.parametrize("content", NOT_SAFETENSORS, ids=["empty", "junk", "long header", "8-bit floats"])
def test_checkpoint__reject__not_safetensors(tmp_path: Path, learner: Learner, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(StateError, match="not readable as safetensors"):
        load_state(tmp_path / "state", learner)


def test_checkpoint__reject__no_such_file(tmp_path: Path, learner: Learner) -> None:
    with pytest.raises(StateError, match="not readable as safetensors"):
        load_state(tmp_path / "absent", learner)


def test_checkpoint__reject__another_model(tmp_path: Path, learner: Learner) -> None:
    save_file({"weight": np.zeros(3)}, tmp_path / "state")
    with pytest.raises(StateError, match="not those of the task's model"):
        load_state(tmp_path / "state", learner)


def test_checkpoint__reject__another_number_type(tmp_path: Path, learner: Learner, state: State) -> None:
    save_state(tmp_path / "state", state, learner)
    tensors = {name: tensor.astype(np.float32) for name, tensor in load_file(tmp_path / "state").items()}
    save_file(tensors, tmp_path / "state")
    with pytest.raises(StateError, match="not float64"):
        load_state(tmp_path / "state", learner)
