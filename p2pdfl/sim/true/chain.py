"""A chain as peers ask it: one task's contract, blocks on a timer, confirmations, and all that goes wrong with a node.

A transaction is tried on the newest block, as estimating its gas does, and waits for the next; it takes the place of
one of the same key that waits, as it has the same nonce.  A reorganization replaces blocks that are not confirmed; some
of their transactions wait again, the others are gone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import trio

from p2pdfl.base.task import Task
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
from p2pdfl.chain.client import Block
from p2pdfl.chain.rpc import BadAnswer, ChainUnreachable, Refused, Reverted
from p2pdfl.chain.sender import Receipt
from p2pdfl.crypto.envelope import Domain, list_hash
from p2pdfl.protocol.events import SubmitAnchor
from p2pdfl.protocol.membership import select_members
from p2pdfl.sim.chain import Anchors
from p2pdfl.sim.true.process import Process

CHAIN_ID = 1
ANSWER_S = 0.02
"""What a question takes."""
HANG_S = 30.0
"""Until one gives up on a node that does not answer."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Of the contract, after a block."""

    registrations: tuple[Registration, ...] = ()
    start_number: int = 0
    started_with: tuple[Registration, ...] = ()
    lists: tuple[Digest, ...] = ()
    anchored: tuple[SubmitAnchor, ...] = ()
    slashed: frozenset[tuple[object, ...]] = frozenset()


Change = Callable[[State, int], State]
"""(state, number of the block that it is in) -> state.  Raises Reverted."""


@dataclass(frozen=True, kw_only=True)
class Transaction:
    sender: Address
    change: Change


@dataclass(frozen=True, kw_only=True)
class _Mined:
    block: Block
    state: State
    transactions: tuple[Transaction, ...]


@dataclass(kw_only=True)
class Faults:
    """While this says so."""

    error_chance: float = 0.0
    """That a question fails, or the answer to one that arrived is lost."""
    hang_chance: float = 0.0
    outages_s: tuple[tuple[float, float], ...] = ()
    until_s: float = 0.0


@dataclass(kw_only=True)
class Chain:
    task: Task
    domain: Domain
    rng: random.Random
    block_s: float
    faults: Faults = field(default_factory=Faults)
    on_anchored: Callable[[SubmitAnchor], None] = lambda anchor: None
    """Told once it is confirmed."""
    on_mined: Callable[[], object] = lambda: None
    """Told of every block."""
    next_block_s: float = 0.0
    dropped: int = 0
    """Transactions that a reorganization has made unheard of."""
    _blocks: list[_Mined] = field(default_factory=list)
    _pending: list[Transaction] = field(default_factory=list)
    _salt: int = 0
    _confirmed_anchors: int = 0

    def __post_init__(self) -> None:
        self._append(State(), ())

    async def mine(self) -> None:
        """For good."""
        while True:
            self.next_block_s = trio.current_time() + self.block_s
            await trio.sleep_until(self.next_block_s)
            pending, self._pending = self._pending, []
            self._append(*self._applied(self.tip.state, pending, self.tip.block.number + 1))
            self._tell_confirmed()
            self.on_mined()

    def reorganize(self, depth: int, *, again: float = 0.5) -> None:
        """No deeper than what is confirmed.  The new blocks are empty, and the next one has what is not gone.

        again: the chance of a transaction to be that."""
        depth = min(depth, self.task.confirmations, self.tip.block.number)
        dropped = self._blocks[len(self._blocks) - depth :]
        del self._blocks[len(self._blocks) - depth :]
        for _ in range(depth):
            self._append(self.tip.state, ())
        lost = [transaction for mined in dropped for transaction in mined.transactions]
        kept = [transaction for transaction in lost if self.rng.random() < again]
        self.dropped += len(lost) - len(kept)
        self._pending = kept + self._pending

    def block_count_since(self, is_so: Callable[[State], bool]) -> int:
        """The blocks, from the newest down, after which that is so."""
        return sum(is_so(mined.state) for mined in self._blocks)

    @property
    def tip(self) -> _Mined:
        return self._blocks[-1]

    @property
    def confirmed(self) -> _Mined:
        return self._blocks[max(0, len(self._blocks) - 1 - self.task.confirmations)]

    def at(self, block: int | Digest | None) -> State:
        """Raises Refused."""
        if block is None:
            return self.tip.state
        if isinstance(block, int):
            found = self._blocks[block] if block < len(self._blocks) else None
        else:
            found = next((mined for mined in self._blocks if mined.block.hash == block), None)
        if found is None:
            raise Refused("header not found")
        return found.state

    def block_of(self, block_hash: Digest) -> Block | None:
        return next((mined.block for mined in self._blocks if mined.block.hash == block_hash), None)

    def block(self, number: int) -> Block:
        return self._blocks[number].block

    def submit(self, transaction: Transaction) -> bool:
        """Whether it will do what it says when it is mined, at `next_block_s`, as far as one can tell.  Raises
        Reverted."""
        number = self.tip.block.number + 1
        transaction.change(self.tip.state, number)
        self._pending = [other for other in self._pending if other.sender != transaction.sender]
        self._pending.append(transaction)
        _, taken = self._applied(self.tip.state, self._pending, number)
        return transaction in taken

    def _applied(
        self, state: State, transactions: Sequence[Transaction], number: int
    ) -> tuple[State, tuple[Transaction, ...]]:
        """Those that revert are in no block: nobody asks what became of them."""
        taken = []
        for transaction in transactions:
            try:
                state = transaction.change(state, number)
            except Reverted:
                continue
            taken.append(transaction)
        return state, tuple(taken)

    def _append(self, state: State, transactions: tuple[Transaction, ...]) -> None:
        self._salt += 1
        parent = self._blocks[-1].block.hash if self._blocks else bytes(32)
        block_hash = sha256(b"block" + parent + self._salt.to_bytes(8, "big")).digest()
        block = Block(number=len(self._blocks), hash=block_hash)
        self._blocks.append(_Mined(block=block, state=state, transactions=transactions))

    def _tell_confirmed(self) -> None:
        anchored = self.confirmed.state.anchored
        for anchor in anchored[self._confirmed_anchors :]:
            self.on_anchored(anchor)
        self._confirmed_anchors = len(anchored)


