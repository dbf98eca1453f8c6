"""A chain with forks: blocks on top may be replaced, up to the confirmation depth.  Peers read confirmed blocks only,
each after a delay of its own, so no reorganization may ever show in what they see.

Of the contract, `Anchors` is what takes an epoch's last head: the first valid one in order wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from p2pdfl.base.codec import body_digest
from p2pdfl.base.params import quorum
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Certificate, Close, Digest, Envelope, Epoch, Kind, Registration
from p2pdfl.crypto.envelope import BadSignature, Domain, head_digest, list_hash, recover
from p2pdfl.protocol.checkpoint import Anchored, epochs_of
from p2pdfl.protocol.events import ChainSeen, SubmitAnchor

Change = Callable[[tuple[Registration, ...]], tuple[Registration, ...]]

Transaction = Change | SubmitAnchor


@dataclass(frozen=True, kw_only=True)
class _Block:
    block: Digest
    transactions: tuple[Transaction, ...]


@dataclass(kw_only=True)
class Anchors:
    """As `anchor` of the contract: in order, each epoch once, by anyone."""

    task: Digest
    domain: Domain
    lists: list[Digest]
    """[epoch]: list hashes, the last one that of the epoch which is next."""
    taken: list[SubmitAnchor] = field(default_factory=list)
    refused_count: int = 0

    def take(self, anchor: SubmitAnchor) -> bool:
        if not self._is_valid(anchor):
            self.refused_count += 1
            return False
        self.taken.append(anchor)
        self.lists.append(list_hash(anchor.next_members))
        return True

    def _is_valid(self, anchor: SubmitAnchor) -> bool:
        head = anchor.head
        if head.task != self.task or head.epoch != len(self.taken) or list_hash(anchor.members) != self.lists[-1]:
            return False
        if anchor.next_members and list_hash(anchor.next_members) != head.next_members:
            return False
        return self._count_signers(anchor.certificate, head_digest(head), anchor.members) >= quorum(len(anchor.members))

    def _count_signers(self, certificate: Certificate, head: Digest, members: tuple[Address, ...]) -> int:
        envelope = Envelope(
            task=self.task,
            epoch=certificate.epoch,
            round=certificate.round,
            view=certificate.view,
            kind=Kind.CLOSE,
            body=body_digest(Close(head=head)),
        )
        signers: set[Address] = set()
        for ballot in certificate.ballots:
            try:
                signers.add(recover(self.domain, envelope, ballot.signature))
            except BadSignature:
                continue
        return len(signers & set(members))


@dataclass(kw_only=True)
class Chain:
    confirmed: list[ChainSeen]
    """Oldest first.  Append-only: this is what peers have acted on."""
    anchors: Anchors
    """As of the last confirmed block."""
    confirmations: int = 3
    _tip: list[_Block] = field(default_factory=list)
    _waiting: list[Transaction] = field(default_factory=list)
    """Transactions that no block has, after a reorganization also those of the replaced blocks."""
    _salt: int = 0

    def submit(self, transaction: Transaction) -> None:
        self._waiting.append(transaction)

    def mine(self) -> ChainSeen | None:
        """A block on top; returns the one that it confirms."""
        self._salt += 1
        parent = self._tip[-1].block if self._tip else self.confirmed[-1].block
        block = sha256(b"block" + parent + self._salt.to_bytes(8, "big")).digest()
        self._tip.append(_Block(block=block, transactions=tuple(self._waiting)))
        self._waiting.clear()
        if len(self._tip) <= self.confirmations:
            return None
        last, oldest = self.confirmed[-1], self._tip.pop(0)
        registrations = last.registrations
        for transaction in oldest.transactions:
            if not isinstance(transaction, SubmitAnchor):
                registrations = transaction(registrations)
            else:
                self.anchors.take(transaction)
        seen = ChainSeen(number=last.number + 1, block=oldest.block, registrations=registrations)
        self.confirmed.append(seen)
        return seen

    def anchored(self, task: Task, epoch: Epoch) -> Anchored:
        return Anchored(
            epoch=epoch,
            head=self.anchors.taken[epoch].certificate.head,
            lists={number: self.anchors.lists[number] for number in epochs_of(task, epoch)},
            registrations=self.confirmed[-1].registrations,
        )

    def reorganize(self, depth: int) -> None:
        """The last `depth` blocks are gone, those that replace them come empty, and the transactions wait again."""
        depth = min(depth, len(self._tip))
        dropped = self._tip[len(self._tip) - depth :]
        del self._tip[len(self._tip) - depth :]
        again = [transaction for block in dropped for transaction in block.transactions]
        waiting, self._waiting = self._waiting, []
        for _ in range(depth):
            assert self.mine() is None, "no deeper than the confirmations"
        self._waiting = again + waiting
