"""One key's transactions, one at a time, each until it is mined.

The nonce comes from the chain each time, so nothing is kept that could go stale; the lock keeps a second thread from
taking the same nonce.  A transaction's hash is known before it leaves, so after a lost answer its receipt tells whether
it arrived.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, cast

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_canonical_address, to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import TransactionNotFound, Web3RPCError
from web3.types import TxParams, Wei

from p2pdfl.base.types import Address, Digest
from p2pdfl.chain.rpc import BadAnswer, ChainUnreachable, Refused, Reverted, rpc_message, usable_answer

GAS_MARGIN_PERCENT = 20
"""On top of the estimate: it was exact when measured, but state may change before the transaction is mined."""
FEE_BUMP_PERCENT = 25
"""What a replacement of a stuck transaction offers more; nodes ask for 10."""
ATTEMPTS = 5
"""Nonces tried for one transaction."""
RECEIPT_S = 120.0
RECEIPT_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    tx: Digest
    gas: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    receipt: Receipt
    is_success: bool
    contract: Address | None


class Sender:
    def __init__(self, web3: Web3, secret: bytes, chain_id: int) -> None:
        self._web3 = web3
        self._account: LocalAccount = Account.from_key(secret)
        self._chain_id = chain_id
        self._sending = threading.Lock()

    @property
    def address(self) -> Address:
        return bytes.fromhex(self._account.address[2:])

    def send(self, to: Address, data: bytes, value_wei: int = 0) -> Receipt:
        """Raises Reverted, Refused, ChainUnreachable."""
        return self._send({"to": to_checksum_address(to), "data": HexBytes(data), "value": Wei(value_wei)}).receipt

    def deploy(self, data: bytes) -> Address:
        """The new contract's address.  Raises as send does."""
        contract = self._send({"data": HexBytes(data), "value": Wei(0)}).contract
        if contract is None:
            raise BadAnswer("no contract address in the receipt of a deployment")
        return contract

    def _send(self, call: TxParams) -> _Mined:
        call["from"] = self._account.address
        bump_percent = 100
        with self._sending:
            for _ in range(ATTEMPTS):
                with usable_answer():
                    complete = self._complete(call, bump_percent)
                    signed = self._account.sign_transaction(cast("dict[str, Any]", complete))
                try:
                    with usable_answer():
                        self._submit(signed.raw_transaction)
                    mined = self._wait(signed.hash, complete["nonce"])
                except _NonceTaken:
                    # by this very transaction, if an earlier answer was lost
                    arrived = self._receipt(signed.hash)
                    if arrived is None:
                        continue
                    mined = arrived
                except _Underpriced:
                    bump_percent = bump_percent * (100 + FEE_BUMP_PERCENT) // 100
                    continue
                if not mined.is_success:
                    raise Reverted(self._reason(call, mined.receipt.block))
                return mined
        raise Refused(
            f"nonce of {self._account.address} taken {ATTEMPTS} times: does another program send with this key?"
        )

    def _complete(self, call: TxParams, bump_percent: int) -> TxParams:
        eth = self._web3.eth
        gas = int(eth.estimate_gas(call))
        priority_fee = int(eth.max_priority_fee) * bump_percent // 100
        base_fee = int(eth.get_block("latest").get("baseFeePerGas", 0))
        return call | {
            "chainId": self._chain_id,
            "nonce": eth.get_transaction_count(self._account.address, "latest"),
            "gas": gas * (100 + GAS_MARGIN_PERCENT) // 100,
            "maxPriorityFeePerGas": Wei(priority_fee),
            "maxFeePerGas": Wei(2 * base_fee * bump_percent // 100 + priority_fee),
        }

    def _submit(self, raw: bytes) -> None:
        try:
            self._web3.eth.send_raw_transaction(raw)
        except Web3RPCError as error:
            message = rpc_message(error).lower()
            if "already known" in message or "already imported" in message or "known transaction" in message:
                return
            if "nonce too" in message:
                raise _NonceTaken from error
            if "underpriced" in message:
                raise _Underpriced from error
            raise

    def _receipt(self, transaction_hash: bytes) -> _Mined | None:
        with usable_answer():
            try:
                found = self._web3.eth.get_transaction_receipt(HexBytes(transaction_hash))
            except TransactionNotFound:
                return None
            contract = found.get("contractAddress")
            return _Mined(
                receipt=Receipt(tx=bytes(transaction_hash), gas=int(found["gasUsed"]), block=int(found["blockNumber"])),
                is_success=found["status"] == 1,
                contract=None if contract is None else to_canonical_address(contract),
            )

    def _wait(self, transaction_hash: bytes, nonce: int) -> _Mined:
        deadline = time.monotonic() + RECEIPT_S
        while (mined := self._receipt(transaction_hash)) is None:
            with usable_answer():
                if int(self._web3.eth.get_transaction_count(self._account.address, "latest")) > nonce:
                    # another transaction of this key took its place: its receipt would never come
                    raise _NonceTaken
            if time.monotonic() > deadline:
                raise ChainUnreachable(f"0x{transaction_hash.hex()} not mined within {RECEIPT_S:.0f} s")
            time.sleep(RECEIPT_POLL_S)
        return mined

    def _reason(self, call: TxParams, block: int) -> str:
        """Why a mined transaction failed: run it again on the state that its block left."""
        try:
            with usable_answer():
                self._web3.eth.call(call, block)
        except Reverted as error:
            return error.reason
        except (Refused, ChainUnreachable):
            pass
        return "failed when mined"


class _NonceTaken(Exception):
    pass


class _Underpriced(Exception):
    pass
