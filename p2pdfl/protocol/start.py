"""Where a member takes a run up: at round 0, as the chain has it, or where a later epoch begins (`checkpoint`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pdfl.base.types import Address, BlockNumber, Digest, Epoch, Registration, Round
from p2pdfl.protocol.beacon import initial_beacon, initial_parent
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.protocol.history import ClosedRound
from p2pdfl.protocol.membership import EpochMembers, select_members


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """What the chain says once registration has closed."""

    closing_number: BlockNumber
    closing_block: Digest
    registrations: tuple[Registration, ...]
    """As of that block."""
    first: tuple[Registration, ...] | None = None
    """As they were when it closed, None for the same: more may have registered, or left, later in that block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """All that outlives the rounds before `round`, the first of its epoch."""

    round: Round
    epochs: Mapping[Epoch, EpochMembers]
    """Those whose members later rounds may still name, to the one that begins."""
    history: Mapping[Round, ClosedRound]
    beacons: Mapping[Round, Digest]
    head: Digest
    """Of the round before; of round 0, its parent."""
    state: Digest
    chain: ChainSeen
    """The block that the head names: no later list is chosen by an older one."""
    banned: Mapping[Address, str]
    """Address -> kind of evidence, as far as that is known."""


def at_genesis(config: RunConfig, genesis: Genesis) -> Start:
    task, task_id, block = config.task, config.task_id, genesis.closing_block
    assert task.initial_state is not None, "the task is measured"
    first = EpochMembers(
        epoch=0,
        first_round=0,
        last_round=task.last_round_of(0),
        members=select_members(genesis.registrations if genesis.first is None else genesis.first, excluded=()),
    )
    return Start(
        round=0,
        epochs={0: first},
        history={},
        beacons={round: initial_beacon(task_id, first.list_hash, block, round) for round in (0, 1)},
        head=initial_parent(task_id, first.list_hash, task.initial_state, block),
        state=task.initial_state,
        chain=ChainSeen(number=genesis.closing_number, block=block, registrations=genesis.registrations),
        banned={},
    )
