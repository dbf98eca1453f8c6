import struct
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


finite = st.floats(-1e100, 1e100)


@given(
    st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=70),
    st.floats(1e-3, 10),
    st.one_of(st.just(0.0), st.floats(0, 0.999)),
)
def test_every_operation_of_an_outer_step_rounds_by_itself(
    numbers: list[tuple[float, float, float]], learning_rate: float, momentum: float
) -> None:
    """As Python's numbers do; a fused multiplication and addition, which only some processors have, would not."""
    parameters, before, gradient = (np.array(column) for column in zip(*numbers, strict=True))
    state = State(parameters=parameters, momentum=before)
    after = outer_step(state, gradient, learning_rate=learning_rate, momentum=momentum)
    for index, (p, m, g) in enumerate(numbers):
        if momentum == 0:
            expected = (p - g * learning_rate, m)
        else:
            m = m * momentum + g
            expected = (p - (g + m * momentum) * learning_rate, m)
        assert (after.parameters[index], after.momentum[index]) == expected


def test_what_is_in_the_momentum_changes_the_digest_and_the_next_step() -> None:
    """A peer with another momentum is found in the round in which it has it, not when it tells."""
    one, other = (State(parameters=np.zeros(2), momentum=np.array([0.0, value])) for value in (0.5, 0.25))
    assert one.digest() != other.digest()
    steps = [outer_step(state, np.ones(2), learning_rate=1.0, momentum=0.5) for state in (one, other)]
    assert steps[0].parameters[1] != steps[1].parameters[1]


def test_a_plain_outer_step_of_one_takes_the_pseudo_gradient_off() -> None:
    state = State(parameters=np.array([3.0]), momentum=np.array([0.0]))
    after = outer_step(state, np.array([1.0]), learning_rate=1.0, momentum=0.0)
    assert after.parameters.tolist() == [2.0]
    assert after.momentum.tolist() == [0.0]
