"""The only loop: events in, effects performed (DESIGN 8).

`Node.run` feeds the protocol machine with what arrives (gossip, finished work, chain, time) and performs what it
returns.  Training and cryptography run in worker threads and come back as events; chain transactions run beside the
rounds.  Nothing waits for a peer.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from p2pdfl import params
from p2pdfl.chain.client import ChainClient
from p2pdfl.chain.rpc import ChainError, ChainUnreachable
from p2pdfl.chain.sender import Receipt
from p2pdfl.codec import Malformed, decode, encode
from p2pdfl.compute import Compute
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.journal import Activity, Journal
from p2pdfl.learning.learner import State
from p2pdfl.net.host import Network
from p2pdfl.net.requests import Refused, Unreachable
from p2pdfl.protocol.docket import EVIDENCE_NAMES
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
    Notice,
    PacketReceived,
    ReadChain,
    Replay,
    Replayed,
    Resync,
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
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.refusal import Refusal
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound
from p2pdfl.store import Store
from p2pdfl.types import Address, Certificate, Digest, Packet, Round

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
    chain: ChainClient
    journal: Journal
    home: Path

    _strays: dict[bytes, OrderedDict[Digest, bytes]] = field(default_factory=dict)
    """Author's peer id -> its last update bodies that no verified COMMIT names, or none yet."""
    _own: dict[Digest, bytes] = field(default_factory=dict)
    """Own updates before they are revealed."""
    _wanted: dict[Digest, dict[Address, WantUpdate]] = field(default_factory=dict)
    """By digest, then by author: a cheater may commit to another's digest, and must not take its place."""
    _fetching: set[Digest] = field(default_factory=set)
    _states: OrderedDict[Digest, State] = field(default_factory=OrderedDict)
    _heads: dict[Round, Digest] = field(default_factory=dict)
    _working: int = 0
    _chain_duties: int = 0
    _is_resyncing: bool = False
    _round_start_ms: int = 0
    _last_state: Digest = b""

    async def run(self, *, on_result: Callable[[NodeResult], None], linger_s: float) -> None:
        """Until the last round is closed and what this node owes the chain is there; then reports its result, and
        goes on answering others for `linger_s`."""
        initial = self.compute.initial_state()
        self._last_state = initial.digest()
        self._states[self._last_state] = initial
        self._inbox, self._events = trio.open_memory_channel[Event](params.NODE_EVENTS_MAX)
        self._changed = trio.Event()
        self.network.serve(RESYNC_PROTOCOL, self._answer_resync, request_bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._listen)
            await self._loop()
            while self._chain_duties:
                await self._changed.wait()
            state = self._states[self._last_state]
            accuracy = await trio.to_thread.run_sync(self.compute.evaluate, state)
            await trio.to_thread.run_sync(self.compute.save, self.home / "model.safetensors", state)
            on_result(NodeResult(rounds=len(self._heads), state=self._last_state, accuracy=accuracy, heads=self._heads))
            await trio.sleep(linger_s)
            nursery.cancel_scope.cancel()

    def body(self, digest: Digest) -> bytes | None:
        """What other members may pull."""
        return self.store.blob(digest)

    # --- the loop -----------------------------------------------------------------

    async def _loop(self) -> None:
        now_ms = self.journal.now_ms
        self._round_start_ms = now_ms
        effects = self.machine.start(now_ms)
        while True:
            for effect in effects:
                await self._perform(effect)
                if isinstance(effect, Finished):
                    return
            event = await self._next_event()
            try:
                effects = self.machine.handle(event, self.journal.now_ms)
            except Refusal as refusal:
                self.journal.refused[refusal.reason] += 1
                effects = []

    async def _next_event(self) -> Event:
        now_ms = self.journal.now_ms
        wait_s = (self.machine.next_deadline_ms(now_ms) - now_ms) / 1000
        try:
            return self._events.receive_nowait()
        except trio.WouldBlock:
            pass
        is_idle = self._working == 0
        start_s = trio.current_time()
        try:
            with trio.move_on_after(max(wait_s, 0)):
                return await self._events.receive()
            return Tick()
        finally:
            if is_idle:
                self.journal.seconds["network_wait"] += trio.current_time() - start_s

    async def _listen(self) -> None:
        async for incoming in self.network.incoming:
            kind, data = incoming.data[:1], incoming.data[1:]
            if kind == _PACKET:
                await self._receive_packet(data)
            elif kind == _UPDATE:
                self._receive_body(data, incoming.origin)
            elif kind == _ANNOUNCE and len(data) == 32:
                self._on_announced(data, incoming.origin)
            else:
                self.journal.refused["gossip of no known kind"] += 1

    async def _receive_packet(self, data: bytes) -> None:
        try:
            packet = decode(Packet, data, bytes_max=params.PACKET_BYTES_MAX)
        except Malformed:
            self.journal.refused["packet is malformed"] += 1
            return
        await self._inbox.send(PacketReceived(packet=packet))

    # --- effects ------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                packet = await trio.to_thread.run_sync(self.store.put_envelope, effect.packet)
                await self.network.publish(_PACKET + encode(packet))
            case Reveal():
                await self._reveal(effect)
            case WantUpdate():
                self._want(effect)
            case Resync():
                self._resync(effect.round)
            case Closed():
                await self._close(effect)
            case Notice():
                self.journal.write(effect.name, effect.fields)
            case Finished():
                pass
            case ReadChain():
                self._nursery.start_soon(self._read_chain, effect.block)
            case SubmitAnchor() | SubmitVerdict() | SubmitEquivocation():
                self._chain_duties += 1
                self._nursery.start_soon(self._submit, effect)
            case _:
                self._working += 1
                self._nursery.start_soon(self._work, effect)

    async def _work(self, effect: Train | Replay | Aggregate | Deal | Decrypt | CheckCommits) -> None:
        try:
            match effect:
                case Train():
                    parent = self._states[effect.parent_state]
                    update = await self._thread("train", self.compute.train, effect, parent)
                    digest = sha256(update).digest()
                    self._own[digest] = update
                    await self._inbox.send(Trained(round=effect.round, update=digest))
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

    async def _replay(self, effect: Replay) -> None:
        claimed = self.body(effect.update)
        parent = self._states.get(effect.parent_state)
        if claimed is None or parent is None:
            self.journal.refused["replay of a round no longer held"] += 1
            return
        outcome = await self._thread("audit", self.compute.replay, effect, parent, claimed)
        await self._inbox.send(Replayed(audited_round=effect.audited_round, author=effect.author, outcome=outcome))

    async def _aggregate(self, effect: Aggregate) -> None:
        updates = [self.body(entry.update) for entry in effect.updates]
        held = [update for update in updates if update is not None]
        assert len(held) == len(updates), "the machine aggregates only what was reported as held"
        parent = self._states[effect.parent_state]
        state = await self._thread("train", self.compute.aggregate, parent, held)
        digest = state.digest()
        self._states[digest] = state
        await self._inbox.send(Aggregated(round=effect.round, updates=effect.updates, state=digest))

    async def _thread(self, activity: Activity, work: Callable[..., T], *arguments: object) -> T:
        def timed() -> T:
            with self.journal.working(activity):
                return work(*arguments)

        return await trio.to_thread.run_sync(timed)

    # --- updates ------------------------------------------------------------------

    async def _reveal(self, effect: Reveal) -> None:
        update = self._own.pop(effect.update, None)
        if update is None:
            # restarted since: the digest was signed, and the same training gives the same bytes, or nothing does
            return
        await trio.to_thread.run_sync(self.store.put_blob, effect.update, update)
        if len(update) <= params.UPDATE_INLINE_BYTES_MAX:
            await self.network.publish(_UPDATE + update)
        else:
            await self.network.publish(_ANNOUNCE + effect.update)
        self._receive_body(update, self.network.peer_id)

    def _receive_body(self, update: bytes, origin: bytes) -> None:
        if len(update) > self.compute.update_bytes_max:
            self.journal.refused["update is too long"] += 1
            return
        digest = sha256(update).digest()
        wanted = self._wanted.pop(digest, None)
        if wanted is not None:
            for want in wanted.values():
                self._nursery.start_soon(self._report_held, want, update)
            return
        # the body may overtake its COMMIT; nobody gets to fill this node's memory with bodies that nothing names
        strays = self._strays.setdefault(origin, OrderedDict())
        strays[digest] = update
        while len(strays) > params.STRAY_BODIES_PER_MEMBER_MAX:
            strays.popitem(last=False)

    def _on_announced(self, digest: Digest, origin: bytes) -> None:
        if digest in self._wanted:
            self._fetch(digest, first=origin)

    def _want(self, want: WantUpdate) -> None:
        update = next((strays[want.update] for strays in self._strays.values() if want.update in strays), None)
        update = update or self.body(want.update)
        if update is not None:
            self._nursery.start_soon(self._report_held, want, update)
            return
        self._wanted.setdefault(want.update, {})[want.author] = want
        if want.fetch:
            author = next(
                (member.peer_id for member in self.machine.epoch.members if member.address == want.author), None
            )
            self._fetch(want.update, first=author)

    def _fetch(self, digest: Digest, first: bytes | None) -> None:
        if digest not in self._fetching:
            self._fetching.add(digest)
            self._nursery.start_soon(self._fetch_from, digest, first)

    async def _fetch_from(self, digest: Digest, first: bytes | None) -> None:
        connected = self.network.connected()
        others = sorted(connected - {first})
        random.shuffle(others)
        holders = [*([first] if first in connected and first is not None else []), *others]
        try:
            update = await self.network.fetch(digest, holders, bytes_max=self.compute.update_bytes_max)
        finally:
            self._fetching.discard(digest)
        if update is not None:
            self._receive_body(update, self.network.peer_id)

    async def _report_held(self, want: WantUpdate, update: bytes) -> None:
        """Stored before it counts as held: from here on others may ask for it, and aggregation relies on it."""
        valid = await self._thread("train", self.compute.is_valid, update, want.round, want.author)
        if valid:
            await trio.to_thread.run_sync(self.store.put_blob, want.update, update)
        await self._inbox.send(UpdateHeld(round=want.round, author=want.author, update=want.update, valid=valid))

    # --- rounds -------------------------------------------------------------------

    async def _close(self, closed: Closed) -> None:
        """On disk before anything of the next round is signed."""
        head = head_digest(closed.head)
        self._heads[closed.round] = head
        self._last_state = closed.head.state
        await trio.to_thread.run_sync(
            self.store.put_round, closed.round, closed.head, closed.contents, closed.certificate, closed.packets
        )
        self._own.clear()
        self._wanted.clear()
        self._strays.clear()
        self._forget_states(closed.head.state)
        state = self._states[closed.head.state]
        now_ms = self.journal.now_ms
        seconds = (now_ms - self._round_start_ms) / 1000
        self._round_start_ms = now_ms
        self._nursery.start_soon(self._report_round, closed, head, state, seconds)

    def _forget_states(self, newest: Digest) -> None:
        """Keeps the states that an audit or its verdict may still start from."""
        self._states.move_to_end(newest)
        while len(self._states) > 2 * params.HISTORY_ROUNDS:
            self._states.popitem(last=False)

    async def _report_round(self, closed: Closed, head: Digest, state: State, seconds: float) -> None:
        accuracy = await trio.to_thread.run_sync(self.compute.evaluate, state)
        self.journal.write(
            "round",
            {
                "round": closed.round,
                "epoch": closed.head.epoch,
                "view": closed.view,
                "head": head.hex(),
                "state": closed.head.state.hex(),
                "accuracy": round(accuracy, 6),
                "seconds": round(seconds, 4),
                "commits": len(closed.contents.commits),
                "updates": len(closed.contents.updates),
                "bytes_sent": self.network.counters["bytes_sent"],
            },
        )

    # --- resync -------------------------------------------------------------------

    def _resync(self, round: Round) -> None:
        if not self._is_resyncing:
            self._is_resyncing = True
            self._nursery.start_soon(self._ask, round)

    async def _ask(self, round: Round) -> None:
        """What this node lacks of the round: from its own store, as after a restart, else from another member."""
        try:
            stored = await trio.to_thread.run_sync(self.store.round, round)
            if stored is not None:
                await self._take_reply(stored.packets, (stored.certificate,))
                return
            connected = sorted(self.network.connected())
            if not connected:
                return
            try:
                data = await self.network.request(
                    random.choice(connected),
                    RESYNC_PROTOCOL,
                    encode(self.machine.resync_request()),
                    reply_bytes_max=params.RESYNC_FRAME_BYTES_MAX,
                    timeout_s=params.RESYNC_TIMEOUT_S,
                )
                reply = decode(ResyncReply, data, bytes_max=params.RESYNC_FRAME_BYTES_MAX)
            except (Unreachable, Refused, Malformed):
                self.journal.refused["resync without an answer"] += 1
                return
            await self._take_reply(reply.packets, reply.certificates)
        finally:
            self._is_resyncing = False

    async def _take_reply(self, packets: tuple[Packet, ...], certificates: tuple[Certificate, ...]) -> None:
        for packet in packets:
            await self._inbox.send(PacketReceived(packet=packet))
        for certificate in certificates:
            await self._inbox.send(CertificateReceived(certificate=certificate))

    async def _answer_resync(self, peer: bytes, data: bytes) -> bytes:
        request = decode(ResyncRequest, data, bytes_max=params.RESYNC_REQUEST_BYTES_MAX)
        return encode(self.machine.resync_reply(request, self._load_round))

    def _load_round(self, round: Round) -> tuple[tuple[Packet, ...], Certificate] | None:
        stored = self.store.round(round)
        return None if stored is None else (stored.packets, stored.certificate)

    # --- chain --------------------------------------------------------------------

    async def _read_chain(self, block_hash: Digest) -> None:
        """The registry as of the newest confirmed block, and of the block asked for if that is confirmed."""

        def read() -> list[ChainSeen]:
            newest = self.chain.confirmed_block()
            asked = self.chain.block_of(block_hash)
            blocks = {newest} | ({asked} if asked is not None and asked.number <= newest.number else set())
            return [
                ChainSeen(
                    number=block.number, block=block.hash, registrations=tuple(self.chain.registrations(block.hash))
                )
                for block in sorted(blocks)
            ]

        try:
            seen = await self._ask_chain(read)
        except ChainError as error:
            self.journal.write("chain_error", {"what": "reading the registry", "error": str(error)})
            return
        for event in seen:
            self.network.admit([entry.peer_id for entry in event.registrations])
            await self._inbox.send(event)

    async def _ask_chain(self, work: Callable[[], T]) -> T:
        with self.journal.waiting("chain"):
            # trio-typing, which libp2p brings, shadows trio's own types with old ones
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg]

    async def _submit(self, effect: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None:
        """When this member's turn comes, and unless another one has done it.  A chain out of reach is asked again."""
        try:
            turn_s = trio.current_time() + effect.delay_ms / 1000
            delay_s = params.CHAIN_RETRY_S
            while True:
                try:
                    if await self._ask_chain(partial(self._is_done, effect)):
                        return
                    if trio.current_time() >= turn_s:
                        self._journal_sent(effect, await self._ask_chain(partial(self._send, effect)))
                        return
                    await trio.sleep(params.CHAIN_RETRY_S)
                except ChainUnreachable as error:
                    self.journal.write("chain_error", {"what": type(effect).__name__, "error": str(error)})
                    await trio.sleep(delay_s)
                    delay_s = min(2 * delay_s, params.CHAIN_RETRY_S_MAX)
                except ChainError as error:
                    # another member may have come first, between the question and the sending
                    if not await self._ask_chain(partial(self._is_done, effect)):
                        self.journal.write("chain_error", {"what": type(effect).__name__, "error": str(error)})
                    return
        finally:
            self._chain_duties -= 1
            self._changed.set()
            self._changed = trio.Event()

    def _is_done(self, effect: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> bool:
        match effect:
            case SubmitAnchor():
                return self.chain.anchored_head(effect.head.epoch) is not None
            case SubmitVerdict():
                return self.chain.is_slashed_by_verdict(effect.proof, effect.members)
            case SubmitEquivocation():
                return self.chain.is_slashed_by_equivocation(effect.proof, effect.accused)

    def _send(self, effect: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> Receipt:
        match effect:
            case SubmitAnchor():
                return self.chain.anchor(
                    head=effect.head,
                    certificate=effect.certificate,
                    members=effect.members,
                    next_members=effect.next_members,
                )
            case SubmitVerdict():
                return self.chain.slash_by_verdict(effect.proof, effect.members)
            case SubmitEquivocation():
                return self.chain.slash_by_equivocation(effect.proof, effect.accused)

    def _journal_sent(self, effect: SubmitAnchor | SubmitVerdict | SubmitEquivocation, receipt: Receipt) -> None:
        tx = "0x" + receipt.tx.hex()
        match effect:
            case SubmitAnchor():
                head = effect.head
                self.journal.write(
                    "anchor",
                    {
                        "epoch": head.epoch,
                        "round": head.round,
                        "head": head_digest(head).hex(),
                        "tx": tx,
                        "gas": receipt.gas,
                    },
                )
            case SubmitVerdict():
                entry = effect.proof.entry
                loser = entry.accuser if EVIDENCE_NAMES[entry.outcome] == "false" else entry.accused
                self._journal_slash(effect.members[loser], EVIDENCE_NAMES[entry.outcome], tx)
            case SubmitEquivocation():
                self._journal_slash(effect.accused, "equivocation", tx)

    def _journal_slash(self, member: bytes, evidence: str, tx: str) -> None:
        self.journal.write("slash", {"member": "0x" + member.hex(), "evidence": evidence, "tx": tx})
