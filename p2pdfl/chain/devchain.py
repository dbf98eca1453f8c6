"""The embedded node: `evm.Evm` behind JSON-RPC over HTTP on loopback, so that several peer processes share one chain.

Everything is in memory and gone when it stops; its accounts' keys are public.  For development and scenarios only.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from p2pdfl.base import bounded_json
from p2pdfl.chain.evm import Evm, JsonValue, RpcError

HOST = "127.0.0.1"
REQUEST_BYTES_MAX = 2 << 20
BATCH_MAX = 100
CONNECTIONS_MAX = 256
IDLE_S = 60.0
"""An open connection without a request."""
BLOCK_S = 1.0
"""Between the empty blocks that let confirmations grow while nobody sends anything."""

DEPLOYER_SECRET = (1).to_bytes(32, "big")
"""One of the prefunded accounts."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600


class DevChain:
    """Serves from construction to `close`.  block_s: seconds between empty blocks, 0 for none.  Raises OSError if the
    port is taken."""

    def __init__(self, port: int = 0, block_s: float = BLOCK_S) -> None:
        self._evm = Evm()
        self._using_evm = threading.Lock()
        self._closing = threading.Event()
        self.is_away = False
        """Whether it hangs up on everybody."""
        self._servers = [_Server((HOST, port), self)]
        self._port = self._servers[0].server_port
        self.url = f"http://{HOST}:{self._port}"
        self._threads = [threading.Thread(target=self._servers[0].serve_forever, args=(0.05,), daemon=True)]
        if block_s > 0:
            self._threads.append(threading.Thread(target=self._mine_every, args=(block_s,), daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def request(self, method: str, *params: JsonValue) -> JsonValue:
        """The same without HTTP.  Raises RpcError."""
        with self._using_evm:
            return self._evm.request(method, params)

    def listen_here_too(self) -> None:
        """At the same url in the network namespace that the calling thread is in.  Raises OSError."""
        server = _Server((HOST, self._port), self)
        thread = threading.Thread(target=server.serve_forever, args=(0.5,), daemon=True)
        self._servers.append(server)
        self._threads.append(thread)
        thread.start()

    def go_away(self) -> None:
        """Out of reach, while blocks are mined: every connection, old or new, is closed without an answer."""
        self.is_away = True
        for server in self._servers:
            server.hang_up()

    def come_back(self) -> None:
        self.is_away = False

    def serve_forever(self) -> None:
        """Until `close` in another thread, or KeyboardInterrupt."""
        self._closing.wait()

    def close(self) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def answer(self, body: bytes) -> bytes:
        """A JSON-RPC request or batch, and what answers it."""
        try:
            request = bounded_json.loads(body)
        except ValueError:
            return _encoded(_error(None, RpcError(PARSE_ERROR, "not JSON")))
        if not isinstance(request, list):
            return _encoded(self._answer_one(request))
        if not 0 < len(request) <= BATCH_MAX:
            return _encoded(_error(None, RpcError(INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests")))
        return _encoded([self._answer_one(item) for item in request])

    def _answer_one(self, request: JsonValue) -> JsonValue:
        if not isinstance(request, dict):
            return _error(None, RpcError(INVALID_REQUEST, "expected an object"))
        request_id = request.get("id")
        if not isinstance(request_id, (str, int, float, type(None))):
            request_id = None
        method, params = request.get("method"), request.get("params", [])
        if not isinstance(method, str) or not isinstance(params, list):
            return _error(request_id, RpcError(INVALID_REQUEST, "expected a method and an array of params"))
        try:
            return {"jsonrpc": "2.0", "id": request_id, "result": self.request(method, *params)}
        except RpcError as error:
            return _error(request_id, error)

    def _mine_every(self, block_s: float) -> None:
        while not self._closing.wait(block_s):
            self.request("evm_mine")


@contextmanager
def devchain(port: int = 0, block_s: float = BLOCK_S) -> Iterator[DevChain]:
    chain = DevChain(port, block_s)
    try:
        yield chain
    finally:
        chain.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], chain: DevChain) -> None:
        self.chain = chain
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        super().__init__(address, _Connection)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            self._open.add(request)
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that goes away mid-answer is no news
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    # one packet per answer: unbuffered writes and Nagle's algorithm together cost 40 ms a call
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(411, "Content-Length required")
        elif len(length) > 9 or int(length) > REQUEST_BYTES_MAX:
            self._refuse(413, f"at most {REQUEST_BYTES_MAX} bytes")
        elif "Origin" in self.headers:
            # ATTACK: a web page in the developer's browser that sends transactions from the unlocked accounts
            self._refuse(403, "not for browsers")
        else:
            body = self.rfile.read(int(length))
            chain = self.server.chain
            if len(body) < int(length) or chain.is_closing or chain.is_away:
                self.close_connection = True
                return
            self._reply(200, chain.answer(body), "application/json")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _refuse(self, status: int, message: str) -> None:
        # what is left of the request is not read, so nothing may follow it
        self.close_connection = True
        self._reply(status, message.encode() + b"\n", "text/plain")

    def _reply(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _error(request_id: JsonValue, error: RpcError) -> JsonValue:
    details = {"code": error.code, "message": error.message}
    if error.data is not None:
        details["data"] = error.data
    return {"jsonrpc": "2.0", "id": request_id, "error": details}


def _encoded(answer: JsonValue) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m p2pdfl.chain.devchain`: prints the URL once it listens."""
    parser = argparse.ArgumentParser(prog="p2pdfl.chain.devchain", description="An Ethereum chain in memory.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--block-seconds", type=float, default=BLOCK_S, help="between empty blocks, 0 for none")
    options = parser.parse_args(arguments)
    try:
        with devchain(options.port, options.block_seconds) as chain:
            print(chain.url, flush=True)
            chain.serve_forever()
    except OSError as error:
        print(f"port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
