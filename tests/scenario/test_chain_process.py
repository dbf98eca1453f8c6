"""The chain's process while nobody reaches it."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
from collections.abc import Iterator

import pytest

from p2pdfl.scenario.processes import ChainProcess

from .test_runner import is_stopped

pytestmark = [pytest.mark.slow, pytest.mark.net]

CHAIN_ID = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "eth_chainId", "params": []})


@pytest.fixture
def chain() -> Iterator[ChainProcess]:
    chain = ChainProcess()
    yield chain
    chain.stop()


def asked(chain: ChainProcess) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(chain.url().removeprefix("http://"), timeout=60)
    connection.request("POST", "/", CHAIN_ID)
    return connection


def test_one_that_refuses_answers_nobody_until_it_is_back(chain: ChainProcess) -> None:
    connection = asked(chain)
    assert connection.getresponse().read()
    chain.go_away("refuse")
    assert connection.sock.recv(1) == b""
    connection.close()
    connection.request("POST", "/", CHAIN_ID)
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
    chain.come_back()
    connection.request("POST", "/", CHAIN_ID)
    assert connection.getresponse().status == 200
    connection.close()


def test_one_that_hangs_takes_questions_and_answers_them_when_it_is_back(chain: ChainProcess) -> None:
    connection = asked(chain)
    assert connection.getresponse().read()
    (process,) = (child for child in multiprocessing.active_children() if child.name == "devchain")
    assert process.pid is not None
    chain.go_away("hang")
    while not is_stopped(process.pid):
        os.sched_yield()
    connection.request("POST", "/", CHAIN_ID)
    chain.come_back()
    assert connection.getresponse().status == 200
    connection.close()
    chain.go_away("hang")  # stopped when it is to end
