"""A network of protocol machines in one process and in virtual time.

The machines are the real ones, and so is all cryptography unless another `Sharing` is given.  Learning is a stand-in
that only makes digests, unless another `Learning` is given.  One agenda orders all events, one seeded generator draws
latencies and entropy: the same seed gives the same bytes.

A machine that is stopped comes back with what it signed and closed, from round 0 on.  What a peer does around its
machine, and crashes in the middle of that, are the true world's (`sim.true`).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, BlockNumber, Digest, Packet, Registration, Round
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain, Signer, list_hash
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.events import (
    Aggregate,
    Aggregated,
    CertificateReceived,
    ChainSeen,
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
    UpdateHeld,
    WantUpdate,
)
from p2pdfl.protocol.membership import select_members
from p2pdfl.protocol.refusal import Refusal
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, compute_reply
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.protocol.sharing import Sharing, check_commits
from p2pdfl.protocol.start import Genesis, Start, at_genesis
from p2pdfl.sim.chain import Anchors, Chain, Change
from p2pdfl.sim.clock import Clock
from p2pdfl.sim.disk import Disk, SlotTaken
from p2pdfl.sim.invariants.observed import Watcher
from p2pdfl.sim.learning import Learning, StandIn
from p2pdfl.sim.log import CHAIN, Log, closed_label, event_label, packet_label
from p2pdfl.sim.network import Network, PlainNetwork

ENVELOPE_BYTES = 200
"""Of a packet on the wire, beside its payload: envelope and signature."""
CHAIN_RETRY_MS = round(1000 * params.CHAIN_RETRY_S)
UPDATE_STAND_IN_BYTES = 32
"""Only digests travel here, whatever they stand for."""


class Machine(Protocol):
    """`Run`, or what wraps it."""

    def start(self, now_ms: int) -> list[Effect]: ...
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...
    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply: ...


def stand_in_task(**fields: object) -> Task:
    """A task whose digests stand for no real data."""
    return Task.model_validate(
        {"data_digest": bytes(32), "initial_state": bytes(32), "reference_replay": bytes(32), **fields}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTo:
    """To these peers only, and never on disk: no honest machine has this effect."""

    packet: Packet
    receivers: tuple[int, ...]


Entry = tuple[Callable[..., object], tuple[Any, ...]]


class Agenda:
    """What happens when: by time, and at the same time in the order in which it was put down."""

    def __init__(self) -> None:
        self._entries: dict[int, deque[Entry]] = {}
        self._times_ms: list[int] = []
        """A heap of the keys: far fewer than the entries, many of which fall on the same millisecond."""

    def at(self, time_ms: int) -> deque[Entry]:
        """To append to, or to take from the left."""
        entries = self._entries.get(time_ms)
        if entries is None:
            entries = self._entries[time_ms] = deque()
            heapq.heappush(self._times_ms, time_ms)
        return entries

    def next_ms(self) -> int | None:
        while self._times_ms:
            time_ms = self._times_ms[0]
            if self._entries[time_ms]:
                return time_ms
            heapq.heappop(self._times_ms)
            del self._entries[time_ms]
        return None


@dataclass(slots=True)
class SimPeer:
    name: str
    keys: Keys
    run: Run
    machine: Machine
    disk: Disk
    clock: Clock = field(default_factory=Clock)
    train_ms: int = 10
    chain_delay_ms: int = 0
    """Until it sees what the chain has confirmed, on top of the network's latency."""
    wanted: dict[Digest, dict[Address, WantUpdate]] = field(default_factory=dict)
    is_up: bool = True
    is_serving: bool = True
    """Whether others can pull update bytes from it."""
    is_store_lost: bool = False
    conflicting: list[Closed] = field(default_factory=list)
    """Closed otherwise than before a restart."""
    notices: list[Notice] = field(default_factory=list)
    submitted: list[SubmitAnchor | SubmitVerdict | SubmitEquivocation] = field(default_factory=list)
    sent: list[Packet] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tick_at_ms: int | None = None
    due_local_ms: int | None = None
    """The deadline that was last looked at."""

    @property
    def closed(self) -> dict[Round, Closed]:
        """As its disk has them."""
        return self.disk.closed

    @property
    def bodies(self) -> set[Digest]:
        return self.disk.bodies


