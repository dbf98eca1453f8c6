"""The contract on a real EVM, driven without HTTP and signed by eth_account, which shares no code with the package's
own envelopes, heads or payload encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgpack
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys.datatypes import PrivateKey
from eth_utils.crypto import keccak
from web3 import Web3

from p2pdfl.base.task import Task
from p2pdfl.chain.contract import artefact, rules
from p2pdfl.chain.evm import Evm, RpcError

TASK = Task(
    training_rounds=25,
    epoch_rounds=4,
    verdict_rounds=3,
    members_min=4,
    deposit_wei=10_000,
    verdict_slash_wei=3_000,
    equivocation_slash_wei=8_000,
    cooldown_blocks=5,
    stall_blocks=40,
    data_digest=bytes([1]) * 32,
    initial_state=bytes([2]) * 32,
    reference_replay=bytes([3]) * 32,
)
"""30 rounds in 7 epochs: 0-3, 4-7, 8-11, 12-15, 16-19, 20-23, 24-29."""

CLOSE, JUDGE = 4, 6
GUILTY, FALSE, VOID, OBJECTIVE = 1, 2, 3, 4

_CONTRACT = Web3().eth.contract(abi=artefact().abi, bytecode=artefact().bytecode)
_DOMAIN_TYPE = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]
_TYPES = {
    "Envelope": [
        {"name": "task", "type": "bytes32"},
        {"name": "epoch", "type": "uint64"},
        {"name": "round", "type": "uint64"},
        {"name": "view", "type": "uint64"},
        {"name": "kind", "type": "uint8"},
        {"name": "body", "type": "bytes32"},
    ],
    "Possession": [
        {"name": "task", "type": "bytes32"},
        {"name": "peer", "type": "address"},
        {"name": "peerId", "type": "bytes"},
    ],
}


@dataclass(frozen=True)
class Peer:
    """With one of the prefunded accounts, whose secrets are 1 to 10."""

    secret: int

    @property
    def address(self) -> str:
        return str(Account.from_key(self.secret.to_bytes(32, "big")).address)

    @property
    def peer_id(self) -> bytes:
        return b"peer-%d" % self.secret

    @property
    def pvss_secret(self) -> bytes:
        return sha256(self.peer_id).digest()

    @property
    def pvss_xy(self) -> tuple[int, int]:
        xy = PrivateKey(self.pvss_secret).public_key.to_bytes()
        return int.from_bytes(xy[:32], "big"), int.from_bytes(xy[32:], "big")


PEERS = sorted((Peer(secret) for secret in range(1, 11)), key=lambda peer: bytes.fromhex(peer.address[2:]))
"""In a list's order, so PEERS[:4] has indices 0 to 3."""


