"""What is fixed when a round opens: assign (DESIGN 3.1).

Pure, and the same for all who follow the rounds: `run.Run` as a member, `checkpoint` and `verify` from what others
left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import ZERO_DIGEST, Address, Commit, Digest, Epoch, MemberIndex, Round
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import list_hash
from p2pdfl.protocol.assignment import Assignment, compute_assignment
from p2pdfl.protocol.beacon import FixedDealings, dealing_context, fix_dealings
from p2pdfl.protocol.events import DealingCheck
from p2pdfl.protocol.history import ListedRound
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.sharing import Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What is fixed when a round opens; the same at every member."""

    round: Round
    epoch: EpochMembers
    parent: Digest
    parent_state: Digest
    chain_block: Digest
    beacon: Digest
    fixed: FixedDealings | None
    """None in round 0."""
    dealt_to: EpochMembers
    """Who will hold the shares of this round's dealings."""
    assignment: Assignment
    is_training_round: bool
    banned: frozenset[Address]
    present: frozenset[MemberIndex]
    """Members whose COMMIT the last head names."""
    undelivered: frozenset[MemberIndex]
    """Members whose last committed update was not in the head: the reveal phase does not wait for them."""
    next_members: Digest
    """List hash of the next epoch in the last round of an epoch that has one, else zero."""
    chooses_next_members: bool
    """Last-but-one round of an epoch that has a successor: the head names the next list."""

    @property
    def banned_hash(self) -> Digest:
        """`Contents.banned`; nobody banned is the hash of the empty list."""
        return list_hash(sorted(self.banned))

    def is_trainer(self, member: MemberIndex) -> bool:
        return member in self.assignment.trainers

    def check_of(self, task: Digest, member: MemberIndex, body: Digest, commit: Commit) -> DealingCheck:
        """What is to be verified of a COMMIT that passed `commits.check_commit`."""
        return DealingCheck(
            body=body,
            commit=commit,
            dealing_context=dealing_context(task, self.round, self.epoch.addresses[member], self.dealt_to),
            share_context=self.fixed.share_context(member) if self.fixed else None,
            holder_key=self.epoch.keys[member],
            summed=self.fixed.summed[member] if self.fixed else None,
        )


def compute_context(
    *,
    task: Task,
    task_id: Digest,
    round: Round,
    epochs: Mapping[Epoch, EpochMembers],
    closed: Mapping[Round, ListedRound],
    beacon: Digest,
    parent: Digest,
    parent_state: Digest,
    chain_block: Digest,
    banned: frozenset[Address],
    undelivered: Collection[Address],
    sharing: Sharing = pvss,
) -> RoundContext:
    """closed: the last AUDIT_LAG rounds at least.  parent, parent_state, chain_block: the last head and its words.
    undelivered: whose last committed update was in no head."""
    epoch = epochs[task.epoch_of(round)]
    last = closed.get(round - 1)
    audited_round = closed.get(round - params.AUDIT_LAG)
    unbanned = [index for index, address in enumerate(epoch.addresses) if address not in banned]
    present = frozenset(range(epoch.count) if last is None else _indices(last.committed(), epoch))
    assignment = compute_assignment(
        beacon=beacon,
        unbanned=unbanned,
        present=present,
        audit_fraction=task.audit_fraction,
        audited=[]
        if audited_round is None
        else _indices(audited_round.updates_by_address().keys() - set(banned), epoch),
        is_training_round=round < task.training_rounds,
    )
    has_successor = epoch.epoch + 1 < task.epoch_count
    return RoundContext(
        round=round,
        epoch=epoch,
        parent=parent,
        parent_state=parent_state,
        chain_block=chain_block,
        beacon=beacon,
        fixed=None
        if last is None
        else fix_dealings(
            task=task_id, round=round - 1, head=parent, holders=epoch, dealings=last.dealings, sharing=sharing
        ),
        dealt_to=epochs.get(task.epoch_of(round + 1), epoch),
        assignment=assignment,
        is_training_round=round < task.training_rounds,
        banned=banned,
        present=present,
        undelivered=frozenset(_indices(undelivered, epoch)),
        next_members=epochs[epoch.epoch + 1].list_hash if has_successor and round == epoch.last_round else ZERO_DIGEST,
        chooses_next_members=has_successor and round == epoch.last_round - 1,
    )


def _indices(addresses: Iterable[Address], epoch: EpochMembers) -> list[int]:
    return [epoch.indices[address] for address in addresses if address in epoch.indices]