class World:
    def __init__(
        self,
        task: Task,
        peer_count: int,
        *,
        seed: int,
        latency_ms: tuple[int, int] = (5, 40),
        wrap: Callable[[int, Run], Machine] = lambda index, run: run,
        is_lost: Callable[[int, int, int], bool] = lambda sender, receiver, now_ms: False,
        network: Network | None = None,
        sharing: Sharing = pvss,
        learning: Learning | None = None,
        late_count: int = 0,
        disk: Callable[[], Disk] = Disk,
        on_made: Callable[[World], object] = lambda world: None,
    ) -> None:
        """wrap: Byzantine peers by index.  is_lost(sender, receiver, now_ms): dropped messages.
        network: instead of latency_ms and is_lost.  late_count: how many of the peers are not registered at first;
        they follow until the chain lets them in.  disk: for disks that break their promises.
        on_made: given the world before it wraps the first peer."""
        on_made(self)
        self._wrap = wrap
        self.learning: Learning = StandIn() if learning is None else learning
        self.task = task
        self.now_ms = 0
        self.log = Log()
        self.watch: Watcher | None = None
        self.message_count = 0
        self.byte_count = 0
        self._random = random.Random(seed)
        self._weights = random.Random(f"weights/{seed}")
        """Of batch verification; apart, since what is verified together must not change what comes after."""
        self._sharing = sharing
        self.network = network or PlainNetwork(latency_ms=latency_ms, is_lost=is_lost)
        self._agenda = Agenda()
        self._is_started = False
        self._new_disk = disk
        keys = [derive(self._random.randbytes(32)) for _ in range(peer_count)]
        keys.sort(key=lambda key: Signer(key.chain_secret).address)
        self.registrations = tuple(
            Registration(
                address=Signer(key.chain_secret).address,
                peer_id=b"peer%d" % index,
                pvss_key=key.pvss_key,
                exiting=False,
            )
            for index, key in enumerate(keys)
        )
        late = frozenset(self._random.sample(range(peer_count), late_count))
        first = tuple(entry for index, entry in enumerate(self.registrations) if index not in late)
        self.late = late
        """Who is not on the first list."""
        genesis = Genesis(closing_number=1, closing_block=sha256(b"block").digest(), registrations=first)
        self.genesis = genesis
        self.blocks = [ChainSeen(number=genesis.closing_number, block=genesis.closing_block, registrations=first)]
        """What the chain confirmed, oldest first."""
        self.config = RunConfig(
            task=task, task_id=task.task_id(), domain=Domain(chain_id=1, contract=bytes(20)), sharing=sharing
        )
        self._first_start = at_genesis(self.config, genesis)
        """The same for all, and so is the first list in it."""
        anchors = Anchors(
            task=self.config.task_id,
            domain=self.config.domain,
            lists=[list_hash(entry.address for entry in select_members(first, excluded=()))],
        )
        self.anchors = anchors
        self.chain = Chain(confirmed=self.blocks, anchors=anchors)
        self.is_chain_reachable = True
        """Nobody sees its blocks nor gets a transaction there while it is not; the chain goes on."""
        self.idle: frozenset[int] = frozenset()
        """Who leaves the anchors to the others."""
        self.peers: list[SimPeer] = []
        for index, key in enumerate(keys):
            run = self.make_run(key)
            self.peers.append(
                SimPeer(
                    name=f"peer{index}",
                    keys=key,
                    run=run,
                    machine=wrap(index, run),
                    disk=disk(),
                )
            )

    def make_run(self, key: Keys, signed: Iterable[Packet] | None = (), start: Start | None = None) -> Run:
        """start: None for round 0."""
        return Run(self.config, Signer(key.chain_secret), start or self._first_start, signed)

    def entropy(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def at(self, time_ms: int, action: Callable[..., object], *arguments: Any) -> None:
        self._agenda.at(time_ms).append((action, arguments))

    def run(self, *, until_ms: int, until: Callable[[], bool] = lambda: False) -> None:
        if not self._is_started:
            self._is_started = True
            for index, peer in enumerate(self.peers):
                if peer.is_up:
                    self._start(index)
        agenda = self._agenda
        while (next_ms := agenda.next_ms()) is not None and next_ms <= until_ms:
            entries = agenda.at(next_ms)
            while entries:
                if until():
                    return
                self.now_ms = next_ms
                action, arguments = entries.popleft()
                action(*arguments)

    def kill(self, index: int) -> None:
        peer = self.peers[index]
        self.log.write(self.now_ms, index, "killed")
        peer.is_up = False

    def restart(self, index: int, *, is_store_lost: bool = False) -> None:
        """A new process with what the old one left on disk, from round 0 on."""
        peer = self.peers[index]
        self.kill(index)
        self.log.write(self.now_ms, index, f"restarted {is_store_lost}")
        peer.is_up = True
        if is_store_lost:
            peer.disk = self._new_disk()
            peer.is_store_lost = True
        # who lost its store knows it for good: the key is there, and what it signed is not
        peer.run = self.make_run(peer.keys, None if peer.is_store_lost else peer.disk.signed())
        peer.machine = self._wrap(index, peer.run)
        peer.wanted.clear()
        peer.tick_at_ms = peer.due_local_ms = None
        self._start(index)

    def mine(self, number: BlockNumber, registrations: tuple[Registration, ...]) -> None:
        """A block is confirmed, and every peer that is up sees it."""
        block = sha256(b"block" + number.to_bytes(8, "big")).digest()
        self._confirm(ChainSeen(number=number, block=block, registrations=registrations))

    def mine_on_top(self, changes: Iterable[Change] = ()) -> None:
        """A block that some later one confirms."""
        for change in changes:
            self.chain.submit(change)
        count = len(self.anchors.taken)
        seen = self.chain.mine()
        for anchor in self.anchors.taken[count:]:
            self.log.write(self.now_ms, CHAIN, f"anchored {anchor.head.epoch} {anchor.certificate.head.hex()}")
            if self.watch is not None:
                self.watch.on_anchored(anchor)
        if seen is not None and self.is_chain_reachable:
            self._show(seen)

    def mine_from_now_on(self, every_ms: int) -> None:
        self.mine_on_top()
        self.at(self.now_ms + every_ms, self.mine_from_now_on, every_ms)

    def reach_chain(self, *, is_reachable: bool) -> None:
        self.is_chain_reachable = is_reachable
        if is_reachable:
            self._show(self.blocks[-1])

    def is_finished(self) -> bool:
        return all(peer.run.is_finished for peer in self.peers if peer.is_up)

    # --- delivery -----------------------------------------------------------------

    def deliver(self, index: int, event: Event, label: str = "") -> None:
        peer = self.peers[index]
        if not peer.is_up:
            return
        self.log.write(self.now_ms, index, label or event_label(event))
        try:
            effects = peer.machine.handle(event, peer.clock.read_ms(self.now_ms))
        except Refusal as refusal:
            peer.refused.append(refusal.reason)
            effects = []
        except Exception as error:  # noqa: BLE001  a machine that breaks is a finding, not the end of the search
            self._break(index, error)
            return
        self.perform(index, effects)

    def _start(self, index: int) -> None:
        peer = self.peers[index]
        self.perform(index, peer.machine.start(peer.clock.read_ms(self.now_ms)))

    def _break(self, index: int, error: Exception) -> None:
        if self.watch is None:
            raise error
        self.kill(index)
        self.watch.on_broken(index, error)

    def _later(self, index: int, event: Event, delay_ms: int) -> None:
        """To this process of the peer, not to the one after a restart."""
        self.at(self.now_ms + delay_ms, self._deliver_to, index, self.peers[index].machine, event)

    def _deliver_to(self, index: int, machine: Machine, event: Event) -> None:
        if self.peers[index].machine is machine:
            self.deliver(index, event)

    def _send(self, sender: int, packet: Packet, receivers: Iterable[int]) -> None:
        self.peers[sender].sent.append(packet)
        label = packet_label(packet)
        self.log.write(self.now_ms, sender, "> " + label)
        event = PacketReceived(packet=packet)
        self._transmit(sender, receivers, len(packet.payload) + ENVELOPE_BYTES, self.deliver, event, "< " + label)
        if self.watch is not None:
            self.watch.on_sent(sender, packet)

    def _transmit(
        self, sender: int, receivers: Iterable[int], size: int, action: Callable[..., object], *arguments: Any
    ) -> None:
        now_ms, rng, at, delays_ms = self.now_ms, self._random, self._agenda.at, self.network.delays_ms
        count = 0
        for receiver in receivers:
            if receiver == sender:
                continue
            count += 1
            for delay_ms in delays_ms(sender, receiver, now_ms, rng):
                at(now_ms + delay_ms).append((action, (receiver, *arguments)))
        self.message_count += count
        self.byte_count += count * size

    def schedule_tick(self, index: int) -> None:
        peer = self.peers[index]
        if peer.run.is_finished or not peer.is_up:
            return
        local_ms = peer.clock.read_ms(self.now_ms)
        due_local_ms = peer.run.next_deadline_ms(local_ms)
        is_waiting = peer.tick_at_ms is not None and peer.tick_at_ms > self.now_ms
        if is_waiting and due_local_ms == peer.due_local_ms and peer.clock.is_steady:
            return  # as after most events
        peer.due_local_ms = due_local_ms
        due_ms = peer.clock.when_ms(due_local_ms, self.now_ms)
        if peer.tick_at_ms is None or due_ms < peer.tick_at_ms or peer.tick_at_ms <= self.now_ms:
            peer.tick_at_ms = due_ms
            self.at(due_ms, self.deliver, index, _TICK, "tick")

    # --- effects ------------------------------------------------------------------

    def perform(self, index: int, effects: Iterable[Effect | SendTo]) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                self._perform(index, effect)
            elif not self._write_and_send(index, effect.packet):
                return
        self.schedule_tick(index)

    def _write_and_send(self, index: int, packet: Packet) -> bool:
        """Whether the peer is still up."""
        peer = self.peers[index]
        try:
            packet = peer.disk.put_envelope(packet)
        except SlotTaken as error:
            if peer.machine is peer.run:
                self._break(index, error)
                return False
            # whoever cheats keeps no such record
        self._send(index, packet, range(len(self.peers)))
        return True

    def _perform(self, index: int, effect: Effect | SendTo) -> None:
        peer = self.peers[index]
        entropy = self._random.randbytes
        match effect:
            case Notice():
                peer.notices.append(effect)
                if self.watch is not None:
                    self.watch.on_notice(index, effect)
            case WantUpdate():
                self._want(index, effect)
            case Send():
                raise AssertionError("performed by `perform`")
            case SendTo():
                self._send(index, effect.packet, effect.receivers)
            case Deal():
                dealing = self._sharing.deal(effect.context, effect.keys, effect.threshold, entropy)
                self._later(index, Dealt(round=effect.round, dealing=dealing), 2)
            case Decrypt():
                share = self._sharing.decrypt(
                    effect.context, peer.keys.pvss_secret, peer.keys.pvss_key, effect.summed, entropy
                )
                self._later(index, Decrypted(round=effect.round, share=share), 1)
            case CheckCommits():
                checked = tuple(check.body for check in effect.checks)
                invalid = check_commits(effect, self._weights.randbytes, self._sharing)
                self._later(index, CommitsChecked(round=effect.round, checked=checked, invalid=invalid), 3)
            case Train():
                update = self.learning.train(effect, index, self.address(index))
                self._later(index, Trained(round=effect.round, update=update), peer.train_ms)
            case Reveal():
                # not before: what is only committed is nobody's to pull
                self._receive_body(index, effect.update)
                self._transmit(index, range(len(self.peers)), UPDATE_STAND_IN_BYTES, self._receive_body, effect.update)
            case Aggregate():
                state = self.learning.aggregate(effect.parent_state, effect.updates)
                self._later(index, Aggregated(round=effect.round, updates=effect.updates, state=state), 2)
            case Replay():
                outcome = self.learning.replay(effect)
                self._later(
                    index,
                    Replayed(audited_round=effect.audited_round, author=effect.author, outcome=outcome),
                    10,
                )
            case Resync():
                self._resync(index)
            case ReadChain():
                self._read_chain(index, effect.block)
            case Closed():
                self._close(index, effect)
            case KeepNotarized():
                peer.disk.notarized[effect.certificate.round, effect.certificate.view] = effect
            case KeepCheckpoint():
                peer.disk.checkpoints[effect.checkpoint.epoch] = effect.checkpoint
            case SubmitAnchor() | SubmitVerdict() | SubmitEquivocation():
                peer.submitted.append(effect)
                if self.watch is not None:
                    self.watch.on_submitted(index, effect)
                if isinstance(effect, SubmitAnchor) and index not in self.idle:
                    self.at(self.now_ms + effect.delay_ms, self._anchor, index, peer.machine, effect)
            case Finished():
                pass

    def _close(self, index: int, closed: Closed) -> None:
        peer = self.peers[index]
        self.log.write(self.now_ms, index, closed_label(closed))
        if peer.disk.put_round(closed).certificate.head != closed.certificate.head:
            peer.conflicting.append(closed)
        if self.watch is not None:
            self.watch.on_closed(index, closed)

    def _receive_body(self, index: int, update: Digest) -> None:
        peer = self.peers[index]
        if not peer.is_up:
            return
        peer.disk.bodies.add(update)
        for want in peer.wanted.pop(update, {}).values():
            self._want(index, want)

    def _want(self, index: int, want: WantUpdate) -> None:
        peer = self.peers[index]
        if want.update in peer.bodies:
            valid = self.learning.is_valid(want.update, want.round, want.author)
            held = UpdateHeld(round=want.round, author=want.author, update=want.update, valid=valid)
            self._later(index, held, 1)
            return
        peer.wanted.setdefault(want.update, {})[want.author] = want
        if want.fetch:
            for other, holder in enumerate(self.peers):
                if not holder.is_up or not holder.is_serving or want.update not in holder.bodies:
                    continue
                if self.network.is_open(index, other, self.now_ms):
                    self.at(self.now_ms + 20, self._receive_body, index, want.update)
                    return

    # --- resync, chain ---------------------------------------------------------------

    def _resync(self, index: int) -> None:
        """From the own disk what is there, as after a restart, else from another peer."""
        peer = self.peers[index]
        request = peer.run.resync_request()
        stored = peer.disk.closed.get(request.round)
        if stored is not None:
            for packet in stored.packets:
                self._later(index, PacketReceived(packet=packet), 1)
            self._later(index, CertificateReceived(certificate=stored.certificate), 1)
            return
        for (round, _), kept in sorted(peer.disk.notarized.items(), key=lambda item: item[0]):
            if round == request.round:
                self._recall(index, compute_reply(request, kept.packets, (kept.certificate,)))
        others = [
            other
            for other, peer in enumerate(self.peers)
            if other != index and peer.is_up and self.network.is_open(index, other, self.now_ms)
        ]
        if not others:
            return
        self._answer(index, peer.machine, self._random.choice(others), request)

    def _recall(self, index: int, kept: ResyncReply) -> None:
        for packet in kept.packets:
            self._later(index, PacketReceived(packet=packet), 1)
        for certificate in kept.certificates:
            self._later(index, CertificateReceived(certificate=certificate), 1)

    def _answer(self, index: int, asker: Machine, other: int, request: ResyncRequest) -> None:
        answerer = self.peers[other]
        if self.peers[index].machine is not asker or not answerer.is_up:
            return
        reply = answerer.machine.resync_reply(request, answerer.disk.load)
        for packet in reply.packets:
            self._later(index, PacketReceived(packet=packet), 20)
        for certificate in reply.certificates:
            self._later(index, CertificateReceived(certificate=certificate), 20)
        self._later(index, Resynced(round=request.round), 20)

    def _anchor(self, index: int, machine: Machine, duty: SubmitAnchor) -> None:
        """As `node.chain_outbox.ChainOutbox`: once its turn has come, in order, unless another one has done it."""
        peer = self.peers[index]
        if peer.machine is not machine or not peer.is_up:
            return
        if self.is_chain_reachable:
            next_epoch = len(self.anchors.taken)
            if duty.head.epoch == next_epoch:
                self.chain.submit(duty)
            if duty.head.epoch <= next_epoch:
                return
        self.at(self.now_ms + CHAIN_RETRY_MS, self._anchor, index, machine, duty)

    def _confirm(self, seen: ChainSeen) -> None:
        self.blocks.append(seen)
        self._show(seen)

    def _show(self, seen: ChainSeen) -> None:
        for index, peer in enumerate(self.peers):
            if peer.run.is_finished:
                continue
            self._later(index, seen, peer.chain_delay_ms + self._random.randint(5, 40))

    def _read_chain(self, index: int, block: Digest) -> None:
        if not self.is_chain_reachable:
            return
        delay_ms = self.peers[index].chain_delay_ms + 5
        asked = [seen for seen in self.blocks[:-1] if seen.block == block]
        for seen in (self.blocks[-1], *asked):
            self._later(index, seen, delay_ms)

    # --- looking at it --------------------------------------------------------------

    def heads(self, index: int) -> dict[Round, Digest]:
        return {round: closed.certificate.head for round, closed in self.peers[index].closed.items()}

    def address(self, index: int) -> Address:
        return self.registrations[index].address


_TICK = Tick()