@dataclass
class World:
    evm: Evm = field(default_factory=Evm)
    task: Task = TASK
    contract: str = ""

    @property
    def task_id(self) -> bytes:
        return self.task.task_id()

    def deploy(self, task: Task = TASK) -> None:
        self.task = task
        self.contract = self.deploy_with(*rules(task))

    def deploy_with(self, *arguments: Any) -> str:
        """The contract's address."""
        data = _CONTRACT.constructor(*arguments).data_in_transaction
        address: str = self._transact({"from": PEERS[0].address, "data": data})["contractAddress"]
        return address

    # --- calling -------------------------------------------------------------------------------------------------

    def send(self, peer: Peer, function: str, *arguments: Any, value: int = 0) -> dict[str, Any]:
        """The receipt; raises RpcError with the reason if it reverts."""
        return self._transact(
            {"from": peer.address, "to": self.contract, "data": self._data(function, arguments), "value": hex(value)}
        )

    def reason(self, peer: Peer, function: str, *arguments: Any, value: int = 0) -> str | None:
        """Why the call would revert; None if it would not.  Changes nothing."""
        call = {"from": peer.address, "to": self.contract, "data": self._data(function, arguments), "value": hex(value)}
        try:
            self.evm.request("eth_call", [call, "latest"])
        except RpcError as error:
            return error.message.removeprefix("execution reverted").removeprefix(": ")
        return None

    def view(self, function: str, *arguments: Any) -> Any:
        call = {"to": self.contract, "data": self._data(function, arguments)}
        output = bytes.fromhex(self.evm.request("eth_call", [call, "latest"])[2:])
        abi: list[Any] = list(artefact().abi)
        (entry,) = (entry for entry in abi if entry.get("name") == function)
        types = [_abi_type(output_type) for output_type in entry["outputs"]]
        return Web3().codec.decode(types, output)[0]

    def mine(self, count: int = 1) -> None:
        self.evm.request("evm_mine", [hex(count)])

    def balance(self, address: str) -> int:
        return int(self.evm.request("eth_getBalance", [address]), 16)

    def logs(self, name: str) -> list[dict[str, Any]]:
        event = _CONTRACT.events[name]()
        found = self.evm.request(
            "eth_getLogs", [{"fromBlock": "0x0", "address": self.contract, "topics": [event.topic]}]
        )
        return [dict(event.process_log(_log(entry))["args"]) for entry in found]

    def _data(self, function: str, arguments: Sequence[Any]) -> str:
        return str(_CONTRACT.encode_abi(function, args=arguments))

    def _transact(self, transaction: dict[str, Any]) -> dict[str, Any]:
        self.evm.request("eth_call", [transaction])
        transaction_hash = self.evm.request("eth_sendTransaction", [transaction | {"gas": hex(20_000_000)}])
        receipt: dict[str, Any] = self.evm.request("eth_getTransactionReceipt", [transaction_hash])
        assert receipt["status"] == "0x1"
        return receipt

    # --- what peers do -------------------------------------------------------------------------------------------

    def registration(self, peer: Peer, **changes: Any) -> tuple[Any, ...]:
        """Arguments of register(), with changes before signing."""
        peer_id = changes.get("peer_id", peer.peer_id)
        x, y = changes.get("pvss_xy", peer.pvss_xy)
        message = {
            "task": changes.get("task", self.task_id),
            "peer": changes.get("address", peer.address),
            "peerId": peer_id,
        }
        secret = changes.get("pvss_secret", peer.pvss_secret)
        return (peer_id, x, y, *self.sign(secret, "Possession", message))

    def register(self, *peers: Peer) -> None:
        for peer in peers:
            self.send(peer, "register", *self.registration(peer), value=self.task.deposit_wei)

    def start(self, *peers: Peer) -> None:
        self.send(peers[0], "start", [peer.address for peer in peers])

    def envelope(self, peer: Peer, **words: Any) -> tuple[bytes, bytes]:
        """r and vs under an envelope of this task."""
        return self.sign(peer.secret.to_bytes(32, "big"), "Envelope", {"task": self.task_id, "view": 0} | words)

    def head(self, epoch: int, next_peers: Sequence[Peer], **changes: Any) -> tuple[Any, ...]:
        words = {
            "task": self.task_id,
            "epoch": epoch,
            "round": self.task.last_round_of(epoch),
            "parent": bytes([4]) * 32,
            "contents": bytes([5]) * 32,
            "state": bytes([6]) * 32,
            "next_members": list_hash(next_peers) if next_peers else bytes(32),
            "chain_block": bytes([7]) * 32,
        }
        assert changes.keys() <= words.keys()
        return tuple((words | changes).values())

    def anchoring(
        self,
        head: tuple[Any, ...],
        peers: Sequence[Peer],
        next_peers: Sequence[Peer],
        signers: Iterable[int],
        view: int = 0,
    ) -> tuple[Any, ...]:
        """Arguments of anchor(), finalized by the peers with these indices."""
        body = sha256(msgpack.packb([head_digest(head)])).digest()
        signers = sorted(signers)
        signatures = [
            self.envelope(peers[i], task=head[0], epoch=head[1], round=head[2], view=view, kind=CLOSE, body=body)
            for i in signers
        ]
        return (view, head, addresses(peers), addresses(next_peers), *counted(signers, signatures))

    def anchor(self, epoch: int, peers: Sequence[Peer], next_peers: Sequence[Peer]) -> dict[str, Any]:
        arguments = self.anchoring(self.head(epoch, next_peers), peers, next_peers, range(len(peers)))
        return self.send(peers[0], "anchor", *arguments)

    def anchor_through(self, last_epoch: int, peers: Sequence[Peer]) -> None:
        """From the next unanchored epoch on, with an unchanging list."""
        for epoch in range(self.view("next_epoch"), last_epoch + 1):
            self.anchor(epoch, peers, [] if epoch == self.task.epoch_count - 1 else peers)

    def verdict(
        self,
        peers: Sequence[Peer],
        jurors: Iterable[int],
        *,
        epoch: int = 0,
        round: int = 3,
        accused: int = 0,
        accuser: int = 1,
        audited_round: int = 1,
        outcome: int = GUILTY,
    ) -> tuple[Any, ...]:
        """Arguments of slash_by_verdict()."""
        body = sha256(msgpack.packb([accused, accuser, audited_round, outcome])).digest()
        jurors = sorted(jurors)
        view = 256 + accused if outcome == OBJECTIVE else accuser
        signatures = [
            self.envelope(peers[i], epoch=epoch, round=round, view=view, kind=JUDGE, body=body) for i in jurors
        ]
        return (
            epoch,
            round,
            accused,
            accuser,
            audited_round,
            outcome,
            addresses(peers),
            *counted(jurors, signatures),
        )

    def equivocation(
        self, peer: Peer, *, epoch: int = 0, round: int = 2, view: int = 0, kind: int = CLOSE, bodies: bytes = b"ab"
    ) -> tuple[Any, ...]:
        """Arguments of slash_by_equivocation()."""
        body_a, body_b = (bytes([body]) * 32 for body in bodies)
        signed = [
            self.envelope(peer, epoch=epoch, round=round, view=view, kind=kind, body=body) for body in (body_a, body_b)
        ]
        return (peer.address, epoch, round, view, kind, body_a, body_b, *signed[0], *signed[1])

    def sign(self, secret: bytes, primary_type: str, message: dict[str, Any]) -> tuple[bytes, bytes]:
        """r and vs (EIP-2098)."""
        typed = {
            "types": {"EIP712Domain": _DOMAIN_TYPE, primary_type: _TYPES[primary_type]},
            "primaryType": primary_type,
            "domain": {
                "name": "p2pdfl",
                "version": "1",
                "chainId": self.evm.chain_id,
                "verifyingContract": Web3.to_checksum_address(self.contract),
            },
            "message": message,
        }
        signed = Account.sign_message(encode_typed_data(full_message=typed), secret)
        return signed.r.to_bytes(32, "big"), (signed.s | (signed.v - 27) << 255).to_bytes(32, "big")


