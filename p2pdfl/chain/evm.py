"""An Ethereum chain in memory, spoken to in JSON-RPC's methods: py-evm, one transaction per block.

It stands on eth-tester's py-evm backend and leaves out eth-tester's front: that looks a transaction up by walking back
from the head, so a receipt costs O(chain) and `eth_getLogs` O(range x chain), and it mines transactions signed for
other chains.  Here what a block brought is put into its JSON form once, when it is mined.

Not thread-safe: `devchain` holds one lock around `request`.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockHeaderAPI, ComputationAPI, SignedTransactionAPI, StateAPI
from eth.constants import CREATE_CONTRACT_ADDRESS
from eth.exceptions import PyEVMError, Revert, UnrecognizedTransactionType
from eth.vm.spoof import SpoofTransaction
from eth_keys.exceptions import BadSignature
from eth_tester.backends.pyevm import PyEVMBackend
from eth_tester.backends.pyevm.serializers import serialize_block, serialize_transaction, serialize_transaction_receipt
from eth_typing import Address
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

JsonValue = Any
Hex = str

PRIORITY_FEE_WEI = 10**9
TRANSACTION_BYTES_MAX = 128 << 10
"""As geth's pool."""
LOGS_MAX = 10_000
"""In one answer."""
MINE_BLOCKS_MAX = 10_000
"""In one request."""

INVALID_PARAMS = -32602
METHOD_NOT_FOUND = -32601
SERVER_ERROR = -32000
EXECUTION_REVERTED = 3


