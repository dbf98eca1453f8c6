"""The embedded chain's JSON-RPC methods, without HTTP."""

from __future__ import annotations

import contextlib
import string
from typing import Any

import pytest
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pdfl.chain.evm import INVALID_PARAMS, METHOD_NOT_FOUND, Evm, RpcError

from .world import PEERS, World

SECRET = (1).to_bytes(32, "big")
ALICE = Account.from_key(SECRET).address
NOBODY = "0x" + "99" * 20


@pytest.fixture
def evm() -> Evm:
    return Evm()


def raw(evm: Evm, **changes: Any) -> str:
    transaction = {
        "to": NOBODY,
        "value": 5,
        "gas": 21_000,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 1,
        "nonce": 0,
        "chainId": evm.chain_id,
    }
    signed = Account.sign_transaction(transaction | changes, SECRET)
    return "0x" + bytes(signed.raw_transaction).hex()


def refusal(evm: Evm, method: str, *params: Any) -> str:
    with pytest.raises(RpcError) as caught:
        evm.request(method, params)
    return caught.value.message


def test_a_transaction_is_mined_at_once(evm: Evm) -> None:
    transaction = evm.request("eth_sendRawTransaction", [raw(evm)])
    receipt = evm.request("eth_getTransactionReceipt", [transaction])
    block = evm.request("eth_getBlockByNumber", ["latest", True])
    assert receipt["status"] == "0x1"
    assert receipt["blockHash"] == block["hash"]
    assert block["transactions"][0] == evm.request("eth_getTransactionByHash", [transaction])
    assert evm.request("eth_getBalance", [NOBODY]) == "0x5"
    assert evm.request("eth_getBalance", [NOBODY, "earliest"]) == "0x0"


def test_raw_transaction__refused__of_another_chain(evm: Evm) -> None:
    assert refusal(evm, "eth_sendRawTransaction", raw(evm, chainId=5)).startswith("invalid chain id")
    legacy = {"to": NOBODY, "value": 5, "gas": 21_000, "gasPrice": 10**10, "nonce": 0}
    for chain_id in ({}, {"chainId": 5}):
        signed = bytes(Account.sign_transaction(legacy | chain_id, SECRET).raw_transaction)
        assert refusal(evm, "eth_sendRawTransaction", "0x" + signed.hex()).startswith("invalid chain id")
    assert evm.number == 0


def test_raw_transaction__refused__twice_or_out_of_turn(evm: Evm) -> None:
    first = raw(evm)
    evm.request("eth_sendRawTransaction", [first])
    assert refusal(evm, "eth_sendRawTransaction", first) == "already known"
    assert refusal(evm, "eth_sendRawTransaction", raw(evm, value=6)) == "nonce too low: next is 1"
    assert refusal(evm, "eth_sendRawTransaction", raw(evm, nonce=2)) == "nonce too high: next is 1"


def test_raw_transaction__refused__without_funds_or_gas(evm: Evm) -> None:
    before = evm.request("eth_getBalance", [ALICE])
    refusal(evm, "eth_sendRawTransaction", raw(evm, value=10**30))
    refusal(evm, "eth_sendRawTransaction", raw(evm, gas=20_000))
    refusal(evm, "eth_sendRawTransaction", raw(evm, gas=2**63))
    assert evm.request("eth_getBalance", [ALICE]) == before
    evm.request("eth_sendRawTransaction", [raw(evm)])


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_transaction__refused__any_bytes(started: World, data: bytes) -> None:
    refusal(started.evm, "eth_sendRawTransaction", "0x" + data.hex())


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_transaction__survives__any_changed_byte(started: World, position: int, byte: int) -> None:
    signed = bytearray.fromhex(raw(started.evm, nonce=10**6)[2:])
    signed[position % len(signed)] = byte
    refusal(started.evm, "eth_sendRawTransaction", "0x" + signed.hex())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.hexdigits + "x", max_size=70),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["from", "to", "data", "value", "gas", "topics", "address", "fromBlock", "toBlock", "blockHash"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_plausible = st.sampled_from(["latest", "earliest", "pending", "0x0", "0x1", "0x", NOBODY, ALICE, "0x" + "00" * 32])


@given(
    st.sampled_from([method for method in Evm()._methods if method != "evm_mine"]),
    st.lists(_plausible | _json, max_size=4),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_any_parameters_are_answered_or_refused(started: World, method: str, params: list[Any]) -> None:
    with contextlib.suppress(RpcError):
        started.evm.request(method, params)


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("eth_coinbase", [], METHOD_NOT_FOUND),
        ("eth_getBalance", [], INVALID_PARAMS),
        ("eth_chainId", [1], INVALID_PARAMS),
        ("eth_getBalance", ["0x12"], INVALID_PARAMS),
        ("eth_getBalance", [NOBODY, 5], INVALID_PARAMS),
        ("eth_getBlockByNumber", ["0xzz"], INVALID_PARAMS),
        ("eth_getLogs", [[]], INVALID_PARAMS),
        ("eth_getLogs", [{"topics": [[["0x"]]]}], INVALID_PARAMS),
        ("eth_call", ["x"], INVALID_PARAMS),
        ("evm_mine", ["0xffffffff"], INVALID_PARAMS),
    ],
)
def test_wrong_calls_have_their_error_codes(evm: Evm, method: str, params: list[Any], code: int) -> None:
    with pytest.raises(RpcError) as caught:
        evm.request(method, params)
    assert caught.value.code == code


