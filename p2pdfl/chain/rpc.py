"""JSON-RPC to an Ethereum node over HTTP, as a web3 provider, with this package's errors.

Why not web3's own HTTPProvider: it does not retry a refused connection (it lists the builtin ConnectionError, which
`requests` does not raise), reads answers of any size, and lets `requests` errors through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from eth_abi.exceptions import DecodingError
from requests.adapters import HTTPAdapter
from web3.exceptions import ContractLogicError, Web3Exception, Web3RPCError
from web3.providers.base import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from p2pdfl.base import bounded_json

CONNECT_S = 3.0
ANSWER_S = 15.0
"""From request to the answer's last byte."""
ATTEMPTS = 4
BACKOFF_S = 0.2
"""Before the second attempt; doubles."""
ANSWER_BYTES_MAX = 16 << 20
CONNECTIONS_MAX = 8


class ChainError(Exception):
    """The chain did not do what was asked; the subclass says why."""


class ChainUnreachable(ChainError):
    """No usable answer from the node.  What was sent may have arrived all the same."""


class BadAnswer(ChainUnreachable):
    """The node answered something that is not what the method returns."""


class Refused(ChainError):
    """The node answered with an error, as for lack of funds."""


class Reverted(ChainError):
    """The contract refused; `reason` is its fixed string."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"reverted: {reason}")
        self.reason = reason


class HttpRpc(JSONBaseProvider):
    # a contract's answer must not make this process fetch an address of its choosing (EIP-3668)
    global_ccip_read_enabled = False

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._session = requests.Session()
        self._session.headers["Content-Type"] = "application/json"
        # a proxy from the environment is no way to a node on this machine
        self._session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1")
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS_MAX))

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        body = self.encode_rpc_request(method, params)
        # a raw transaction is the same one however often it arrives; one that the node signs is another each time
        attempts = 1 if method == "eth_sendTransaction" else ATTEMPTS
        for attempt in range(attempts):
            try:
                answer = self._post(body)
                break
            except (requests.ConnectionError, requests.Timeout, requests.HTTPError) as error:
                if attempt == attempts - 1:
                    raise ChainUnreachable(f"{self.url}: {_cause(error)}") from error
                time.sleep(BACKOFF_S * 2**attempt)
            except requests.RequestException as error:
                raise ChainUnreachable(f"{self.url}: {_cause(error)}") from error
        try:
            decoded = bounded_json.loads(answer)
        except ValueError as error:
            raise BadAnswer(f"{self.url}: not JSON: {error}"[:300]) from error
        if not isinstance(decoded, dict) or ("result" in decoded) == ("error" in decoded):
            raise BadAnswer(f"{self.url}: not a JSON-RPC answer")
        return cast("RPCResponse", decoded)

    def is_connected(self, show_traceback: bool = False) -> bool:
        try:
            self.make_request(RPCEndpoint("eth_chainId"), [])
        except ChainUnreachable:
            return False
        return True

    def close(self) -> None:
        self._session.close()

    def _post(self, body: bytes) -> bytes:
        deadline = time.monotonic() + ANSWER_S
        answer = bytearray()
        with self._session.post(
            self.url, data=body, timeout=(CONNECT_S, ANSWER_S), stream=True, allow_redirects=False
        ) as response:
            response.raise_for_status()
            for chunk in response.iter_content(64 << 10):
                answer += chunk
                if len(answer) > ANSWER_BYTES_MAX:
                    raise BadAnswer(f"{self.url}: answer over {ANSWER_BYTES_MAX} bytes")
                if time.monotonic() > deadline:
                    raise requests.Timeout(f"no complete answer in {ANSWER_S:.0f} s")
        return bytes(answer)


@contextmanager
def usable_answer() -> Iterator[None]:
    """Around calls into web3 only: its many exceptions as this package's few."""
    try:
        yield
    except ContractLogicError as error:
        raise Reverted(_reason(error)) from error
    except Web3RPCError as error:
        raise Refused(rpc_message(error)) from error
    except (Web3Exception, DecodingError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # web3 formats whatever came; what breaks in there is an answer of the wrong shape
        raise BadAnswer(f"{type(error).__name__}: {error}"[:300]) from error


def rpc_message(error: Web3RPCError) -> str:
    """The node's own words."""
    response = error.rpc_response
    details = response.get("error") if isinstance(response, dict) else None
    message = details.get("message") if isinstance(details, dict) else None
    return str(message or error)[:300]


def _reason(error: ContractLogicError) -> str:
    message = str(error.message or "")[:300]
    return message.removeprefix("execution reverted").removeprefix(":").strip() or "no reason given"


def _cause(error: Exception) -> str:
    """The innermost error, which names what happened; requests' own text is mostly object addresses."""
    while True:
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            return f"{type(error).__name__}: {error}"[:200]
        error = inner
