"""Where this peer takes the run up (docs/adr/0011): from its own checkpoint, from one that another member hands out
for the chain's last anchor, or from round 0.

What others say is worth what the chain makes of it.  Who lies, stalls or has nothing costs one attempt.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode, encode
from p2pdfl.base.types import Checkpoint, Digest, Epoch
from p2pdfl.chain.client import Block
from p2pdfl.chain.rpc import ChainError, ChainUnreachable
from p2pdfl.learning.learner import State, StateError
from p2pdfl.net.requests import Refused, Unreachable
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.ports import Chain, Network, Workers
from p2pdfl.node.store import Store
from p2pdfl.protocol.checkpoint import (
    Anchored,
    BadCheckpoint,
    CheckpointReply,
    CheckpointRequest,
    UnknownBlock,
    bytes_max,
    epochs_of,
    named_block,
    restart_from,
    restore,
)
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.protocol.start import Genesis, Start, at_genesis

T = TypeVar("T")

CHECKPOINT_PROTOCOL = "/p2pdfl/checkpoint/1"
"""Request and reply are `protocol.checkpoint`'s wire types; the checkpoint and the state are pulled by digest."""
ASK_S = 30.0
"""For so long those who did not answer are asked again, as who has not seen yet that this peer is registered."""
ASK_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Position:
    start: Start
    state: State
    """Of the start's digest."""