def test_unlocked_accounts_are_the_prefunded_ones(evm: Evm) -> None:
    transfer = {"to": NOBODY, "value": "0x1"}
    assert refusal(evm, "eth_sendTransaction", transfer | {"from": NOBODY}) == "no unlocked account with this address"
    for account in evm.request("eth_accounts", []):
        evm.request("eth_sendTransaction", [transfer | {"from": account}])


def test_what_has_not_been_mined_is_null(evm: Evm) -> None:
    unknown = "0x" + "77" * 32
    for method in ("eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getBlockByHash"):
        assert evm.request(method, [unknown]) is None
    assert evm.request("eth_getBlockByNumber", ["0x1"]) is None
    assert refusal(evm, "eth_getBalance", NOBODY, "0x1") == "block not found"


def test_logs_are_found_by_range_address_and_topic(started: World) -> None:
    def count(**wanted: Any) -> int:
        return len(started.evm.request("eth_getLogs", [wanted]))

    assert count() == 1  # the head's only: Started
    assert count(fromBlock="0x0") == 9
    assert count(fromBlock="0x0", toBlock="0xffff") == 9
    assert count(fromBlock="0x0", toBlock="earliest") == 0
    assert count(fromBlock="0x0", address=NOBODY) == 0
    assert count(fromBlock="0x0", address=[NOBODY, started.contract]) == 9
    (registered, *_) = started.evm.request("eth_getLogs", [{"fromBlock": "0x0"}])
    event, account = registered["topics"]
    assert count(fromBlock="0x0", topics=[event]) == 6
    assert count(fromBlock="0x0", topics=[None, account]) == 1
    assert count(fromBlock="0x0", topics=[[event, account]]) == 6
    assert count(fromBlock="0x0", topics=[event, None, None]) == 0
    assert count(blockHash=registered["blockHash"]) == 1


def test_state_is_seen_as_of_a_block(started: World) -> None:
    data = {"to": started.contract, "data": started._data("next_epoch", ())}
    before = started.evm.request("eth_getBlockByNumber", ["latest"])
    started.anchor(0, PEERS[:4], PEERS[:4])
    for block in (before["number"], before["hash"], {"blockHash": before["hash"]}, {"blockNumber": before["number"]}):
        assert int(started.evm.request("eth_call", [data, block]), 16) == 0
    assert int(started.evm.request("eth_call", [data, "latest"]), 16) == 1


def test_gas_estimates_suffice_and_are_close(registered: World) -> None:
    call = {
        "from": PEERS[0].address,
        "to": registered.contract,
        "data": registered._data("start", ([peer.address for peer in PEERS[:4]],)),
    }
    estimate = int(registered.evm.request("eth_estimateGas", [call]), 16)
    used = int(registered.send(PEERS[0], "start", [peer.address for peer in PEERS[:4]])["gasUsed"], 16)
    assert used <= estimate < used * 1.1


def test_revert_goes_back_to_the_snapshot(evm: Evm) -> None:
    evm.request("eth_sendRawTransaction", [raw(evm)])
    snapshot = evm.request("evm_snapshot", [])
    head = evm.request("eth_getBlockByNumber", ["latest"])
    later = evm.request("eth_sendRawTransaction", [raw(evm, nonce=1)])
    evm.request("evm_mine", ["0x3"])
    assert evm.request("evm_revert", [snapshot])
    assert evm.request("eth_getBlockByNumber", ["latest"]) == head
    assert evm.request("eth_getTransactionReceipt", [later]) is None
    assert evm.request("eth_getBalance", [NOBODY]) == "0x5"
    assert not evm.request("evm_revert", [snapshot])
    assert evm.request("eth_sendRawTransaction", [raw(evm, nonce=1)]) == later
