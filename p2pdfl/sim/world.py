"""A network of protocol machines in one process and in virtual time.

The machines and all cryptography are the real ones.  Learning is a stand-in that only makes digests: an update is a
hash of what would have been computed, so a replay finds every deviation.  One heap orders all events, one seeded
generator draws latencies and entropy: the same seed gives the same bytes.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain, Signer
from p2pdfl.crypto.keys import Keys, derive
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
from p2pdfl.protocol.perform import check_commits
from p2pdfl.protocol.refusal import Refusal
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import Genesis, LoadRound, Run
from p2pdfl.protocol.setup import Setup
from p2pdfl.task import Task
from p2pdfl.types import Address, BlockNumber, Certificate, Digest, Outcome, Packet, Registration, Round


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


@dataclass(slots=True)
class SimPeer:
    name: str
    keys: Keys
    run: Run
    machine: Machine
    forge: Callable[[Digest], Digest]
    bodies: set[Digest] = field(default_factory=set)
    wanted: dict[tuple[Address, Digest], WantUpdate] = field(default_factory=dict)
    is_up: bool = True
    is_serving: bool = True
    """Whether others can pull update bytes from it."""
    closed: dict[Round, Closed] = field(default_factory=dict)
    """As its disk has them; also what it closed again after a restart."""
    conflicting: list[Closed] = field(default_factory=list)
    """Closed otherwise than before a restart."""
    notices: list[Notice] = field(default_factory=list)
    submitted: list[SubmitAnchor | SubmitVerdict | SubmitEquivocation] = field(default_factory=list)
    sent: list[Packet] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tick_at_ms: int | None = None


class World:
    def __init__(
        self,
        task: Task,
        peer_count: int,
        *,
        seed: int,
        latency_ms: tuple[int, int] = (5, 40),
        wrap: Callable[[int, Run], Machine] = lambda index, run: run,
        forge: Callable[[int, Digest], Digest] = lambda index, update: update,
        is_lost: Callable[[int, int, int], bool] = lambda sender, receiver, now_ms: False,
    ) -> None:
        """wrap, forge: Byzantine peers by index.  is_lost(sender, receiver, now_ms): dropped messages."""
        self._wrap = wrap
        self._authors: dict[Digest, Address] = {}
        self.undecodable: set[Digest] = set()
        """Updates that decode under nobody's header."""
        self.task = task
        self.now_ms = 0
        self._random = random.Random(seed)
        self._latency_ms = latency_ms
        self._is_lost = is_lost
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
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
        genesis = Genesis(closing_number=1, closing_block=sha256(b"block").digest(), registrations=self.registrations)
        self.genesis = genesis
        self.blocks = [
            ChainSeen(number=genesis.closing_number, block=genesis.closing_block, registrations=self.registrations)
        ]
        """What the chain confirmed, oldest first."""
        self.setup_domain = Domain(chain_id=1, contract=bytes(20))
        self.peers: list[SimPeer] = []
        for index, key in enumerate(keys):
            run = self.make_run(key)
            self.peers.append(
                SimPeer(
                    name=f"peer{index}",
                    keys=key,
                    run=run,
                    machine=wrap(index, run),
                    forge=lambda update, index=index: forge(index, update),  # type: ignore[misc]
                )
            )

    def make_run(self, key: Keys, signed: Iterable[Packet] | None = ()) -> Run:
        setup = Setup(
            task=self.task, task_id=self.task.task_id(), domain=self.setup_domain, signer=Signer(key.chain_secret)
        )
        return Run(setup, self.genesis, signed)

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time_ms, self._sequence, action))

    def run(self, *, until_ms: int, until: Callable[[], bool] = lambda: False) -> None:
        for index, peer in enumerate(self.peers):
            if peer.is_up and not peer.notices:
                self.perform(index, peer.machine.start(self.now_ms))
        while self._heap and not until():
            if self._heap[0][0] > until_ms:
                return
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()

    def kill(self, index: int) -> None:
        self.peers[index].is_up = False

    def restart(self, index: int, *, is_store_lost: bool = False) -> None:
        """A new process with what the old one had on disk: what it signed, and update bytes."""
        peer = self.peers[index]
        peer.is_up = True
        peer.run = self.make_run(peer.keys, None if is_store_lost else peer.sent)
        peer.machine = self._wrap(index, peer.run)
        peer.wanted.clear()
        peer.tick_at_ms = None
        self.perform(index, peer.machine.start(self.now_ms))

    def mine(self, number: BlockNumber, registrations: tuple[Registration, ...]) -> None:
        """A block is confirmed, and every peer that is up sees it."""
        block = sha256(b"block" + number.to_bytes(8, "big")).digest()
        self.blocks.append(ChainSeen(number=number, block=block, registrations=registrations))
        for index in range(len(self.peers)):
            self._later(index, self.blocks[-1], self._random.randint(*self._latency_ms))

    def is_finished(self) -> bool:
        return all(peer.run.is_finished for peer in self.peers if peer.is_up)

    # --- delivery -----------------------------------------------------------------

    def deliver(self, index: int, event: Event) -> None:
        peer = self.peers[index]
        if not peer.is_up:
            return
        try:
            effects = peer.machine.handle(event, self.now_ms)
        except Refusal as refusal:
            peer.refused.append(refusal.reason)
            effects = []
        self.perform(index, effects)

    def _later(self, index: int, event: Event, delay_ms: int) -> None:
        """To this process of the peer, not to the one after a restart."""
        peer = self.peers[index]
        machine = peer.machine
        self.at(self.now_ms + delay_ms, lambda: self.deliver(index, event) if peer.machine is machine else None)

    def _broadcast(self, sender: int, action: Callable[[int], None]) -> None:
        for receiver in range(len(self.peers)):
            if receiver != sender and not self._is_lost(sender, receiver, self.now_ms):
                delay_ms = self._random.randint(*self._latency_ms)
                self.at(self.now_ms + delay_ms, lambda receiver=receiver: action(receiver))  # type: ignore[misc]

    def _schedule_tick(self, index: int) -> None:
        peer = self.peers[index]
        if peer.run.is_finished:
            return
        due_ms = peer.run.next_deadline_ms(self.now_ms)
        if peer.tick_at_ms is None or due_ms < peer.tick_at_ms or peer.tick_at_ms <= self.now_ms:
            peer.tick_at_ms = due_ms
            self.at(due_ms, lambda: self.deliver(index, Tick()))

    # --- effects ------------------------------------------------------------------

    def perform(self, index: int, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform(index, effect)
        self._schedule_tick(index)

    def _perform(self, index: int, effect: Effect) -> None:
        peer = self.peers[index]
        entropy = self._random.randbytes
        match effect:
            case Send():
                peer.sent.append(effect.packet)
                event = PacketReceived(packet=effect.packet)
                self._broadcast(index, lambda receiver: self.deliver(receiver, event))
            case Deal():
                dealing = pvss.deal(effect.context, effect.keys, effect.threshold, entropy)
                self._later(index, Dealt(round=effect.round, dealing=dealing), 2)
            case Decrypt():
                share = pvss.decrypt(effect.context, peer.keys.pvss_secret, peer.keys.pvss_key, effect.summed, entropy)
                self._later(index, Decrypted(round=effect.round, share=share), 1)
            case CheckCommits():
                checked = tuple(check.body for check in effect.checks)
                invalid = check_commits(effect, entropy)
                self._later(index, CommitsChecked(round=effect.round, checked=checked, invalid=invalid), 3)
            case Train():
                update = peer.forge(honest_update(effect.parent_state, effect.seed))
                self._authors.setdefault(update, self.address(index))
                self._later(index, Trained(round=effect.round, update=update), 10)
            case Reveal():
                # not before: what is only committed is nobody's to pull
                self._receive_body(index, effect.update)
                self._broadcast(index, lambda receiver: self._receive_body(receiver, effect.update))
            case WantUpdate():
                self._want(index, effect)
            case Aggregate():
                state = effect.parent_state
                if effect.updates:
                    state = sha256(state + b"".join(entry.update for entry in effect.updates)).digest()
                self._later(index, Aggregated(round=effect.round, updates=effect.updates, state=state), 2)
            case Replay():
                is_honest = honest_update(effect.parent_state, effect.seed) == effect.update
                outcome = Outcome.FALSE if is_honest else Outcome.GUILTY
                self._later(
                    index,
                    Replayed(audited_round=effect.audited_round, author=effect.author, outcome=outcome),
                    10,
                )
            case Resync():
                self._resync(index)
            case ReadChain():
                asked = [seen for seen in self.blocks[:-1] if seen.block == effect.block]
                for seen in (*asked, self.blocks[-1]):
                    self._later(index, seen, 5)
            case Closed():
                before = peer.closed.setdefault(effect.round, effect)
                if before.certificate.head != effect.certificate.head:
                    peer.conflicting.append(effect)
            case SubmitAnchor() | SubmitVerdict() | SubmitEquivocation():
                peer.submitted.append(effect)
            case Notice():
                peer.notices.append(effect)
            case _:
                pass

    def _receive_body(self, index: int, update: Digest) -> None:
        peer = self.peers[index]
        peer.bodies.add(update)
        for case in [case for case in peer.wanted if case[1] == update]:
            self._want(index, peer.wanted.pop(case))

    def _want(self, index: int, want: WantUpdate) -> None:
        peer = self.peers[index]
        if want.update in peer.bodies:
            valid = self._authors.get(want.update) == want.author and want.update not in self.undecodable
            held = UpdateHeld(round=want.round, author=want.author, update=want.update, valid=valid)
            self._later(index, held, 1)
            return
        peer.wanted[want.author, want.update] = want
        if want.fetch:
            for other, holder in enumerate(self.peers):
                if not holder.is_up or not holder.is_serving or want.update not in holder.bodies:
                    continue
                if not self._is_lost(other, index, self.now_ms):
                    self.at(self.now_ms + 20, lambda: self._receive_body(index, want.update))
                    return

    def _resync(self, index: int) -> None:
        others = [
            other
            for other, peer in enumerate(self.peers)
            if other != index
            and peer.is_up
            and not self._is_lost(index, other, self.now_ms)
            and not self._is_lost(other, index, self.now_ms)
        ]
        if not others:
            return
        answerer = self.peers[self._random.choice(others)]
        request = self.peers[index].run.resync_request()
        reply = answerer.machine.resync_reply(request, lambda round: _load(answerer, round))
        for packet in reply.packets:
            self._later(index, PacketReceived(packet=packet), 20)
        for certificate in reply.certificates:
            self._later(index, CertificateReceived(certificate=certificate), 20)
        self._later(index, Resynced(round=request.round), 20)

    # --- looking at it --------------------------------------------------------------

    def heads(self, index: int) -> dict[Round, Digest]:
        return {round: closed.certificate.head for round, closed in self.peers[index].closed.items()}

    def address(self, index: int) -> Address:
        return self.registrations[index].address


def honest_update(parent_state: Digest, seed: Digest) -> Digest:
    return sha256(b"update" + parent_state + seed).digest()


def _load(peer: SimPeer, round: Round) -> tuple[tuple[Packet, ...], Certificate] | None:
    closed = peer.closed.get(round)
    return None if closed is None else (closed.packets, closed.certificate)
