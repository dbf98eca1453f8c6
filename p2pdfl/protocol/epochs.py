"""Member lists, epoch by epoch, and the chain blocks by which the next list is chosen (DESIGN 3 "Epoch change").

The head of an epoch's last but one round names a confirmed block and the list that follows from the registry as of it;
so a member can check that head only once its own chain has that block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, BlockNumber, Contents, Digest, Epoch, Registration, Round
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext, compute_context
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.protocol.history import History, ListedRound
from p2pdfl.protocol.membership import EpochMembers, select_members


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSnapshot:
    number: BlockNumber
    registrations: tuple[Registration, ...]


class Epochs:
    def __init__(
        self, config: RunConfig, history: History, lists: Mapping[Epoch, EpochMembers], chain: ChainSeen
    ) -> None:
        """history: read only.  chain: the block that the last head names."""
        self.lists = dict(lists)
        self.block = chain.block
        """That the last head names: no later list is chosen by an older one."""
        self.snapshots: dict[Digest, ChainSnapshot] = {}
        self._config, self._history = config, history
        self.on_chain(chain)

    def of_round(self, round: Round) -> EpochMembers:
        return self.lists[self._config.task.epoch_of(round)]

    def on_chain(self, event: ChainSeen) -> None:
        self.snapshots[event.block] = ChainSnapshot(number=event.number, registrations=event.registrations)
        if len(self.snapshots) > params.CHAIN_SNAPSHOTS_MAX:
            oldest = min(
                # not the block just read either: a head may name it, however old
                (block for block in self.snapshots if block not in (self.block, event.block)),
                key=lambda block: self.snapshots[block].number,
            )
            del self.snapshots[oldest]

    def latest_block(self) -> Digest:
        """The newest confirmed one known here, at or after the last head's."""
        return max(self.snapshots, key=lambda block: self.snapshots[block].number)

    def latest_number(self) -> BlockNumber:
        return self.snapshots[self.latest_block()].number

    def context_of(self, round: Round, banned: Collection[Address]) -> RoundContext:
        """Of the round after the last that closed."""
        config, history = self._config, self._history
        return compute_context(
            task=config.task,
            task_id=config.task_id,
            round=round,
            epochs=self.lists,
            closed=history.closed,
            beacon=history.beacons[round],
            parent=history.head,
            parent_state=history.state,
            chain_block=self.block,
            banned=frozenset(banned),
            undelivered=history.undelivered,
            sharing=config.sharing,
        )

    def next_list(
        self, context: RoundContext, contents: Contents, block: Digest, banned: Collection[Address]
    ) -> EpochMembers | None:
        """What contents of this round and a block make of the list, None if that block is not known here or older than
        the parent head's.  banned: with those whom the contents ban."""
        snapshot = self.snapshots.get(block)
        if snapshot is None or snapshot.number < self.snapshots[self.block].number:
            return None
        return compute_next_epoch(
            self._config.task,
            context.epoch,
            snapshot.registrations,
            committed=committed_lately(context.round, context.epoch, contents, self._history.closed),
            banned=banned,
        )

    def close(self, block: Digest, following: EpochMembers | None) -> None:
        """A head is certified that names this block and, if its round chooses one, the list that follows."""
        self.block = block
        if following is not None:
            self.lists[following.epoch] = following


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