@dataclass(kw_only=True)
class CheckpointSync:
    config: RunConfig
    genesis: Genesis
    chain: Chain
    store: Store
    network: Network
    workers: Workers
    event_log: EventLog
    compute: Compute
    rng: random.Random
    """Whom to ask; an attacker must not be able to tell."""

    async def position(self) -> Position:
        try:
            confirmed = await self._patiently(self.chain.confirmed_block)
            next_epoch = await self._patiently(partial(self.chain.next_epoch, confirmed.hash))
            found = await self._from_own_disk(confirmed, next_epoch) or await self._from_others(confirmed, next_epoch)
        except ChainError as error:
            # a node that has forgotten old blocks, say
            self._tell_trouble(error)
            found = None
        return found or Position(start=at_genesis(self.config, self.genesis), state=self.compute.initial_state())

    # --- the own disk ---------------------------------------------------------------------------------------------

    async def _from_own_disk(self, confirmed: Block, next_epoch: Epoch) -> Position | None:
        """Past what is anchored only: an anchor that is still owed is sent by who closes that epoch, once more."""
        store, task = self.store, self.config.task
        last = await self.workers.run(store.last_round)
        kept = [epoch for epoch in await self.workers.run(store.checkpoint_epochs) if epoch < next_epoch]
        if not kept:
            return None
        epoch = restart_from(task, kept, 0 if last is None else last + 1)
        checkpoint, data = await self.workers.run(store.checkpoint, epoch)
        try:
            start = await self._restored(checkpoint, await self._anchored(epoch, confirmed), confirmed)
            state = await self.workers.run(self.compute.state_of, data)
        except (BadCheckpoint, StateError) as error:
            self._tell_trouble(error)
            return None
        self.event_log.write("resumed", {"epoch": epoch, "round": start.round - 1})
        return Position(start=start, state=state)

    # --- others ---------------------------------------------------------------------------------------------------

    async def _from_others(self, confirmed: Block, next_epoch: Epoch) -> Position | None:
        if await self.workers.run(self.store.last_round) is not None:
            return None
        last = min(next_epoch - 1, self.config.task.epoch_count - 2)
        # who has not closed the last one yet has that before it
        wanted = [await self._anchored(epoch, confirmed) for epoch in (last, last - 1) if epoch >= 0]
        if not wanted:
            return None
        patient_until_s = trio.current_time() + ASK_S
        liars: set[bytes] = set()
        while True:
            is_answered = bool(self.network.connected())
            for anchored in wanted:
                members = sorted(self.network.connected() - liars)
                self.rng.shuffle(members)
                for member in members:
                    try:
                        found = await self._ask(member, anchored, confirmed)
                    except (Unreachable, Refused):
                        self.event_log.refused["checkpoint: no answer"] += 1
                        is_answered = False
                    except (Malformed, BadCheckpoint) as error:
                        self._tell_lie(member, error)
                        liars.add(member)
                    else:
                        if found is not None:
                            return found
            if is_answered or trio.current_time() >= patient_until_s:
                self.event_log.write("no_checkpoint", {"epoch": last})
                return None
            await trio.sleep(ASK_PAUSE_S)

    async def _anchored(self, epoch: Epoch, confirmed: Block) -> Anchored:
        def read() -> Anchored:
            chain, at = self.chain, confirmed.hash
            head = chain.anchored_head(epoch, at)
            if head is None:
                raise ChainError(f"the chain counts epoch {epoch} as anchored, and has no head of it")
            lists = {number: chain.list_hash(number, at) for number in epochs_of(self.config.task, epoch)}
            return Anchored(
                epoch=epoch,
                head=head,
                lists={number: found for number, found in lists.items() if found is not None},
                registrations=tuple(chain.registrations(at)),
            )

        return await self._patiently(read)

    async def _ask(self, member: bytes, anchored: Anchored, confirmed: Block) -> Position | None:
        """None if the member does not have it, or not all of it.  Raises Unreachable, Refused; Malformed and
        BadCheckpoint for a lie."""
        digest = await self._offered(member, anchored.epoch)
        if digest is None:
            return None
        longest = bytes_max(self.config.task, len(anchored.registrations))
        data = await self.network.fetch(digest, [member], bytes_max=longest)
        if data is None:
            raise Refused("offered and not served")
        checkpoint = await self.workers.run(partial(decode, Checkpoint, data, bytes_max=longest))
        try:
            start = await self._restored(checkpoint, anchored, confirmed)
        except UnknownBlock as error:
            self._tell_trouble(error)
            return None
        others = sorted(self.network.connected() - {member})
        content = await self.network.fetch(start.state, [member, *others], bytes_max=self.compute.state_bytes)
        if content is None:
            raise Refused("a state that is not served")
        state = await self.workers.run(self.compute.state_of, content)
        # to go on from, after a restart, and to hand on
        await self.workers.finish(self.store.put_checkpoint, checkpoint, content)
        self.event_log.write(
            "joined",
            {
                "epoch": anchored.epoch,
                "round": start.round - 1,
                "checkpoint_bytes": len(data),
                "state_bytes": len(content),
                "peer_id": member.decode(),
            },
        )
        return Position(start=start, state=state)

    async def _offered(self, member: bytes, epoch: Epoch) -> Digest | None:
        reply = await self.network.request(
            member,
            CHECKPOINT_PROTOCOL,
            encode(CheckpointRequest(task=self.config.task_id, epoch=epoch)),
            reply_bytes_max=params.CHECKPOINT_REPLY_BYTES_MAX,
            timeout_s=params.RESYNC_TIMEOUT_S,
        )
        return decode(CheckpointReply, reply, bytes_max=params.CHECKPOINT_REPLY_BYTES_MAX).checkpoint

    # --- parts ----------------------------------------------------------------------------------------------------

    async def _restored(self, checkpoint: Checkpoint, anchored: Anchored, confirmed: Block) -> Start:
        """Raises BadCheckpoint."""
        named = await self._patiently(partial(self._read_block, named_block(checkpoint), confirmed))
        return await self.workers.run(restore, self.config, self.genesis, checkpoint, anchored, named)

    def _read_block(self, named: Digest, confirmed: Block) -> ChainSeen | None:
        found = self.chain.block_of(named)
        if found is None or found.number > confirmed.number:
            return None
        registrations = tuple(self.chain.registrations(found.hash))
        return ChainSeen(number=found.number, block=found.hash, registrations=registrations)

    async def _patiently(self, work: Callable[[], T]) -> T:
        return await patiently(work, self.workers, self.event_log)

    def _tell_lie(self, member: bytes, error: Exception) -> None:
        reason = "reply is malformed" if isinstance(error, Malformed) else "checkpoint is not the anchored one"
        self.event_log.refused[reason] += 1
        self.network.blame(member, reason)
        self.event_log.write("checkpoint_refused", {"peer_id": member.decode(), "reason": str(error)})

    def _tell_trouble(self, error: Exception) -> None:
        self.event_log.write("checkpoint_unusable", {"error": " ".join(str(error).split())})


async def patiently(work: Callable[[], T], workers: Workers, event_log: EventLog) -> T:
    """Asks the chain from a worker thread; while it is out of reach, asks again."""
    delay_s = params.CHAIN_RETRY_S
    while True:
        try:
            with event_log.waiting("chain"):
                return await workers.run(work)
        except ChainUnreachable as error:
            event_log.write("chain_error", {"what": "joining", "error": " ".join(str(error).split())})
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, params.CHAIN_RETRY_S_MAX)
