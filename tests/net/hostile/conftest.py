from __future__ import annotations

from collections.abc import Iterator

import pytest

from .scene import Scene


@pytest.fixture(scope="package")
def scene() -> Iterator[Scene]:
    with Scene().open() as opened:
        yield opened
