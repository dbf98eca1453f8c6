"""Who took part in which round, as its head says, and whom each epoch's list must name then, by the protocol's rule.

Pure.  The heads are those of one honest peer: that all have the same is judged apart (`judge`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Contents, Head
from p2pdfl.chain.client import Block
from p2pdfl.chain.contract import Event, ExitRequested, Started, registrations_at, started_with
from p2pdfl.protocol.epochs import committed_lately, compute_next_epoch
from p2pdfl.protocol.history import ListedRound
from p2pdfl.protocol.membership import EpochMembers, select_members


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Addresses are spelled as peers tell them."""

    committed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Round -> whose COMMIT its head names."""
    members: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Epoch -> whom its list must name."""
    leavers: frozenset[str] = frozenset()
    """Who had asked to leave when the last of these lists was chosen."""


def follow(
    task: Task,
    heads: Mapping[int, tuple[Head, Contents]],
    events: Sequence[Event],
    blocks: Sequence[Block],
    bans: Mapping[str, int],
) -> Course:
    """As far as the heads go without a gap.  blocks: those that they name.
    bans: member -> round whose head lists it."""
    if not any(isinstance(event, Started) for event in events):
        return Course()
    numbers = {block.hash: block.number for block in blocks}
    members = select_members(started_with(events), excluded=())
    epochs = {0: EpochMembers(epoch=0, first_round=0, last_round=task.last_round_of(0), members=members)}
    closed: dict[int, ListedRound] = {}
    leavers: frozenset[str] = frozenset()
    for round in range(task.total_rounds):
        epoch = epochs.get(task.epoch_of(round))
        if epoch is None or round not in heads:
            break
        head, contents = heads[round]
        closed[round] = ListedRound(round=round, epoch=epoch, contents=contents, dealings=())
        block = numbers.get(head.chain_block)
        if block is None or round != epoch.last_round - 1 or epoch.epoch + 1 == task.epoch_count:
            continue
        epochs[epoch.epoch + 1] = compute_next_epoch(
            task,
            epoch,
            registrations_at(events, block, task.deposit_wei),
            committed=committed_lately(round, epoch, contents, closed),
            banned={bytes.fromhex(member.removeprefix("0x")) for member, listed in bans.items() if listed <= round},
        )
        leavers = _told(event.address for event in events if isinstance(event, ExitRequested) and event.block <= block)
    return Course(
        committed={round: _told(listed.committed()) for round, listed in closed.items()},
        members={number: _told(epoch.addresses) for number, epoch in epochs.items()},
        leavers=leavers,
    )


def _told(addresses: Iterable[Address]) -> frozenset[str]:
    return frozenset("0x" + address.hex() for address in addresses)
