import struct
from hashlib import sha256

import numpy as np
import pytest
import torch

from p2pdfl.learning.state import State, outer_step


def test_the_digest_is_over_little_endian_parameters_then_momentum() -> None:
    state = State(parameters=np.array([1.0, -2.0]), momentum=np.array([0.5, 0.0]))
    assert state.digest() == sha256(struct.pack("<4d", 1.0, -2.0, 0.5, 0.0)).digest()


def test_a_state_goes_as_the_bytes_that_its_digest_is_over() -> None:
    state = State(parameters=np.array([1.0, -0.0, np.nan]), momentum=np.array([0.5, 0.0, 1e-310]))
    data = state.to_bytes()
    assert sha256(data).digest() == state.digest()
    back = State.from_bytes(data, 3)
    assert (back.to_bytes(), back.parameters.tolist()[0]) == (data, 1.0)
    for other in (data[:-8], data + bytes(8), data[:-1], b""):
        with pytest.raises(ValueError, match=r"numbers|multiple"):
            State.from_bytes(other, 3)


def test_a_state_cannot_be_written_to() -> None:
    state = State(parameters=np.zeros(2), momentum=np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        state.parameters[0] = 1.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_outer_steps_are_those_of_torch(momentum: float) -> None:
    draw = np.random.default_rng(0)
    state = State(parameters=draw.standard_normal(50), momentum=np.zeros(50))
    parameter = torch.nn.Parameter(torch.tensor(state.parameters))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=momentum, nesterov=momentum > 0)
    for _ in range(5):
        gradient = draw.standard_normal(50)
        state = outer_step(state, gradient, learning_rate=0.7, momentum=momentum)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert np.allclose(state.parameters, parameter.detach().numpy(), rtol=1e-13, atol=1e-14)


def test_a_plain_outer_step_of_one_takes_the_pseudo_gradient_off() -> None:
    state = State(parameters=np.array([3.0]), momentum=np.array([0.0]))
    after = outer_step(state, np.array([1.0]), learning_rate=1.0, momentum=0.0)
    assert after.parameters.tolist() == [2.0]
    assert after.momentum.tolist() == [0.0]