class Client:
    """A `ports.Chain`: what one process asks, from a worker thread."""

    def __init__(self, chain: Chain, address: Address, process: Process, rng: random.Random) -> None:
        self.domain = chain.domain
        self.address = address
        self._chain = chain
        self._process = process
        self._rng = rng

    # --- views -----------------------------------------------------------------------

    def confirmed_block(self) -> Block:
        self._ask()
        return self._chain.confirmed.block

    def block_of(self, block_hash: Digest) -> Block | None:
        self._ask()
        return self._chain.block_of(block_hash)

    def balance_of(self, address: Address) -> int:
        self._ask()
        return 10 * self._chain.task.deposit_wei + 10**20

    def registrations(self, block: int | Digest | None = None) -> list[Registration]:
        return list(self._view(block).registrations)

    def candidates(self) -> list[Address]:
        return [entry.address for entry in self._view(None).registrations if not entry.exiting]

    def start_block(self) -> Block | None:
        number = self._view(None).start_number
        return self._chain.block(number) if number else None

    def started_with(self, block: Block) -> list[Registration]:
        return list(self._view(block.hash).started_with)

    def next_epoch(self, block: int | Digest | None = None) -> int:
        return len(self._view(block).anchored)

    def anchored_head(self, epoch: int, block: int | Digest | None = None) -> Digest | None:
        anchored = self._view(block).anchored
        return anchored[epoch].certificate.head if epoch < len(anchored) else None

    def list_hash(self, epoch: int, block: int | Digest | None = None) -> Digest | None:
        lists = self._view(block).lists
        return lists[epoch] if epoch < len(lists) else None

    def is_slashed_by_verdict(
        self, proof: VerdictProof, members: Sequence[Address], block: int | Digest | None = None
    ) -> bool:
        return _verdict_key(proof, members) in self._view(block).slashed

    def is_slashed_by_equivocation(
        self, proof: EquivocationProof, accused: Address, block: int | Digest | None = None
    ) -> bool:
        return _equivocation_key(proof, accused) in self._view(block).slashed

    # --- transactions ------------------------------------------------------------------

    def register(self, peer_id: bytes, pvss_key: Point, possession: Signature) -> Receipt:
        entry = Registration(address=self.address, peer_id=peer_id, pvss_key=pvss_key, exiting=False)

        def apply(state: State, number: int) -> State:
            if any(other.address == entry.address for other in state.registrations):
                raise Reverted("registered")
            found = sorted((*state.registrations, entry), key=lambda each: each.address)
            return replace(state, registrations=tuple(found))

        return self._send(apply)

    def request_exit(self) -> Receipt:
        def apply(state: State, number: int) -> State:
            return replace(state, registrations=_exiting(state.registrations, self.address))

        return self._send(apply)

    def start(self, addresses: Sequence[Address]) -> Receipt:
        task, willing = self._chain.task, sorted(addresses)

        def apply(state: State, number: int) -> State:
            found = [entry.address for entry in state.registrations if not entry.exiting]
            if state.start_number or found != willing or len(found) < task.members_min:
                raise Reverted("start")
            first = select_members(state.registrations, excluded=())
            return replace(
                state,
                start_number=number,
                started_with=state.registrations,
                lists=(list_hash(entry.address for entry in first),),
            )

        return self._send(apply)

    def anchor(
        self, *, head: Head, certificate: Certificate, members: Sequence[Address], next_members: Sequence[Address]
    ) -> Receipt:
        anchor = SubmitAnchor(
            head=head,
            certificate=certificate,
            members=tuple(members),
            next_members=tuple(next_members),
            delay_ms=0,
        )
        chain = self._chain

        def apply(state: State, number: int) -> State:
            anchors = Anchors(
                task=chain.task.task_id(), domain=chain.domain, lists=list(state.lists), taken=list(state.anchored)
            )
            if not anchors.take(anchor):
                raise Reverted("anchor")
            return replace(state, anchored=tuple(anchors.taken), lists=tuple(anchors.lists))

        return self._send(apply)

    def slash_by_verdict(self, proof: VerdictProof, members: Sequence[Address]) -> Receipt:
        return self._slash(_verdict_key(proof, members))

    def slash_by_equivocation(self, proof: EquivocationProof, accused: Address) -> Receipt:
        return self._slash(_equivocation_key(proof, accused))

    def _slash(self, key: tuple[Any, ...]) -> Receipt:
        def apply(state: State, number: int) -> State:
            if key in state.slashed:
                raise Reverted("slashed before")
            return replace(
                state,
                slashed=state.slashed | {key},
                registrations=_exiting(state.registrations, key[1]),
            )

        return self._send(apply)

    # --- the node behind it ------------------------------------------------------------

    def _view(self, block: int | Digest | None) -> State:
        self._ask()
        return self._chain.at(block)

    def _ask(self) -> None:
        """Raises ChainUnreachable."""
        self._process.step()
        self._process.spend(ANSWER_S)
        faults, now_s = self._chain.faults, trio.current_time()
        if any(from_s <= now_s < until_s for from_s, until_s in faults.outages_s):
            self._process.spend(1.0)
            raise ChainUnreachable("nobody listens")
        if now_s < faults.until_s:
            if self._rng.random() < faults.hang_chance:
                self._process.spend(HANG_S)
                raise ChainUnreachable("no answer in time")
            if self._rng.random() < faults.error_chance:
                raise BadAnswer("not JSON")

    def _send(self, change: Change) -> Receipt:
        self._ask()
        chain = self._chain
        is_success = chain.submit(Transaction(sender=self.address, change=change))
        self._process.step()
        self._process.spend(max(0.0, chain.next_block_s - trio.current_time()))
        if trio.current_time() < chain.faults.until_s and self._rng.random() < chain.faults.error_chance:
            raise ChainUnreachable("the answer is lost")
        if not is_success:
            raise Reverted("failed when mined")
        number = chain.tip.block.number + 1
        return Receipt(tx=sha256(self.address + number.to_bytes(8, "big")).digest(), gas=100_000, block=number)


def _exiting(registrations: tuple[Registration, ...], address: Address) -> tuple[Registration, ...]:
    return tuple(each.replace(exiting=True) if each.address == address else each for each in registrations)


def _verdict_key(proof: VerdictProof, members: Sequence[Address]) -> tuple[Any, ...]:
    entry = proof.entry
    loser = members[entry.accuser if entry.outcome == Outcome.FALSE else entry.accused]
    return ("verdict", loser, entry.audited_round)


def _equivocation_key(proof: EquivocationProof, accused: Address) -> tuple[Any, ...]:
    return ("equivocation", accused, proof.entry.epoch, proof.entry.round)