def addresses(peers: Iterable[Peer]) -> list[str]:
    return [peer.address for peer in peers]


def list_hash(peers: Iterable[Peer]) -> bytes:
    return keccak(encode(["address[]"], [addresses(peers)]))


def head_digest(head: tuple[Any, ...]) -> bytes:
    return sha256(encode(["bytes32", "uint64", "uint64"] + ["bytes32"] * 5, head)).digest()


def counted(signers: Sequence[int], signatures: Sequence[tuple[bytes, bytes]]) -> tuple[int, list[bytes], list[bytes]]:
    bitmap = sum(1 << i for i in signers)
    return bitmap, [r for r, _ in signatures], [vs for _, vs in signatures]


def replaced(arguments: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    """Arguments with some positions changed: replaced(arguments, _2=x)."""
    values = list(arguments)
    for position, value in changes.items():
        values[int(position[1:])] = value
    return tuple(values)


def _abi_type(output: dict[str, Any]) -> str:
    name: str = output["type"]
    if not name.startswith("tuple"):
        return name
    inner = ",".join(_abi_type(component) for component in output["components"])
    return f"({inner})" + name.removeprefix("tuple")


def _log(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        **entry,
        "topics": [bytes.fromhex(topic[2:]) for topic in entry["topics"]],
        "data": bytes.fromhex(entry["data"][2:]),
    }
