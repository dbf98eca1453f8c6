from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from p2pdfl.net import Network

from .loopback import networks


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Network, Network]]:
    async with networks(2) as (one, other):
        yield one, other
