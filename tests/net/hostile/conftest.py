from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from .scene import Scene

Stage = tuple[list[Scene], Callable[[], None]]
"""The scene that is on, and how to begin a new one."""


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    with ExitStack() as stack:
        scenes: list[Scene] = []

        def renew() -> None:
            stack.pop_all().close()
            scenes[:] = [stack.enter_context(Scene().open())]

        renew()
        yield scenes, renew


@pytest.fixture
def scene(stage: Stage) -> Iterator[Scene]:
    """One for many cases; a new one after a case that failed, so that it is the only one that does."""
    scenes, renew = stage
    yield scenes[0]
    if not scenes[0].is_whole:
        renew()