class RpcError(Exception):
    """What JSON-RPC answers under `error`."""

    def __init__(self, code: int, message: str, data: Hex | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    header: BlockHeaderAPI
    block: dict[str, JsonValue]
    transactions: tuple[dict[str, JsonValue], ...]
    receipts: tuple[dict[str, JsonValue], ...]


class Evm:
    def __init__(self) -> None:
        self._backend = PyEVMBackend()
        self._blocks: list[_Mined] = []
        self._number_of_block: dict[bytes, int] = {}
        self._place_of_transaction: dict[bytes, tuple[int, int]] = {}
        self._snapshots: dict[int, int] = {}
        self._snapshot_ids = itertools.count(1)
        self._index(self._backend.chain.get_canonical_block_by_number(0))
        self._methods: dict[str, Callable[..., JsonValue]] = {
            "web3_clientVersion": lambda: "p2pdfl-devchain/py-evm",
            "net_version": lambda: str(self.chain_id),
            "eth_chainId": lambda: _hex(self.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": lambda: [_hex(account) for account in self._backend.get_accounts()],
            "eth_blockNumber": lambda: _hex(self.number),
            "eth_gasPrice": lambda: _hex(self._base_fee() + PRIORITY_FEE_WEI),
            "eth_maxPriorityFeePerGas": lambda: _hex(PRIORITY_FEE_WEI),
            "eth_getBalance": self._get_balance,
            "eth_getTransactionCount": self._get_transaction_count,
            "eth_getCode": self._get_code,
            "eth_getStorageAt": self._get_storage,
            "eth_getBlockByNumber": self._get_block_by_number,
            "eth_getBlockByHash": self._get_block_by_hash,
            "eth_getTransactionByHash": self._get_transaction,
            "eth_getTransactionReceipt": self._get_receipt,
            "eth_getLogs": self._get_logs,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate_gas,
            "eth_sendTransaction": self._send_transaction,
            "eth_sendRawTransaction": self._send_raw_transaction,
            "evm_mine": self._mine_blocks,
            "evm_snapshot": self._snapshot,
            "evm_revert": self._revert,
        }

    @property
    def chain_id(self) -> int:
        return int(self._backend.chain.chain_id)

    @property
    def number(self) -> int:
        return len(self._blocks) - 1

    def request(self, method: str, params: Sequence[JsonValue]) -> JsonValue:
        """One JSON-RPC call.  Raises RpcError."""
        if method not in self._methods:
            raise RpcError(METHOD_NOT_FOUND, f"the method {method[:64]} does not exist")
        call = self._methods[method]
        try:
            inspect.signature(call).bind(*params)
        except TypeError:
            raise RpcError(INVALID_PARAMS, "wrong number of parameters") from None
        return call(*params)

    def mine(self) -> None:
        (block_hash,) = self._backend.mine_blocks(1)
        self._index(self._backend.chain.get_block_by_hash(block_hash))

    # --- blocks and transactions ---------------------------------------------------------------------------------

    def _index(self, block: Any) -> None:
        chain = self._backend.chain
        receipts = block.get_receipts(chain.chaindb)
        transactions = []
        mined_receipts = []
        for index, transaction in enumerate(block.transactions):
            self._place_of_transaction[transaction.hash] = (block.number, index)
            transactions.append(_json(serialize_transaction(block, transaction, index, False)))
            receipt = serialize_transaction_receipt(block, receipts, transaction, index, False, chain.get_vm())
            mined_receipts.append(_json(receipt) | {"logsBloom": _hex(receipts[index].bloom.to_bytes(256, "big"))})
        self._number_of_block[block.hash] = block.number
        self._blocks.append(
            _Mined(
                header=block.header,
                block=_json(
                    serialize_block(block, False, False) | {"logs_bloom": block.header.bloom.to_bytes(256, "big")}
                ),
                transactions=tuple(transactions),
                receipts=tuple(mined_receipts),
            )
        )

    def _at(self, block: JsonValue) -> _Mined:
        if isinstance(block, dict):
            block = block.get("blockHash", block.get("blockNumber"))
        if block in ("latest", "pending", "safe", "finalized"):
            return self._blocks[-1]
        if block == "earliest":
            return self._blocks[0]
        if isinstance(block, str) and len(block) == 66:
            number = self._number_of_block.get(_data(block, "block hash"), -1)
        else:
            number = _quantity(block, "block number")
        if not 0 <= number <= self.number:
            raise RpcError(SERVER_ERROR, "block not found")
        return self._blocks[number]

    def _get_block_by_number(self, block: JsonValue, full: JsonValue = False) -> JsonValue:
        try:
            return _block_json(self._at(block), full)
        except RpcError as error:
            if error.code == SERVER_ERROR:
                return None
            raise

    def _get_block_by_hash(self, block_hash: JsonValue, full: JsonValue = False) -> JsonValue:
        number = self._number_of_block.get(_data(block_hash, "block hash", 32))
        return None if number is None else _block_json(self._blocks[number], full)

    def _get_transaction(self, transaction_hash: JsonValue) -> JsonValue:
        place = self._place_of_transaction.get(_data(transaction_hash, "transaction hash", 32))
        return None if place is None else self._blocks[place[0]].transactions[place[1]]

    def _get_receipt(self, transaction_hash: JsonValue) -> JsonValue:
        place = self._place_of_transaction.get(_data(transaction_hash, "transaction hash", 32))
        return None if place is None else self._blocks[place[0]].receipts[place[1]]

    def _get_logs(self, wanted: JsonValue) -> JsonValue:
        if not isinstance(wanted, dict):
            raise RpcError(INVALID_PARAMS, "filter: expected an object")
        if "blockHash" in wanted:
            blocks = [self._at(wanted["blockHash"])]
        else:
            first = _number_of(self._at(wanted.get("fromBlock") or "latest"))
            last_tag = wanted.get("toBlock") or "latest"
            # a range may reach beyond the head
            is_beyond = isinstance(last_tag, str) and last_tag.startswith("0x") and len(last_tag) < 66
            last = min(_quantity(last_tag, "toBlock"), self.number) if is_beyond else _number_of(self._at(last_tag))
            blocks = self._blocks[first : last + 1]
        addresses = _alternatives(wanted.get("address"), "address", 20)
        topics = wanted.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise RpcError(INVALID_PARAMS, "topics: expected an array of at most 4")
        topic_sets = [_alternatives(topic, "topic", 32) for topic in topics]
        found = [
            log
            for mined in blocks
            for receipt in mined.receipts
            for log in receipt["logs"]
            if (addresses is None or log["address"] in addresses) and _has_topics(log["topics"], topic_sets)
        ]
        if len(found) > LOGS_MAX:
            raise RpcError(SERVER_ERROR, f"more than {LOGS_MAX} logs; ask for a narrower range")
        return found

    # --- accounts ------------------------------------------------------------------------------------------------

    def _state(self, block: JsonValue) -> StateAPI:
        state: StateAPI = self._backend.chain.get_vm(self._at(block).header).state
        return state

    def _get_balance(self, account: JsonValue, block: JsonValue = "latest") -> Hex:
        return _hex(self._state(block).get_balance(_address(account)))

    def _get_transaction_count(self, account: JsonValue, block: JsonValue = "latest") -> Hex:
        return _hex(self._state(block).get_nonce(_address(account)))

    def _get_code(self, account: JsonValue, block: JsonValue = "latest") -> Hex:
        return _hex(self._state(block).get_code(_address(account)))

    def _get_storage(self, account: JsonValue, slot: JsonValue, block: JsonValue = "latest") -> Hex:
        word = self._state(block).get_storage(_address(account), _quantity(slot, "slot"))
        return _hex(int(word).to_bytes(32, "big"))

    def _base_fee(self) -> int:
        """Of the next block, wei per gas."""
        return int(self._backend.chain.header.base_fee_per_gas)

    # --- execution -----------------------------------------------------------------------------------------------

    def _call(self, transaction: JsonValue, block: JsonValue = "latest") -> Hex:
        return _hex(self._execute(transaction, block, gas=None)[0].output)

    def _estimate_gas(self, transaction: JsonValue, block: JsonValue = "latest") -> Hex:
        # One run at the block's limit says what is used; a call keeps back 1/64 of its gas (EIP-150), and what a refund
        # pays back must be there first, hence the margin; the second run proves the estimate.
        computation, intrinsic_gas = self._execute(transaction, block, gas=None)
        used = intrinsic_gas + int(computation.get_gas_used())
        estimate = used + used // 63 + 2_300
        try:
            self._execute(transaction, block, gas=estimate)
        except RpcError:
            estimate = 2 * estimate
            self._execute(transaction, block, gas=estimate)
        return _hex(estimate)

    def _execute(self, transaction: JsonValue, block: JsonValue, gas: int | None) -> tuple[ComputationAPI, int]:
        """Run and forget.  Returns the computation and the intrinsic gas; raises RpcError if it fails."""
        if not isinstance(transaction, dict):
            raise RpcError(INVALID_PARAMS, "transaction: expected an object")
        header = self._at(block).header
        sender = _data(transaction.get("from") or "0x" + "00" * 20, "from", 20)
        gas_max = int(header.gas_limit)
        with self._backend.chain.get_vm(header).in_costless_state() as state:
            unsigned = self._backend.chain.create_unsigned_transaction(
                nonce=state.get_nonce(sender),
                gas_price=0,
                gas=gas or min(_quantity(transaction.get("gas") or _hex(gas_max), "gas"), gas_max),
                to=_to(transaction),
                value=_quantity(transaction.get("value") or "0x0", "value"),
                data=_call_data(transaction),
            )
            try:
                computation = state.costless_execute_transaction(SpoofTransaction(unsigned, from_=sender))
            except (ValidationError, PyEVMError) as error:
                raise RpcError(SERVER_ERROR, str(error)) from error
        if computation.is_error:
            raise _execution_error(computation.error)
        return computation, int(unsigned.intrinsic_gas)

    def _send_transaction(self, transaction: JsonValue) -> Hex:
        """From one of the prefunded accounts, which are unlocked."""
        if not isinstance(transaction, dict):
            raise RpcError(INVALID_PARAMS, "transaction: expected an object")
        sender = _data(transaction.get("from"), "from", 20)
        key = next((key for key in self._backend.account_keys if key.public_key.to_canonical_address() == sender), None)
        if key is None:
            raise RpcError(SERVER_ERROR, "no unlocked account with this address")
        gas = transaction.get("gas") or self._estimate_gas(transaction)
        unsigned = self._backend.chain.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=_quantity(transaction.get("nonce") or self._get_transaction_count(_hex(sender)), "nonce"),
            max_priority_fee_per_gas=PRIORITY_FEE_WEI,
            max_fee_per_gas=2 * self._base_fee() + PRIORITY_FEE_WEI,
            gas=_quantity(gas, "gas"),
            to=_to(transaction),
            value=_quantity(transaction.get("value") or "0x0", "value"),
            data=_call_data(transaction),
            access_list=(),
        )
        return self._include(unsigned.as_signed_transaction(key))

    def _send_raw_transaction(self, raw: JsonValue) -> Hex:
        encoded = _data(raw, "transaction")
        if len(encoded) > TRANSACTION_BYTES_MAX:
            raise RpcError(SERVER_ERROR, "oversized data")
        try:
            transaction = self._backend.chain.get_transaction_builder().decode(encoded)
            transaction.check_signature_validity()
        except _UNDECODABLE as error:
            raise RpcError(SERVER_ERROR, "not a signed transaction") from error
        if transaction.chain_id != self.chain_id:
            # ATTACK: a transaction of another chain, replayed here; py-evm's own apply does not look
            raise RpcError(SERVER_ERROR, f"invalid chain id: this is {self.chain_id}")
        return self._include(transaction)

    def _include(self, transaction: SignedTransactionAPI) -> Hex:
        if transaction.hash in self._place_of_transaction:
            raise RpcError(SERVER_ERROR, "already known")
        nonce = self._state("latest").get_nonce(transaction.sender)
        if transaction.nonce != nonce:
            # no pool: a transaction is mined at once or refused
            relation = "low" if transaction.nonce < nonce else "high"
            raise RpcError(SERVER_ERROR, f"nonce too {relation}: next is {nonce}")
        try:
            self._backend.chain.apply_transaction(transaction)
        except (ValidationError, PyEVMError) as error:
            raise RpcError(SERVER_ERROR, str(error)) from error
        self.mine()
        return _hex(transaction.hash)

    # --- development ---------------------------------------------------------------------------------------------

    def _mine_blocks(self, count: JsonValue = 1) -> Hex:
        number = count if isinstance(count, int) else _quantity(count, "block count")
        if not 0 <= number <= MINE_BLOCKS_MAX:
            raise RpcError(INVALID_PARAMS, f"block count: at most {MINE_BLOCKS_MAX}")
        for _ in range(number):
            self.mine()
        return "0x0"

    def _snapshot(self) -> Hex:
        snapshot_id = next(self._snapshot_ids)
        self._snapshots[snapshot_id] = self.number
        return _hex(snapshot_id)

    def _revert(self, snapshot_id: JsonValue) -> bool:
        number = self._snapshots.pop(_quantity(snapshot_id, "snapshot"), None)
        if number is None or number > self.number:
            return False
        self._backend.revert_to_snapshot(self._blocks[number].header.hash)
        for mined in self._blocks[number + 1 :]:
            del self._number_of_block[mined.header.hash]
        del self._blocks[number + 1 :]
        self._place_of_transaction = {
            transaction: place for transaction, place in self._place_of_transaction.items() if place[0] <= number
        }
        return True


_UNDECODABLE = (
    RLPException,
    ValidationError,
    BadSignature,
    UnrecognizedTransactionType,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
)
"""What py-evm's transaction decoders raise on bytes that are no transaction."""


def _execution_error(error: Exception) -> RpcError:
    if not isinstance(error, Revert):
        return RpcError(SERVER_ERROR, f"{type(error).__name__}: {error}"[:200])
    output = error.args[0] if error.args and isinstance(error.args[0], bytes) else b""
    reason = ""
    if output[:4] == b"\x08\xc3\x79\xa0" and len(output) >= 68:  # Error(string)
        length = int.from_bytes(output[36:68], "big")
        reason = ": " + output[68 : 68 + min(length, 1_024)].decode("utf-8", "replace")
    return RpcError(EXECUTION_REVERTED, "execution reverted" + reason, _hex(output))


# --- JSON-RPC's forms --------------------------------------------------------------------------------------------


def _hex(value: int | bytes) -> Hex:
    return hex(value) if isinstance(value, int) else "0x" + bytes(value).hex()


def _quantity(value: JsonValue, name: str) -> int:
    if not isinstance(value, str) or not value.startswith("0x") or not 3 <= len(value) <= 66:
        raise RpcError(INVALID_PARAMS, f"{name}: expected a 0x quantity")
    try:
        return int(value[2:], 16)
    except ValueError as error:
        raise RpcError(INVALID_PARAMS, f"{name}: expected a 0x quantity") from error


def _data(value: JsonValue, name: str, length: int | None = None) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise RpcError(INVALID_PARAMS, f"{name}: expected 0x data")
    try:
        data = bytes.fromhex(value[2:])
    except ValueError as error:
        raise RpcError(INVALID_PARAMS, f"{name}: expected 0x data") from error
    if length is not None and len(data) != length:
        raise RpcError(INVALID_PARAMS, f"{name}: expected {length} bytes")
    return data


def _address(value: JsonValue) -> Address:
    return Address(_data(value, "address", 20))


def _to(transaction: dict[str, JsonValue]) -> bytes:
    to = transaction.get("to")
    return CREATE_CONTRACT_ADDRESS if to in (None, "", "0x") else _data(to, "to", 20)


def _call_data(transaction: dict[str, JsonValue]) -> bytes:
    return _data(transaction.get("input") or transaction.get("data") or "0x", "data")


def _alternatives(value: JsonValue, name: str, length: int) -> set[Hex] | None:
    """A filter's null (anything), one value or several, in the form that logs have here."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if len(values) > 1_000:
        raise RpcError(INVALID_PARAMS, f"{name}: too many alternatives")
    return {_hex(_data(item, name, length)) for item in values}


def _has_topics(topics: list[Hex], wanted: list[set[Hex] | None]) -> bool:
    return len(topics) >= len(wanted) and all(
        allowed is None or topic in allowed for topic, allowed in zip(topics, wanted, strict=False)
    )


def _number_of(mined: _Mined) -> int:
    return int(mined.header.block_number)


def _block_json(mined: _Mined, full: JsonValue) -> dict[str, JsonValue]:
    return mined.block | {"transactions": list(mined.transactions)} if full is True else mined.block


_RENAMED = {"coinbase": "miner", "sha3_uncles": "sha3Uncles", "prev_randao": "prevRandao"}


def _json(value: Any) -> Any:
    """The serializers' snake_case dictionaries in JSON-RPC's form."""
    if isinstance(value, dict):
        converted = {_camel(key): _json(item) for key, item in value.items()}
        if converted.get("to") == "0x":
            converted["to"] = None
        if "nonce" in converted and "gas" in converted:
            converted["input"] = converted.pop("data")
        return converted
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    return _hex(value)


def _camel(key: str) -> str:
    if key in _RENAMED:
        return _RENAMED[key]
    first, *rest = key.split("_")
    return first + "".join(part.capitalize() for part in rest)
