"""Against the real contract on the embedded chain, where the one registration or the other comes in between."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.nodes import ETH, Place, keys_of, measured, place
from p2pdfl.base.types import Digest, Registration
from p2pdfl.base.workers import Threads
from p2pdfl.chain.client import ChainClient, fund
from p2pdfl.node import home
from p2pdfl.node.home import PeerError
from p2pdfl.node.registration import FUND_MARGIN_WEI, Registrar
from p2pdfl.node.store import Store

pytestmark = [pytest.mark.net, pytest.mark.slow]

PEER_ID = b"ada's peer id"


class Overtaken(ChainClient):
    """Whoever asks who is registered is told, a few times, what was so before the registration came."""

    outdated_count = 0

    def registrations(self, block: int | Digest | None = None) -> list[Registration]:
        if self.outdated_count > 0:
            self.outdated_count -= 1
            return []
        return super().registrations(block)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, measured(members_min=1)) as at:
        yield at


@contextmanager
def registrar(at: Place, outdated_count: int) -> Iterator[Registrar]:
    keys = keys_of("ada")
    (at.directory / "home").mkdir()
    chain = Overtaken(at.deployment, at.task, keys.chain_secret)
    chain.outdated_count = outdated_count
    with home.opened(
        at.directory / "home",
        at.task,
        entropy=secrets.token_bytes,
        tell=lambda event, fields: None,
        open_store=Store,
        clock=time,
    ) as own:
        yield Registrar(
            task=at.task,
            home=home.Home(path=own.path, keys=keys, store=own.store, event_log=own.event_log, signed=[]),
            peer_id=PEER_ID,
            chain=chain,
            workers=Threads(),
            fund=None,
            say=lambda text: None,
        )
    chain.close()


async def test_one_that_came_between_the_question_and_the_sending_is_enough(at: Place) -> None:
    """As after a reorganization, when what it has dropped is mined again by itself."""
    at.register("ada", PEER_ID)
    fund(at.chain.url, keys_of("ada").address, at.task.deposit_wei + FUND_MARGIN_WEI)
    with registrar(at, outdated_count=2) as ada:
        (ada.home.path / home.STORE_LOST).touch()
        await ada.register()
        assert ada.home.is_store_lost  # it may have been there for long


async def test_a_key_that_is_registered_now_has_signed_nothing(at: Place) -> None:
    fund(at.chain.url, keys_of("ada").address, at.task.deposit_wei + FUND_MARGIN_WEI)
    with registrar(at, outdated_count=0) as ada:
        (ada.home.path / home.STORE_LOST).touch()
        await ada.register()
        assert not ada.home.is_store_lost


async def test_a_deposit_that_was_paid_in_between_is_not_missed(at: Place) -> None:
    at.register("ada", PEER_ID)
    with registrar(at, outdated_count=1) as ada:
        await ada.register()


async def test_what_the_contract_refuses_is_told(at: Place) -> None:
    at.register("bob", PEER_ID)
    fund(at.chain.url, keys_of("ada").address, at.task.deposit_wei + 2 * ETH)
    with registrar(at, outdated_count=0) as ada, pytest.raises(PeerError, match="peer id taken"):
        await ada.register()
