"""What follows from the rounds closed so far: the next round's context and the next epoch's list (DESIGN 3).

Pure, because two follow the same rounds: `run.Run` as a member, `verify` from what a run left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Address,
    Certificate,
    Contents,
    Dealing,
    Digest,
    Epoch,
    Packet,
    Registration,
    Round,
)
from p2pdfl.crypto import pvss
from p2pdfl.protocol.assignment import Assignment, compute_assignment
from p2pdfl.protocol.beacon import fix_dealings
from p2pdfl.protocol.membership import EpochMembers, select_members
from p2pdfl.protocol.round import RoundContext
from p2pdfl.protocol.sharing import Sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRound:
    """What a closed round's head lists, which is all that the two rounds after it rest on."""

    round: Round
    epoch: EpochMembers
    contents: Contents
    dealings: tuple[Dealing, ...]
    """Of the COMMITs that the head names."""

    def updates_by_address(self) -> dict[Address, Digest]:
        return {self.epoch.addresses[entry.member]: entry.update for entry in self.contents.updates}

    def committed(self) -> set[Address]:
        return {self.epoch.addresses[entry.member] for entry in self.contents.commits}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound(ListedRound):
    """What later rounds, audits and resyncs still need of a closed round."""

    beacon: Digest
    assignment: Assignment
    parent_state: Digest
    state: Digest
    certificate: Certificate
    packets: tuple[Packet, ...]


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


def committed_lately(
    round: Round, epoch: EpochMembers, contents: Contents, closed: Mapping[Round, ListedRound]
) -> set[Address]:
    """Whose COMMIT is in the contents of `round` or in a head of the rounds just before: who is not absent."""
    committed = {epoch.addresses[entry.member] for entry in contents.commits}
    for earlier in range(round - params.ABSENT_ROUNDS + 1, round):
        if earlier in closed:
            committed |= closed[earlier].committed()
    return committed


def compute_next_epoch(
    task: Task,
    epoch: EpochMembers,
    registrations: Iterable[Registration],
    *,
    committed: Collection[Address],
    banned: Collection[Address],
) -> EpochMembers:
    """Registered, and not exiting, absent or banned."""
    absent = set(epoch.addresses) - set(committed)
    members = select_members(registrations, excluded=absent | set(banned))
    if not members:
        # all want to leave at once: no list would have no next one, so they stay for another epoch
        members = tuple(member for member in epoch.members if member.address not in banned) or epoch.members
    return EpochMembers(
        epoch=epoch.epoch + 1,
        first_round=epoch.last_round + 1,
        last_round=task.last_round_of(epoch.epoch + 1),
        members=members,
    )


def _indices(addresses: Iterable[Address], epoch: EpochMembers) -> list[int]:
    return [epoch.indices[address] for address in addresses if address in epoch.indices]
