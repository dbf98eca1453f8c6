"""The embedded node's HTTP side, and what hostile clients find there."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from p2pdfl.chain.devchain import BATCH_MAX, REQUEST_BYTES_MAX, DevChain, devchain

pytestmark = pytest.mark.net

CHAIN_ID = {"jsonrpc": "2.0", "id": 7, "method": "eth_chainId", "params": []}


@pytest.fixture(scope="module")
def chain() -> Iterator[DevChain]:
    with devchain(block_s=0) as running:
        yield running


def address(chain: DevChain) -> tuple[str, int]:
    host, port = chain.url.removeprefix("http://").split(":")
    return host, int(port)


def post(chain: DevChain, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address(chain), timeout=5)
    try:
        connection.request("POST", "/", body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def call(chain: DevChain, request: Any) -> Any:
    status, answer = post(chain, json.dumps(request).encode())
    assert status == 200
    return json.loads(answer)


def test_a_call_and_a_batch_are_answered(chain: DevChain) -> None:
    expected = {"jsonrpc": "2.0", "id": 7, "result": chain.request("eth_chainId")}
    assert call(chain, CHAIN_ID) == expected
    assert call(chain, [CHAIN_ID, CHAIN_ID]) == [expected, expected]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"\xff\xfe", -32700),
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b'{"id":' + b"9" * 5_000 + b"}", -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b"{}", -32600),
        (b'{"method":1}', -32600),
        (b'{"method":"eth_chainId","params":{"a":1}}', -32600),
        (b'{"method":"no_such"}', -32601),
        (b'{"method":"__class__"}', -32601),
        (b'{"method":"eth_getBalance","params":[{}]}', -32602),
    ],
)
def test_hostile_bodies_get_an_error(chain: DevChain, body: bytes, code: int) -> None:
    status, answer = post(chain, body)
    assert (status, json.loads(answer)["error"]["code"]) == (200, code)


def test_batches_are_bounded(chain: DevChain) -> None:
    assert call(chain, [CHAIN_ID] * (BATCH_MAX + 1))["error"]["code"] == -32600
    assert [answer["error"]["code"] for answer in call(chain, [1, None])] == [-32600, -32600]


def raw_exchange(chain: DevChain, sent: bytes) -> bytes:
    with socket.create_connection(address(chain), timeout=5) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", b"411"),
        (b"Content-Length: x\r\n", b"411"),
        (b"Content-Length: -1\r\n", b"411"),
        (b"Content-Length: %d\r\n" % (REQUEST_BYTES_MAX + 1), b"413"),
        (b"Content-Length: 99999999999999999999999\r\n", b"413"),
        (b"Content-Length: 2\r\nOrigin: https://example.org\r\n", b"403"),
    ],
)
def test_hostile_headers_are_refused(chain: DevChain, headers: bytes, status: bytes) -> None:
    answer = raw_exchange(chain, b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n{}")
    assert answer.split()[1] == status


@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"\x00"])
def test_only_posts_are_served(chain: DevChain, method: bytes) -> None:
    answer = raw_exchange(chain, method + b" / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"501" in answer or b"400" in answer


def test_a_body_that_ends_early_is_dropped(chain: DevChain) -> None:
    assert raw_exchange(chain, b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\n{}") == b""
    assert call(chain, CHAIN_ID)["id"] == 7


def test_who_is_away_hangs_up_on_connections_old_and_new_until_it_is_back(chain: DevChain) -> None:
    body = json.dumps(CHAIN_ID).encode()
    kept = http.client.HTTPConnection(*address(chain), timeout=5)
    kept.request("POST", "/", body)
    assert kept.getresponse().read()
    chain.go_away()
    try:
        assert kept.sock.recv(1) == b""
        assert raw_exchange(chain, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) == b""
    finally:
        kept.close()
        chain.come_back()
    assert call(chain, CHAIN_ID)["id"] == 7


def test_it_listens_on_loopback_only(chain: DevChain) -> None:
    assert address(chain)[0] == "127.0.0.1"


def test_a_taken_port_is_an_error(chain: DevChain) -> None:
    with pytest.raises(OSError, match="in use"):
        DevChain(address(chain)[1])


def test_a_closed_chain_answers_nobody() -> None:
    with devchain(block_s=0) as chain:
        connection = http.client.HTTPConnection(*address(chain), timeout=5)
        connection.request("POST", "/", json.dumps(CHAIN_ID))
        assert connection.getresponse().read()
    # neither on the connection that it had before, nor on a new one
    connection.request("POST", "/", json.dumps(CHAIN_ID))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.getresponse()
    connection.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(address(chain), timeout=5)


def test_blocks_come_by_themselves() -> None:
    with devchain(block_s=0.001) as chain:
        while int(chain.request("eth_blockNumber"), 16) < 3:
            pass


@pytest.mark.slow
def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "p2pdfl.chain.devchain", "--block-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("POST", "/", json.dumps(CHAIN_ID))
        assert json.loads(connection.getresponse().read())["id"] == 7
        connection.close()
        taken = subprocess.run([*command, "--port", port], capture_output=True, text=True, check=False)
        assert taken.returncode == 1
        assert "in use" in taken.stderr
        process.terminate()
