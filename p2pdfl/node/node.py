"""The only loop: events in, effects performed (ARCHITECTURE).

`Node.run` feeds the protocol machine with what arrives (gossip, finished work, chain, time) and performs what it
returns.  Training and cryptography run in worker threads and come back as events; chain transactions run beside the
rounds.  Nothing waits for a peer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TypeVar

import trio

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode, encode
from p2pdfl.base.types import Checkpoint, Digest, Packet, Registration, Round
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.learning.learner import State
from p2pdfl.net.host import is_peer_id
from p2pdfl.net.limits.peer_score import PASSED_ON
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.checkpoint_sync import CHECKPOINT_PROTOCOL
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import Activity, EventLog
from p2pdfl.node.ports import Machine, Network, Workers
from p2pdfl.node.resync import RESYNC_PROTOCOL, Resync, Turn
from p2pdfl.node.store import Store
from p2pdfl.node.updates import Updates
from p2pdfl.protocol.checkpoint import CheckpointReply, CheckpointRequest
from p2pdfl.protocol.events import (
    Aggregate,
    Aggregated,
    CheckCommits,
    Closed,
    CommitsChecked,
    Deal,
    Dealt,
    Decrypt,
    Decrypted,
    Effect,
    Event,
    Finished,
    KeepCheckpoint,
    KeepNotarized,
    Notice,
    PacketReceived,
    ReadChain,
    Replay,
    Replayed,
    Reveal,
    Send,
    SubmitAnchor,
    SubmitEquivocation,
    SubmitVerdict,
    Tick,
    Train,
    Trained,
    WantUpdate,
)
from p2pdfl.protocol.events import (
    Resync as ResyncEffect,
)
from p2pdfl.protocol.refusal import Refusal, Reject

T = TypeVar("T")

_PACKET, _UPDATE, _ANNOUNCE = b"\x01", b"\x02", b"\x03"
"""First byte of a gossip message; then a Packet, the update's bytes, or the digest of an update to pull."""


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    rounds: int
    state: Digest
    accuracy: float
    heads: dict[Round, Digest]


