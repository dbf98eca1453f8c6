"""What a peer asks of the chain: one task's contract, synchronously, from worker threads.

Everything here may block for seconds and raises `rpc.ChainError`.  Views take the block to look at, so that peers who
act on the same confirmed block see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound
from web3.types import BlockIdentifier, Wei

from p2pdfl.base import params
from p2pdfl.base.task import Deployment, Task
from p2pdfl.base.types import (
    Address,
    Certificate,
    Digest,
    EquivocationProof,
    Head,
    Outcome,
    Point,
    Registration,
    Signature,
    VerdictProof,
)
from p2pdfl.chain.contract import (
    Event,
    artefact,
    event_of,
    head_words,
    registration_of,
    rules,
    signature_halves,
    signed_by,
    started_with,
)
from p2pdfl.chain.rpc import BadAnswer, ChainError, HttpRpc, usable_answer
from p2pdfl.chain.sender import Receipt, Sender
from p2pdfl.crypto import group
from p2pdfl.crypto.envelope import Domain

EVENT_BLOCKS_MAX = 1_000
"""Blocks per eth_getLogs: public nodes refuse long ranges."""


class WrongContract(ChainError):
    """At the deployment's address is something else than this task's contract."""


class Block(NamedTuple):
    number: int
    hash: Digest


def deploy(rpc: str, sender_secret: bytes, task: Task) -> Deployment:
    """A new contract for `task`, paid by the sender."""
    provider = HttpRpc(rpc)
    try:
        web3 = _web3(provider)
        with usable_answer():
            chain_id = int(web3.eth.chain_id)
            contract = web3.eth.contract(abi=artefact().abi, bytecode=artefact().bytecode)
            data = bytes(HexBytes(contract.constructor(*rules(task)).data_in_transaction))
        address = Sender(web3, sender_secret, chain_id).deploy(data)
        return Deployment(rpc=rpc, chain_id=chain_id, contract=address)
    finally:
        provider.close()


def fund(rpc: str, address: Address, wei: int) -> None:
    """Send `address` money of a development node's own unlocked account."""
    provider = HttpRpc(rpc)
    try:
        web3 = _web3(provider)
        with usable_answer():
            accounts = web3.eth.accounts
            if not accounts:
                raise ChainError(
                    f"{rpc} is no development node: send {wei / 10**18:g} ETH to 0x{address.hex()} yourself"
                )
            transaction = web3.eth.send_transaction(
                {"from": accounts[0], "to": to_checksum_address(address), "value": Wei(wei)}
            )
            web3.eth.wait_for_transaction_receipt(transaction)
    finally:
        provider.close()


