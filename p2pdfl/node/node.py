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
from typing import Protocol, TypeVar

import trio

from p2pdfl.base import params, workers
from p2pdfl.base.codec import Malformed, decode, encode
from p2pdfl.base.types import Certificate, Checkpoint, Digest, Packet, Registration, Round
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.learning.learner import State
from p2pdfl.net.host import Network, is_peer_id
from p2pdfl.net.limits.peer_score import PASSED_ON
from p2pdfl.net.requests import Refused, Unreachable
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.checkpoint_sync import CHECKPOINT_PROTOCOL
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import Activity, EventLog
from p2pdfl.node.store import Store
from p2pdfl.node.updates import Updates
from p2pdfl.protocol.checkpoint import CheckpointReply, CheckpointRequest
from p2pdfl.protocol.events import (
    Aggregate,
    Aggregated,
    CertificateReceived,
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
    Resync,
    Resynced,
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
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Refusal, Reject
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, compute_reply
from p2pdfl.protocol.run import LoadRound

T = TypeVar("T")

RESYNC_PROTOCOL = "/p2pdfl/resync/1"
"""Request and reply are `protocol.resync`'s wire types."""

_PACKET, _UPDATE, _ANNOUNCE = b"\x01", b"\x02", b"\x03"
"""First byte of a gossip message; then a Packet, the update's bytes, or the digest of an update to pull."""


class Machine(Protocol):
    """`Run`, or what a Byzantine peer wraps around it."""

    @property
    def epoch(self) -> EpochMembers: ...
    def start(self, now_ms: int) -> list[Effect]: ...
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...
    def next_deadline_ms(self, now_ms: int) -> int: ...
    def resync_request(self) -> ResyncRequest: ...
    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply: ...


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
    outbox: ChainOutbox
    event_log: EventLog
    home: Path
    history_rounds: int
    """`RunConfig.history_rounds`: for so long an audit may start from a round's parent state."""
    first_round: Round = 0
    """Where the machine starts."""
    state: State | None = None
    """What that round starts from; None: the task's initial state."""
    leave_after: Round | None = None
    """Once that round has closed, this member asks to be let go."""
    rng: random.Random = field(default_factory=random.SystemRandom)
    """Whom to ask; an attacker must not be able to tell."""

    _own: dict[Digest, bytes] = field(default_factory=dict)
    """Own updates before they are revealed."""
    _unrevealed: set[Digest] = field(default_factory=set)
    """To be revealed as soon as they are computed: a restart trains again what it had committed to."""
    _states: dict[Digest, State] = field(default_factory=dict)
    _parents: deque[Digest] = field(default_factory=deque)
    """The states of the last heads, oldest first."""
    _heads: dict[Round, Digest] = field(default_factory=dict)
    _is_ahead_of_disk: bool = False
    _round: Round = 0
    _round_start_ms: int = 0
    _chain_read_ms: int = 0
    _working: int = 0
    _asking: set[bytes] = field(default_factory=set)
    """Members that owe an answer to a resync."""
    _answering: set[bytes] = field(default_factory=set)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    """Held while effects are performed."""

    async def run(self, *, on_result: Callable[[NodeResult], None], linger_s: float) -> None:
        """Until the last round is closed and what this node owes the chain is there; then reports its result, and
        goes on answering others for `linger_s`."""
        state = self.state or self.compute.initial_state()
        self._keep_states(state.digest(), {state.digest(): state})
        self._round = self.first_round
        heads = await workers.run(self.store.heads)
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
                event_log=self.event_log,
                nursery=nursery,
                report=self._inbox.send,
                rng=self.rng,
            )
            self.network.serve(RESYNC_PROTOCOL, self._answer_resync, request_bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
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
            await self.outbox.wait_until_done(params.CHAIN_FINISH_S)
            on_result(await self._result())
            await trio.sleep(linger_s)
            nursery.cancel_scope.cancel()

    def body(self, digest: Digest) -> bytes | None:
        """What other members may pull."""
        return self.store.blob(digest)

    async def _result(self) -> NodeResult:
        last = self._parents[-1]
        state = self._states[last]
        accuracy = await workers.run(self.compute.evaluate, state)
        await trio.to_thread.run_sync(self.compute.save, self.home / "model.safetensors", state)
        return NodeResult(rounds=len(self._heads), state=last, accuracy=accuracy, heads=self._heads)

    # --- the loop -----------------------------------------------------------------

    async def _loop(self) -> None:
        self._round_start_ms = self.event_log.now_ms
        is_finished = await self._step(None)
        while not is_finished:
            is_finished = await self._step(await self._next_event())

    async def _step(self, event: Event | None) -> bool:
        """What comes of an event, or of the start.  Whether that was all.

        From when it signs to when the disk has it, nobody else may see the machine: given away too early, and then a
        crash, the slot would be signed again.  After a failure in between it is never seen again."""
        async with self._turn:
            self._is_ahead_of_disk = True
            effects = self._effects_of(event)
            for effect in effects:
                await self._perform(effect)
            self._is_ahead_of_disk = False
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
        if wait_s <= 0:
            # ATTACK: a queue that never gets empty, of messages that are refused, must not hold up time
            await trio.lowlevel.checkpoint()
            return Tick()
        try:
            return self._events.receive_nowait()
        except trio.WouldBlock:
            pass
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
                packet = await trio.to_thread.run_sync(self.store.put_envelope, effect.packet)
                await self.network.publish(_PACKET + encode(packet))
            case Reveal():
                await self._reveal(effect.update)
            case WantUpdate():
                members = self.machine.epoch.members
                author = next((member.peer_id for member in members if member.address == effect.author), None)
                await self._updates.want(effect, author)
            case Resync():
                self._resync(effect.round)
            case Closed():
                await self._close(effect)
            case KeepNotarized():
                await trio.to_thread.run_sync(self.store.put_notarized, effect.certificate, effect.packets)
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
            claimed = await workers.run(self.store.blob, effect.update)
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
        update = self._own.pop(digest, None) or await workers.run(self.store.blob, digest)
        if update is None:
            self._unrevealed.add(digest)
            return
        self._unrevealed.discard(digest)
        await trio.to_thread.run_sync(self.store.put_blob, digest, update)
        if len(update) <= params.UPDATE_INLINE_BYTES_MAX:
            await self.network.publish(_UPDATE + update)
        else:
            await self.network.publish(_ANNOUNCE + digest)
        self._updates.take(update, self.network.peer_id)

    async def _thread(self, activity: Activity, work: Callable[..., T], *arguments: object) -> T:
        def timed() -> T:
            with self.event_log.working(activity):
                return work(*arguments)

        return await workers.run(timed)

    # --- rounds -------------------------------------------------------------------

    async def _close(self, closed: Closed) -> None:
        """On disk before anything of the next round is signed."""
        await trio.to_thread.run_sync(
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
            await trio.to_thread.run_sync(lambda: self.store.put_checkpoint(checkpoint, state.to_bytes()))

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
                accuracy = round(await workers.run(self.compute.evaluate, report.state), 6)
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
                    "update_bytes": await workers.run(self.store.blob_bytes, updates),
                    "bytes_sent": self.network.counters["bytes_sent"],
                },
            )

    # --- resync -------------------------------------------------------------------

    def _resync(self, round: Round) -> None:
        """Several at once: a member that never answers must not keep this node from asking another."""
        if len(self._asking) < params.RESYNCS_AT_ONCE_MAX:
            candidates = sorted(self.network.connected() - self._asking)
            member = self.rng.choice(candidates) if candidates else b""
            if member not in self._asking:
                self._asking.add(member)
                self._nursery.start_soon(self._ask, round, member)

    async def _ask(self, round: Round, member: bytes) -> None:
        """What this node lacks of the round: from its own store, as after a restart, else from the member."""
        try:
            stored = await workers.run(self.store.round, round)
            if stored is not None:
                await self._take_reply(stored.packets, (stored.certificate,), None)
                return
            await self._recall(round)
            if member:
                data = await self.network.request(
                    member,
                    RESYNC_PROTOCOL,
                    encode(self.machine.resync_request()),
                    reply_bytes_max=params.RESYNC_FRAME_BYTES_MAX,
                    timeout_s=params.RESYNC_TIMEOUT_S,
                )
                reply = await workers.run(_decode_reply, data)
                await self._take_reply(reply.packets, reply.certificates, member)
                await self._inbox.send(Resynced(round=round))
        except (Unreachable, Refused):
            self.event_log.refused["resync without an answer"] += 1
        except Malformed:
            self._refuse("reply is malformed", member)
        finally:
            self._asking.discard(member)

    async def _recall(self, round: Round) -> None:
        """What this node's CLOSEs rest on, after a restart.  The notarization also if all that it is of came again
        from others: they may not have seen that."""
        for kept in await workers.run(self.store.notarized, round):
            missing = compute_reply(self.machine.resync_request(), kept.packets, kept.certificates)
            await self._take_reply(missing.packets, missing.certificates, None)

    async def _take_reply(
        self, packets: tuple[Packet, ...], certificates: tuple[Certificate, ...], source: bytes | None
    ) -> None:
        for packet in packets:
            await self._inbox.send(PacketReceived(packet=packet, source=source, is_own=False))
        for certificate in certificates:
            await self._inbox.send(CertificateReceived(certificate=certificate))

    async def _answer_resync(self, peer: bytes, data: bytes) -> bytes:
        """Raises for what is not answered; that costs the peer a stream."""
        try:
            request = decode(ResyncRequest, data, bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
        except Malformed:
            self._refuse("request is malformed", peer)
            raise
        if peer in self._answering:
            raise Refused("one question at a time")
        self._answering.add(peer)
        try:
            # from the disk, before the machine is asked: it must not wait, and nothing else waits for the disk
            stored = None if request.round >= self._round else await workers.run(self.store.round, request.round)
            async with self._turn:
                if self._is_ahead_of_disk:
                    raise Refused("stopping")
                reply = self.machine.resync_reply(
                    request, lambda _: None if stored is None else (stored.packets, stored.certificate)
                )
            return await workers.run(encode, reply)
        finally:
            self._answering.discard(peer)

    async def _answer_checkpoint(self, peer: bytes, data: bytes) -> bytes:
        """Raises for what is not answered; that costs the peer a stream."""
        try:
            request = decode(CheckpointRequest, data, bytes_max=params.CHECKPOINT_REQUEST_BYTES_MAX)
        except Malformed:
            self._refuse("request is malformed", peer)
            raise
        is_ours = request.task == self.compute.task_id
        held = await workers.run(self.store.checkpoint_digest, request.epoch) if is_ours else None
        return encode(CheckpointReply(checkpoint=held))

    # --- chain --------------------------------------------------------------------

    async def _read_chain(self, block: Digest | None) -> None:
        """None: so that who registers late is let in, and the next list follows the registry."""
        for seen in await self.outbox.read_registry(block):
            admit(self.network, seen.registrations)
            await self._inbox.send(seen)


def admit(network: Network, registrations: Iterable[Registration]) -> None:
    """ATTACK: the contract takes any bytes for a peer id."""
    network.admit([entry.peer_id for entry in registrations if is_peer_id(entry.peer_id)])


@dataclass(frozen=True, kw_only=True)
class _RoundReport:
    closed: Closed
    head: Digest
    state: State | None
    seconds: float


def _decode_reply(data: bytes) -> ResyncReply:
    return decode(ResyncReply, data, bytes_max=params.RESYNC_FRAME_BYTES_MAX)
