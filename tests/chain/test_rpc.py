"""The client against nodes that fail, lie or lose answers: scripted HTTP servers on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from web3 import Web3
from web3.types import RPCEndpoint

from p2pdfl.chain import rpc
from p2pdfl.chain.client import ChainClient, deploy, fund
from p2pdfl.chain.devchain import DEPLOYER_SECRET, DevChain, devchain
from p2pdfl.chain.rpc import BadAnswer, ChainError, ChainUnreachable, HttpRpc
from p2pdfl.chain.sender import Sender
from p2pdfl.crypto.envelope import Signer

from .world import TASK

pytestmark = pytest.mark.net

Answer = Callable[[bytes], "bytes | tuple[int, bytes] | None"]


@contextmanager
def node(answer: Answer) -> Iterator[str]:
    """A node that answers a body so; None closes the connection without an answer."""

    class Connection(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            reply = answer(self.rfile.read(int(self.headers["Content-Length"])))
            if reply is None:
                self.close_connection = True
                return
            status, content = reply if isinstance(reply, tuple) else (200, reply)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def result(value: Any) -> Answer:
    return lambda _: json.dumps({"jsonrpc": "2.0", "id": 0, "result": value}).encode()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BACKOFF_S", 0.001)


@pytest.fixture(scope="module")
def chain() -> Iterator[DevChain]:
    with devchain(block_s=0) as running:
        yield running


def ask(url: str) -> Any:
    provider = HttpRpc(url)
    try:
        return provider.make_request(RPCEndpoint("eth_chainId"), [])
    finally:
        provider.close()


def test_no_node_is_unreachable() -> None:
    with pytest.raises(ChainUnreachable, match="refused"):
        ask("http://127.0.0.1:9")
    with pytest.raises(ChainUnreachable):
        fund("http://127.0.0.1:9", bytes(20), 1)
    with pytest.raises(ChainUnreachable):
        deploy("http://127.0.0.1:9", DEPLOYER_SECRET, TASK)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"result":1,"error":1}',
        b"[" * 200_000,
        b'{"result":' * 200_000,
    ],
    ids=["empty", "html", "bytes", "null", "array", "neither", "both", "deep", "deep objects"],
)
def test_answers_that_are_no_json_rpc_are_refused(answer: bytes) -> None:
    with node(lambda _: answer) as url, pytest.raises(BadAnswer):
        ask(url)


def test_a_huge_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ANSWER_BYTES_MAX", 1_000_000)
    with node(result("x" * 1_000_001)) as url, pytest.raises(BadAnswer, match="over 1000000 bytes"):
        ask(url)


def test_a_slow_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "ANSWER_S", 0.02)
    monkeypatch.setattr(rpc, "ATTEMPTS", 2)
    asked = threading.Event()
    done = threading.Event()

    def answer(_: bytes) -> None:
        asked.set()
        done.wait(5)

    with node(answer) as url:
        with pytest.raises(ChainUnreachable):
            ask(url)
        done.set()
    assert asked.is_set()


def test_redirects_are_not_followed() -> None:
    with node(lambda _: (307, b"")) as url, pytest.raises(BadAnswer):
        ask(url)


def test_failures_are_retried() -> None:
    replies: list[Any] = [None, (503, b""), (429, b""), b'{"result":"0x1"}']
    with node(lambda _: replies.pop(0)) as url:
        assert ask(url)["result"] == "0x1"


def test_failures_are_not_retried_forever() -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> tuple[int, bytes]:
        asked.append(body)
        return 503, b""

    with node(answer) as url, pytest.raises(ChainUnreachable, match="503"):
        ask(url)
    assert len(asked) == rpc.ATTEMPTS


def test_money_is_not_sent_twice() -> None:
    asked: list[str] = []

    def answer(body: bytes) -> bytes | None:
        method = json.loads(body)["method"]
        asked.append(method)
        return result(["0x" + "11" * 20])(body) if method == "eth_accounts" else None  # type: ignore[return-value]

    with node(answer) as url, pytest.raises(ChainUnreachable):
        fund(url, bytes(20), 1)
    assert asked.count("eth_sendTransaction") == 1


def test_funding_elsewhere_than_on_a_development_node_says_what_to_do() -> None:
    with node(result([])) as url, pytest.raises(ChainError, match=r"send 1 ETH to 0x0+ yourself"):
        fund(url, bytes(20), 10**18)


@pytest.mark.parametrize("value", [None, 5, "0x", "0xzz", "ff", [], {}, {"hash": 1}, [[]], "0x" + "00" * 31, True])
def test_results_of_the_wrong_shape_are_refused(value: Any, chain: DevChain) -> None:
    """Whatever the node answers to anything, once the contract has been checked."""
    honest = True

    def answer(body: bytes) -> bytes:
        return chain.answer(body) if honest else result(value)(body)  # type: ignore[return-value]

    deployment = deploy(chain.url, DEPLOYER_SECRET, TASK)
    with node(answer) as url:
        client = ChainClient(deployment.model_copy(update={"rpc": url}), TASK, DEPLOYER_SECRET)
        honest = False
        views: list[Callable[[], Any]] = [
            client.block,
            client.confirmed_block,
            lambda: client.block_of(bytes(32)),
            client.registrations,
            client.is_started,
            client.start_block,
            lambda: client.anchored_head(0),
            lambda: client.events(0, 5),
            lambda: client.deposit_of(bytes(20)),
            lambda: client.balance_of(bytes(20)),
            client.request_exit,
        ]
        for view in views:
            try:
                view()
            except ChainError:
                continue
        client.close()


def test_a_lost_answer_does_not_lose_or_repeat_the_transaction(chain: DevChain) -> None:
    lost: list[bytes] = []

    def answer(body: bytes) -> bytes | None:
        reply = chain.answer(body)
        if b"eth_sendRawTransaction" in body and not lost:
            lost.append(reply)
            return None
        return reply

    before = int(chain.request("eth_getBalance", "0x" + "55" * 20), 16)
    with node(answer) as url:
        provider = HttpRpc(url)
        web3 = Web3(provider, middleware=[])
        receipt = Sender(web3, DEPLOYER_SECRET, web3.eth.chain_id).send(bytes([0x55]) * 20, b"", 7)
        provider.close()
    assert json.loads(lost[0])["result"] == "0x" + receipt.tx.hex()
    assert int(chain.request("eth_getBalance", "0x" + "55" * 20), 16) == before + 7


def error(message: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": -32000, "message": message}}).encode()


@pytest.mark.parametrize("message", ["nonce too low", "replacement transaction underpriced", "transaction underpriced"])
def test_a_refused_nonce_or_fee_is_tried_anew(chain: DevChain, message: str) -> None:
    refusals = [error(message)] * 2

    def answer(body: bytes) -> bytes:
        return refusals.pop() if b"eth_sendRawTransaction" in body and refusals else chain.answer(body)

    with node(answer) as url:
        provider = HttpRpc(url)
        web3 = Web3(provider, middleware=[])
        receipt = Sender(web3, DEPLOYER_SECRET, web3.eth.chain_id).send(bytes([0x55]) * 20, b"", 1)
        provider.close()
    fee = int(chain.request("eth_getTransactionByHash", "0x" + receipt.tx.hex())["maxPriorityFeePerGas"], 16)
    assert (fee > 10**9) == ("underpriced" in message)


def test_a_nonce_always_taken_ends_in_an_error(chain: DevChain) -> None:
    def answer(body: bytes) -> bytes:
        return error("nonce too low") if b"eth_sendRawTransaction" in body else chain.answer(body)

    with node(answer) as url:
        provider = HttpRpc(url)
        web3 = Web3(provider, middleware=[])
        sender = Sender(web3, DEPLOYER_SECRET, web3.eth.chain_id)
        with pytest.raises(ChainError, match="another program"):
            sender.send(bytes([0x55]) * 20, b"", 1)
        provider.close()


def test_a_replaced_transaction_is_sent_anew(chain: DevChain) -> None:
    swallowed: list[bytes] = []

    def answer(body: bytes) -> bytes:
        if b"eth_sendRawTransaction" in body and not swallowed:
            swallowed.append(body)
            # taken but never mined; another program's transaction gets the nonce
            sender = "0x" + Signer(DEPLOYER_SECRET).address.hex()
            chain.request("eth_sendTransaction", {"from": sender, "to": "0x" + "56" * 20, "value": "0x1"})
            return result("0x" + "00" * 32)(body)  # type: ignore[return-value]
        return chain.answer(body)

    with node(answer) as url:
        provider = HttpRpc(url)
        web3 = Web3(provider, middleware=[])
        receipt = Sender(web3, DEPLOYER_SECRET, web3.eth.chain_id).send(bytes([0x57]) * 20, b"", 9)
        provider.close()
    assert int(chain.request("eth_getBalance", "0x" + "57" * 20), 16) == 9
    assert receipt.block == int(chain.request("eth_blockNumber"), 16)