@dataclass(kw_only=True)
class Node:
    machine: Machine
    compute: Compute
    store: Store
    network: Network
    workers: Workers
    outbox: ChainOutbox
    event_log: EventLog
    home: Path
    rng: random.Random
    """Whom to ask; an attacker must not be able to tell."""
    history_rounds: int
    """`RunConfig.history_rounds`: for so long an audit may start from a round's parent state."""
    first_round: Round = 0
    """Where the machine starts."""
    state: State | None = None
    """What that round starts from; None: the task's initial state."""
    leave_after: Round | None = None
    """Once that round has closed, this member asks to be let go."""

    _own: dict[Digest, bytes] = field(default_factory=dict)
    """Own updates before they are revealed."""
    _unrevealed: set[Digest] = field(default_factory=set)
    """To be revealed as soon as they are computed: a restart trains again what it had committed to."""
    _states: dict[Digest, State] = field(default_factory=dict)
    _parents: deque[Digest] = field(default_factory=deque)
    """The states of the last heads, oldest first."""
    _heads: dict[Round, Digest] = field(default_factory=dict)
    _round: Round = 0
    _round_start_ms: int = 0
    _chain_read_ms: int = 0
    _working: int = 0
    _due_before_tick: int = 0
    """Events that waited at the last deadline, and come before the next."""
    _turn: Turn = field(default_factory=Turn)

    async def run(self, *, on_result: Callable[[NodeResult], None], linger_s: float) -> None:
        """Until the last round is closed and what this node owes the chain is there; then reports its result, and
        goes on answering others for `linger_s`."""
        state = self.state or self.compute.initial_state()
        self._keep_states(state.digest(), {state.digest(): state})
        self._round = self.first_round
        heads = await self.workers.run(self.store.heads)
        self._heads = {round: head for round, head in heads.items() if round < self.first_round}
        self._inbox, self._events = trio.open_memory_channel[Event](params.NODE_EVENTS_MAX)
        # one thing at a time: a node that catches up must not train for every round that it passes
        self._training, self._auditing = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._updates = Updates(
                compute=self.compute,
                store=self.store,
                network=self.network,
                workers=self.workers,
                event_log=self.event_log,
                nursery=nursery,
                report=self._inbox.send,
                rng=self.rng,
            )
            self._resync = Resync(
                machine=self.machine,
                turn=self._turn,
                store=self.store,
                network=self.network,
                workers=self.workers,
                event_log=self.event_log,
                nursery=nursery,
                report=self._inbox.send,
                open_round=lambda: self._round,
                rng=self.rng,
            )
            self.network.serve(RESYNC_PROTOCOL, self._resync.answer, request_bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
            self.network.serve(
                CHECKPOINT_PROTOCOL, self._answer_checkpoint, request_bytes_max=params.CHECKPOINT_REQUEST_BYTES_MAX
            )
            nursery.start_soon(self._listen)
            async with trio.open_nursery() as reporting:
                self._to_report, reports = trio.open_memory_channel[_RoundReport](inf)
                reporting.start_soon(self._report_rounds, reports)
                await self._loop()
                self._to_report.close()
            nursery.start_soon(self._pass_over_events)
            nursery.start_soon(self._go_on_admitting)
            await self.outbox.wait_until_done(params.CHAIN_FINISH_S)
            on_result(await self._result())
            await trio.sleep(linger_s)
            nursery.cancel_scope.cancel()

    async def _result(self) -> NodeResult:
        last = self._parents[-1]
        state = self._states[last]
        accuracy = await self.workers.run(self.compute.evaluate, state)
        await self.workers.finish(self.compute.save, self.home / "model.safetensors", state)
        return NodeResult(rounds=len(self._heads), state=last, accuracy=accuracy, heads=self._heads)

    # --- the loop -----------------------------------------------------------------

    async def _loop(self) -> None:
        self._round_start_ms = self.event_log.now_ms
        is_finished = await self._step(None)
        while not is_finished:
            is_finished = await self._step(await self._next_event())

    async def _step(self, event: Event | None) -> bool:
        """What comes of an event, or of the start.  Whether that was all."""
        async with self._turn.performing():
            effects = self._effects_of(event)
            for effect in effects:
                await self._perform(effect)
        return any(isinstance(effect, Finished) for effect in effects)

    def _effects_of(self, event: Event | None) -> list[Effect]:
        now_ms = self.event_log.now_ms
        if event is None:
            return self.machine.start(now_ms)
        try:
            return self.machine.handle(event, now_ms)
        except Refusal as refusal:
            self.event_log.refused[refusal.reason] += 1
            self._blame(event, refusal)
            return []

    def _blame(self, event: Event, refusal: Refusal) -> None:
        if not isinstance(event, PacketReceived) or event.source is None or not isinstance(refusal, Reject):
            return
        if event.is_own or refusal.reason in PASSED_ON:
            self.network.blame(event.source, refusal.reason)

    def _refuse(self, reason: str, peer: bytes) -> None:
        self.event_log.refused[reason] += 1
        self.network.blame(peer, reason)

    async def _next_event(self) -> Event:
        now_ms = self.event_log.now_ms
        wait_s = (self.machine.next_deadline_ms(now_ms) - now_ms) / 1000
        if wait_s <= 0 and self._due_before_tick <= 0:
            # ATTACK: a queue that never gets empty, of messages that are refused, must not hold up time.  Nor must
            # time hold up the queue: where the disk is slow, a deadline's effects outlast the next deadline.
            self._due_before_tick = self._events.statistics().current_buffer_used
            await trio.lowlevel.checkpoint()
            return Tick()
        self._due_before_tick -= 1
        try:
            return self._events.receive_nowait()
        except trio.WouldBlock:
            self._due_before_tick = 0
        if wait_s <= 0:
            await trio.lowlevel.checkpoint()
            return Tick()
        is_idle = self._working == 0
        start_s = trio.current_time()
        try:
            with trio.move_on_after(wait_s):
                return await self._events.receive()
            return Tick()
        finally:
            if is_idle:
                self.event_log.seconds["network_wait"] += trio.current_time() - start_s

    async def _pass_over_events(self) -> None:
        """After the last round: who still sends must not wait for a reader."""
        async for _ in self._events:
            pass

    async def _listen(self) -> None:
        async for incoming in self.network.incoming:
            kind, data = incoming.data[:1], incoming.data[1:]
            if kind == _PACKET:
                await self._receive_packet(data, incoming.origin)
            elif kind == _UPDATE:
                self._updates.receive(data, incoming.origin)
            elif kind == _ANNOUNCE and len(data) == 32:
                self._updates.announced(data, incoming.origin)
            else:
                self._refuse("gossip of no known kind", incoming.origin)

    async def _receive_packet(self, data: bytes, origin: bytes) -> None:
        try:
            packet = decode(Packet, data, bytes_max=params.PACKET_BYTES_MAX)
        except Malformed:
            self._refuse("packet is malformed", origin)
            return
        await self._inbox.send(PacketReceived(packet=packet, source=origin))

    # --- effects ------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                packet = await self.workers.finish(self.store.put_envelope, effect.packet)
                await self.network.publish(_PACKET + encode(packet))
            case Reveal():
                await self._reveal(effect.update)
            case WantUpdate():
                members = self.machine.epoch.members
                author = next((member.peer_id for member in members if member.address == effect.author), None)
                await self._updates.want(effect, author)
            case ResyncEffect():
                self._resync.ask(effect.round)
            case Closed():
                await self._close(effect)
            case KeepNotarized():
                await self.workers.finish(self.store.put_notarized, effect.certificate, effect.packets)
            case KeepCheckpoint():
                self._nursery.start_soon(self._keep_checkpoint, effect.checkpoint, self._states[effect.state])
            case Notice():
                self.event_log.write(effect.name, effect.fields)
            case Finished():
                pass
            case ReadChain():
                self._nursery.start_soon(self._read_chain, effect.block)
            case SubmitAnchor() | SubmitVerdict() | SubmitEquivocation():
                self.outbox.take(effect, self._nursery)
            case _:
                self._working += 1
                self._nursery.start_soon(self._work, effect)

    async def _work(self, effect: Train | Replay | Aggregate | Deal | Decrypt | CheckCommits) -> None:
        try:
            match effect:
                case Train():
                    await self._train(effect)
                case Replay():
                    await self._replay(effect)
                case Aggregate():
                    await self._aggregate(effect)
                case Deal():
                    dealing = await self._thread("crypto", self.compute.deal, effect)
                    await self._inbox.send(Dealt(round=effect.round, dealing=dealing))
                case Decrypt():
                    share = await self._thread("crypto", self.compute.decrypt, effect)
                    await self._inbox.send(Decrypted(round=effect.round, share=share))
                case CheckCommits():
                    invalid = await self._thread("crypto", self.compute.find_invalid, effect)
                    checked = tuple(check.body for check in effect.checks)
                    await self._inbox.send(CommitsChecked(round=effect.round, checked=checked, invalid=invalid))
        finally:
            self._working -= 1

    async def _train(self, effect: Train) -> None:
        async with self._training:
            if effect.round < self._round:
                return
            update = await self._thread("train", self.compute.train, effect, self._states[effect.parent_state])
        digest = sha256(update).digest()
        self._own[digest] = update
        await self._inbox.send(Trained(round=effect.round, update=digest))
        if digest in self._unrevealed:
            await self._reveal(digest)

    async def _replay(self, effect: Replay) -> None:
        async with self._auditing:
            claimed = await self.workers.run(self.store.blob, effect.update)
            parent = self._states.get(effect.parent_state)
            if claimed is None or parent is None:
                self.event_log.refused["replay of a round no longer held"] += 1
                return
            outcome = await self._thread("audit", self.compute.replay, effect, parent, claimed)
        await self._inbox.send(Replayed(audited_round=effect.audited_round, author=effect.author, outcome=outcome))

    async def _aggregate(self, effect: Aggregate) -> None:
        if effect.round < self._round:
            return
        parent = self._states[effect.parent_state]

        def aggregate() -> State:
            updates = [self.store.blob(entry.update) for entry in effect.updates]
            held = [update for update in updates if update is not None]
            assert len(held) == len(updates), "the machine aggregates only what was reported as held"
            return self.compute.aggregate(parent, held)

        state = await self._thread("train", aggregate)
        digest = state.digest()
        self._states[digest] = state
        await self._inbox.send(Aggregated(round=effect.round, updates=effect.updates, state=digest))

    async def _reveal(self, digest: Digest) -> None:
        update = self._own.pop(digest, None) or await self.workers.run(self.store.blob, digest)
        if update is None:
            self._unrevealed.add(digest)
            return
        self._unrevealed.discard(digest)
        await self.workers.finish(self.store.put_blob, digest, update)
        if len(update) <= params.UPDATE_INLINE_BYTES_MAX:
            await self.network.publish(_UPDATE + update)
        else:
            await self.network.publish(_ANNOUNCE + digest)
        self._updates.take(update, self.network.peer_id)

    async def _thread(self, activity: Activity, work: Callable[..., T], *arguments: object) -> T:
        def timed() -> T:
            with self.event_log.working(activity):
                return work(*arguments)

        return await self.workers.run(timed)

    # --- rounds -------------------------------------------------------------------

    async def _close(self, closed: Closed) -> None:
        """On disk before anything of the next round is signed."""
        await self.workers.finish(
            self.store.put_round, closed.round, closed.head, closed.contents, closed.certificate, closed.packets
        )
        self._heads[closed.round] = head_digest(closed.head)
        self._round = closed.round + 1
        self._own.clear()
        self._unrevealed.clear()
        self._updates.forget_wanted()
        self._keep_states(closed.head.state, self._states)
        now_ms = self.event_log.now_ms
        # a node that catches up closes rounds faster than it measures them: those go without
        is_behind = self._to_report.statistics().current_buffer_used >= params.ROUND_REPORTS_MAX
        report = _RoundReport(
            closed=closed,
            head=self._heads[closed.round],
            state=None if is_behind else self._states[closed.head.state],
            seconds=(now_ms - self._round_start_ms) / 1000,
        )
        self._to_report.send_nowait(report)
        self._round_start_ms = now_ms
        if self.leave_after is not None and closed.round >= self.leave_after:
            self.leave_after = None
            self.outbox.leave(self._nursery)
        # the coming round chooses the next list
        is_list_due = closed.round == closed.members.last_round - 2
        if is_list_due or now_ms - self._chain_read_ms >= 1000 * params.CHAIN_WATCH_S:
            self._chain_read_ms = now_ms
            self._nursery.start_soon(self._read_chain, None)

    async def _keep_checkpoint(self, checkpoint: Checkpoint, state: State) -> None:
        if self.compute.state_bytes <= params.STATE_BYTES_MAX:
            await self.workers.finish(lambda: self.store.put_checkpoint(checkpoint, state.to_bytes()))

    def _keep_states(self, newest: Digest, states: dict[Digest, State]) -> None:
        """Those that an audit or its verdict may still start from; what was only proposed goes."""
        self._parents.append(newest)
        while len(self._parents) > self.history_rounds + 2:
            self._parents.popleft()
        self._states = {digest: states[digest] for digest in self._parents}

    async def _report_rounds(self, reports: trio.MemoryReceiveChannel[_RoundReport]) -> None:
        """One after the other, so that they come in order."""
        async for report in reports:
            closed, accuracy = report.closed, None
            if report.state is not None:
                accuracy = round(await self.workers.run(self.compute.evaluate, report.state), 6)
            updates = [entry.update for entry in closed.contents.updates]
            self.event_log.write(
                "round",
                {
                    "round": closed.round,
                    "epoch": closed.head.epoch,
                    "view": closed.view,
                    "head": report.head.hex(),
                    "state": closed.head.state.hex(),
                    "accuracy": accuracy,
                    "seconds": round(report.seconds, 4),
                    "commits": len(closed.contents.commits),
                    "updates": len(updates),
                    "update_bytes": await self.workers.run(self.store.blob_bytes, updates),
                    "bytes_sent": self.network.counters["bytes_sent"],
                },
            )

    # --- checkpoints ---------------------------------------------------------------

    async def _answer_checkpoint(self, peer: bytes, data: bytes) -> bytes:
        """Raises for what is not answered; that costs the peer a stream."""
        try:
            request = decode(CheckpointRequest, data, bytes_max=params.CHECKPOINT_REQUEST_BYTES_MAX)
        except Malformed:
            self._refuse("request is malformed", peer)
            raise
        is_ours = request.task == self.compute.task_id
        held = await self.workers.run(self.store.checkpoint_digest, request.epoch) if is_ours else None
        return encode(CheckpointReply(checkpoint=held))

    # --- chain --------------------------------------------------------------------

    async def _read_chain(self, block: Digest | None) -> None:
        """None: so that who registers late is let in, and the next list follows the registry."""
        for seen in await self.outbox.read_registry(block):
            admit(self.network, seen.registrations)
            await self._inbox.send(seen)

    async def _go_on_admitting(self) -> None:
        """After the last round: whoever registers this late, or was confirmed this late, has the rounds to ask for."""
        while True:
            await self._read_chain(None)
            await trio.sleep(params.CHAIN_WATCH_S)


def admit(network: Network, registrations: Iterable[Registration]) -> None:
    """ATTACK: the contract takes any bytes for a peer id."""
    network.admit([entry.peer_id for entry in registrations if is_peer_id(entry.peer_id)])


@dataclass(frozen=True, kw_only=True)
class _RoundReport:
    closed: Closed
    head: Digest
    state: State | None
    seconds: float
