from collections.abc import Callable

import pytest

from p2pdfl.base.task import Task
from p2pdfl.learning.learner import Learner

TASK_ID = bytes(range(32))


@pytest.fixture(scope="session")
def learner() -> Learner:
    return Learner(Task())


@pytest.fixture(scope="session")
def train(learner: Learner) -> Callable[..., bytes]:
    """An update of round 3 from the initial state; keyword arguments replace those of `Learner.train`."""

    def train(**changes: object) -> bytes:
        arguments = {"seed": bytes(32), "task_id": TASK_ID, "round": 3, "author": bytes(20)} | changes
        return learner.train(learner.initial_state(), **arguments)  # type: ignore[arg-type]

    return train
