"""A process that starts: from its own checkpoint, from one that another peer hands out, else from round 0.

As `p2pdfl.node.lifecycle` does it, with the chain's model.  Byzantine peers hand out what is not what is anchored.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from p2pdfl.base.types import Address, Checkpoint, Epoch
from p2pdfl.protocol.checkpoint import Anchored, BadCheckpoint, named_block, restart_from, restore
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.protocol.start import Genesis, Start, at_genesis
from p2pdfl.sim.chain import Chain
from p2pdfl.sim.disk import Disk


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Somebody who can be asked."""

    disk: Disk
    is_honest: bool


def take_up(
    config: RunConfig,
    genesis: Genesis,
    chain: Chain,
    disk: Disk,
    holders: list[Holder],
    rng: Random,
    refused: list[str],
) -> Start:
    """holders: in the order in which they are asked."""
    kept = [epoch for epoch in disk.checkpoints if epoch < len(chain.anchors.taken)]
    if kept:
        epoch = restart_from(config.task, kept, max(disk.closed, default=-1) + 1)
        own = disk.checkpoints[epoch]
        return restore(config, genesis, own, chain.anchored(config.task, epoch), _named(chain, own))
    if not disk.closed:
        for epoch in _worth_asking_for(config, chain):
            anchored = chain.anchored(config.task, epoch)
            for holder in holders:
                start = _ask(config, genesis, chain, anchored, holder, rng, refused)
                if start is not None:
                    disk.put_checkpoint(holder.disk.checkpoints[epoch])
                    return start
    return at_genesis(config, genesis)


def _worth_asking_for(config: RunConfig, chain: Chain) -> list[Epoch]:
    """The last one that is anchored, and the one before, which those hold who have not closed the last."""
    last = min(len(chain.anchors.taken) - 1, config.task.epoch_count - 2)
    return [epoch for epoch in (last, last - 1) if epoch >= 0]


def _ask(
    config: RunConfig,
    genesis: Genesis,
    chain: Chain,
    anchored: Anchored,
    holder: Holder,
    rng: Random,
    refused: list[str],
) -> Start | None:
    held = holder.disk.checkpoints.get(anchored.epoch)
    if held is None:
        return None
    given = held if holder.is_honest else forged(held, rng, anchored.registrations[0].address)
    try:
        return restore(config, genesis, given, anchored, _named(chain, given))
    except BadCheckpoint as error:
        refused.append(f"checkpoint: {error}")
        return None


def _named(chain: Chain, checkpoint: Checkpoint) -> ChainSeen | None:
    block = named_block(checkpoint)
    return next((seen for seen in chain.confirmed if seen.block == block), None)


def forged(checkpoint: Checkpoint, rng: Random, victim: Address) -> Checkpoint:
    """One thing in it is another."""
    rounds, lists, banned = checkpoint.rounds, checkpoint.lists, checkpoint.banned
    last = rounds[-1]
    forgeries = [
        checkpoint.replace(rounds=rounds[1:] or (*rounds, last)),
        checkpoint.replace(rounds=(*rounds[:-1], last.replace(commits=last.commits[::-1]))),
        checkpoint.replace(rounds=(*rounds[:-1], last.replace(certificate=last.certificate.replace(view=63)))),
        checkpoint.replace(lists=(*lists[:-1], lists[-1][1:] or (victim, *lists[-1]))),
        checkpoint.replace(banned=banned[1:] if banned else (victim,)),
    ]
    return rng.choice(forgeries)
