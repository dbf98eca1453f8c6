"""A chain with forks: blocks on top may be replaced, up to the confirmation depth.  Peers read confirmed blocks only,
each after a delay of its own, so no reorganization may ever show in what they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from p2pdfl.protocol.agreement import is_certificate
from p2pdfl.protocol.checkpoint import Anchored, epochs_of
from p2pdfl.protocol.events import ChainSeen, SubmitAnchor
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.setup import Terms
from p2pdfl.types import Digest, Epoch, Registration

Change = Callable[[tuple[Registration, ...]], tuple[Registration, ...]]


@dataclass(frozen=True, kw_only=True)
class _Block:
    block: Digest
    changes: tuple[Change, ...]


@dataclass(kw_only=True)
class Chain:
    confirmed: list[ChainSeen]
    """Oldest first.  Append-only: this is what peers have acted on."""
    confirmations: int = 3
    lists: dict[Epoch, Digest] = field(default_factory=dict)
    """List hashes of the epochs installed so far."""
    anchors: dict[Epoch, Digest] = field(default_factory=dict)
    """Last heads; confirmed as soon as they are sent, which is the earliest that anybody can act on them."""
    _tip: list[_Block] = field(default_factory=list)
    _waiting: list[Change] = field(default_factory=list)
    """Transactions that no block has, after a reorganization also those of the replaced blocks."""
    _salt: int = 0

    def submit(self, change: Change) -> None:
        self._waiting.append(change)

    def mine(self) -> ChainSeen | None:
        """A block on top; returns the one that it confirms."""
        self._salt += 1
        parent = self._tip[-1].block if self._tip else self.confirmed[-1].block
        block = sha256(b"block" + parent + self._salt.to_bytes(8, "big")).digest()
        self._tip.append(_Block(block=block, changes=tuple(self._waiting)))
        self._waiting.clear()
        if len(self._tip) <= self.confirmations:
            return None
        last, oldest = self.confirmed[-1], self._tip.pop(0)
        registrations = last.registrations
        for change in oldest.changes:
            registrations = change(registrations)
        seen = ChainSeen(number=last.number + 1, block=oldest.block, registrations=registrations)
        self.confirmed.append(seen)
        return seen

    def anchor(self, sent: SubmitAnchor, members: EpochMembers, terms: Terms) -> None:
        """As the contract: in order, each epoch once, with a quorum of the list that is installed."""
        epoch = sent.head.epoch
        if epoch != len(self.anchors) or members.list_hash != self.lists[epoch]:
            return
        if is_certificate(sent.certificate, terms.domain, terms.task_id, members):
            self.anchors[epoch] = sent.certificate.head
            self.lists[epoch + 1] = sent.head.next_members

    def anchored(self, terms: Terms, epoch: Epoch) -> Anchored:
        return Anchored(
            epoch=epoch,
            head=self.anchors[epoch],
            lists={number: self.lists[number] for number in epochs_of(terms.task, epoch)},
            registrations=self.confirmed[-1].registrations,
        )

    def reorganize(self, depth: int) -> None:
        """The last `depth` blocks are gone, those that replace them come empty, and the transactions wait again."""
        depth = min(depth, len(self._tip))
        dropped = self._tip[len(self._tip) - depth :]
        del self._tip[len(self._tip) - depth :]
        again = [change for block in dropped for change in block.changes]
        waiting, self._waiting = self._waiting, []
        for _ in range(depth):
            assert self.mine() is None, "no deeper than the confirmations"
        self._waiting = again + waiting