class ChainClient:
    """With a secret it also sends.  Raises WrongContract at once if the deployment is not this task's."""

    def __init__(self, deployment: Deployment, task: Task, secret: bytes | None = None) -> None:
        self.domain = Domain(chain_id=deployment.chain_id, contract=deployment.contract)
        self._task = task
        self._task_id = task.task_id()
        self._provider = HttpRpc(deployment.rpc)
        self._web3 = _web3(self._provider)
        self._contract = self._web3.eth.contract(address=to_checksum_address(deployment.contract), abi=artefact().abi)
        names = [str(entry["name"]) for entry in artefact().abi if entry["type"] == "event"]
        events = [self._contract.events[name] for name in names]
        self._decoders = {bytes(HexBytes(event.topic)): event for event in events}
        self._sender = None if secret is None else Sender(self._web3, secret, deployment.chain_id)
        self._check_contract()

    def _check_contract(self) -> None:
        with usable_answer():
            chain_id = self._web3.eth.chain_id
            code = bytes(self._web3.eth.get_code(self._contract.address))
        if chain_id != self.domain.chain_id:
            raise WrongContract(f"{self._provider.url} is chain {chain_id}, the task is on {self.domain.chain_id}")
        if not code:
            raise WrongContract(f"no contract at {self._contract.address}")
        if not code.startswith(artefact().runtime):
            raise WrongContract(f"the code at {self._contract.address} is not this version's contract")
        deployed = tuple(self._view("rules"))
        if deployed != rules(self._task):
            raise WrongContract(
                f"the contract at {self._contract.address} was deployed for another task or other rules"
            )

    def close(self) -> None:
        self._provider.close()

    @property
    def address(self) -> Address:
        return self._own.address

    # --- blocks --------------------------------------------------------------------------------------------------

    def block(self, number: int | None = None) -> Block:
        """The block at a height, None for the head.  Raises ChainError if there is none yet."""
        found = self._block("latest" if number is None else number)
        if found is None:
            raise ChainError(f"the chain has no block {number}")
        return found

    def block_of(self, block_hash: Digest) -> Block | None:
        """The block with this hash if it is on the node's chain now."""
        found = self._block(HexBytes(block_hash))
        return found if found is not None and self._block(found.number) == found else None

    def confirmed_block(self) -> Block:
        """The newest block with the task's number of confirmations on top."""
        with usable_answer():
            number = int(self._web3.eth.block_number)
        return self.block(max(0, number - self._task.confirmations))

    def _block(self, block: BlockIdentifier) -> Block | None:
        with usable_answer():
            try:
                found = self._web3.eth.get_block(block)
            except BlockNotFound:
                return None
            block_hash = bytes(found["hash"])
            if len(block_hash) != 32:
                raise BadAnswer("a block hash without 32 bytes")
            return Block(int(found["number"]), block_hash)

    # --- membership ----------------------------------------------------------------------------------------------

    def register(self, peer_id: bytes, pvss_key: Point, possession: Signature) -> Receipt:
        """`possession`: the PVSS key's signature over `crypto.envelope.possession_digest`."""
        xy = group.coordinates(pvss_key)
        key = int.from_bytes(xy[:32], "big"), int.from_bytes(xy[32:], "big")
        return self._send("register", peer_id, *key, *signature_halves(possession), value_wei=self._task.deposit_wei)

    def registrations(self, block: int | Digest | None = None) -> list[Registration]:
        """All who ever registered, ascending by address; who exits or lost of its deposit shows as exiting."""
        return self._registrations(block, self._task.deposit_wei)

    def _registrations(self, block: int | Digest | None, deposit_wei: int) -> list[Registration]:
        entries = self._view("registrations", block=block)
        with usable_answer():
            found = [registration_of(entry, deposit_wei) for entry in entries]
        return sorted(found, key=lambda registration: registration.address)

    def candidates(self) -> list[Address]:
        """Whom `start` has to name, ascending: all who have not asked to leave, whatever is left of their deposits."""
        return [entry.address for entry in self._registrations(None, 0) if not entry.exiting]

    def is_started(self) -> bool:
        return bool(self._view("start_block"))

    def start_block(self) -> Block | None:
        """The block that closed the registration."""
        number = self._view("start_block")
        return self.block(number) if number else None

    def started_with(self, block: Block) -> list[Registration]:
        """The registrations that `start` found, in that block; exiting only by their own word."""
        return started_with(self.events(block.number, block.number), self._registrations(block.number - 1, 0))

    def start(self, addresses: Sequence[Address]) -> Receipt:
        """`addresses`: the `candidates`; the order is put right here."""
        return self._send("start", sorted(addresses))

    # --- anchors -------------------------------------------------------------------------------------------------

    def anchored_head(self, epoch: int, block: int | Digest | None = None) -> Digest | None:
        head = bytes(self._view("anchored_head", epoch, block=block))
        return head if any(head) else None

    def next_epoch(self, block: int | Digest | None = None) -> int:
        """The first epoch that is not anchored."""
        return int(self._view("next_epoch", block=block))

    def list_hash(self, epoch: int, block: int | Digest | None = None) -> Digest | None:
        """Of the epoch's installed member list."""
        installed = bytes(self._view("list_hash", epoch, block=block))
        return installed if any(installed) else None

    def anchor(
        self, *, head: Head, certificate: Certificate, members: Sequence[Address], next_members: Sequence[Address]
    ) -> Receipt:
        """`members`, `next_members`: the lists of the head's epoch and, unless that is the last, of the next one."""
        # the quorum is enough, and every further signature costs gas
        signatures = signed_by(certificate.ballots[: params.quorum(len(members))])
        return self._send("anchor", certificate.view, head_words(head), list(members), list(next_members), *signatures)

    # --- slashing ------------------------------------------------------------------------------------------------

    def slash_by_verdict(self, proof: VerdictProof, members: Sequence[Address]) -> Receipt:
        """`members`: the list of the entry's epoch."""
        entry = proof.entry
        return self._send(
            "slash_by_verdict",
            entry.epoch,
            entry.round,
            entry.accused,
            entry.accuser,
            entry.audited_round,
            entry.outcome,
            list(members),
            *signed_by(proof.ballots[: params.jury(len(members))]),
        )

    def slash_by_equivocation(self, proof: EquivocationProof, accused: Address) -> Receipt:
        entry = proof.entry
        return self._send(
            "slash_by_equivocation",
            to_checksum_address(accused),
            entry.epoch,
            entry.round,
            entry.view,
            entry.kind,
            entry.body_low,
            entry.body_high,
            *signature_halves(proof.signature_low),
            *signature_halves(proof.signature_high),
        )

    def is_slashed_by_verdict(
        self, proof: VerdictProof, members: Sequence[Address], block: int | Digest | None = None
    ) -> bool:
        """Whether the loser has already paid for this audited round."""
        entry = proof.entry
        loser = members[entry.accuser if entry.outcome == Outcome.FALSE else entry.accused]
        return bool(self._view("slashed_by_verdict", to_checksum_address(loser), entry.audited_round, block=block))

    def is_slashed_by_equivocation(
        self, proof: EquivocationProof, accused: Address, block: int | Digest | None = None
    ) -> bool:
        """Whether `accused` has already paid for equivocating in this round."""
        entry, address = proof.entry, to_checksum_address(accused)
        return bool(self._view("slashed_by_equivocation", address, entry.epoch, entry.round, block=block))

    # --- money ---------------------------------------------------------------------------------------------------

    def deposit_of(self, address: Address) -> int:
        return int(self._view("deposits", to_checksum_address(address)))

    def claimable_of(self, address: Address) -> int:
        return int(self._view("claimable", to_checksum_address(address)))

    def balance_of(self, address: Address) -> int:
        """Money outside the contract, wei."""
        with usable_answer():
            return int(self._web3.eth.get_balance(to_checksum_address(address)))

    def request_exit(self) -> Receipt:
        return self._send("request_exit")

    def withdraw(self) -> Receipt:
        return self._send("withdraw")

    def claim(self) -> Receipt:
        return self._send("claim")

    # --- events --------------------------------------------------------------------------------------------------

    def events(self, from_block: int, to_block: int | None = None) -> list[Event]:
        """Both ends included, None for the head; in the chain's order."""
        last = self.block().number if to_block is None else to_block
        found: list[Event] = []
        for first in range(from_block, last + 1, EVENT_BLOCKS_MAX):
            found += self._events(first, min(last, first + EVENT_BLOCKS_MAX - 1))
        return found

    def _events(self, first: int, last: int) -> list[Event]:
        with usable_answer():
            logs = self._web3.eth.get_logs({"address": self._contract.address, "fromBlock": first, "toBlock": last})
            found = []
            for log in logs:
                event = self._decoders[bytes(log["topics"][0])].process_log(log)
                found.append(
                    event_of(event["event"], dict(event["args"]), bytes(log["transactionHash"]), log["blockNumber"])
                )
            return found

    # --- calls ---------------------------------------------------------------------------------------------------

    @property
    def _own(self) -> Sender:
        if self._sender is None:
            raise ChainError("this client has no key to send with")
        return self._sender

    def _view(self, function: str, *arguments: Any, block: int | Digest | None = None) -> Any:
        identifier: BlockIdentifier = (
            "latest" if block is None else HexBytes(block) if isinstance(block, bytes) else block
        )
        with usable_answer():
            return self._contract.functions[function](*arguments).call(block_identifier=identifier)

    def _send(self, function: str, *arguments: Any, value_wei: int = 0) -> Receipt:
        data = bytes(HexBytes(self._contract.encode_abi(function, args=arguments)))
        return self._own.send(self.domain.contract, data, value_wei)


def _web3(provider: HttpRpc) -> Web3:
    # without the default middleware: names, gas prices and chain ids are given, and answers stay plain dictionaries
    return Web3(provider, middleware=[])
