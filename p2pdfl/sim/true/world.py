"""Whole peers side by side, in virtual time, watched by the checkers."""

from __future__ import annotations

import random
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import trio
from libp2p.peer.id import ID

from p2pdfl.base import codec, params
from p2pdfl.base.codec import decode, encode
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Head, Packet, Round
from p2pdfl.crypto.envelope import Domain, head_digest, recover
from p2pdfl.crypto.keys import derive
from p2pdfl.node.participant import Parts
from p2pdfl.node.resync import RESYNC_PROTOCOL
from p2pdfl.protocol.events import Closed, Effect, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.protocol.resync import ResyncReply
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.sim.clock import Clock
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.log import Log
from p2pdfl.sim.network import Network, PlainNetwork
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.true import runtime
from p2pdfl.sim.true.chain import CHAIN_ID, Chain
from p2pdfl.sim.true.learner import Memory, TinyLearner
from p2pdfl.sim.true.network import Hub
from p2pdfl.sim.true.peer import Crash, MakeLearner, Observer, Peer, Surroundings

LOOK_S = 0.25
"""Between looks whether it is over."""
ANYWHERE = "/dev/shm"
"""Where homes are, if this machine has that: no write of theirs waits for a real disk."""
PACKET = b"\x01"
"""What `node.node` puts before a packet."""

ByzantineParts = Callable[[Callable[[], None]], Parts]
"""Given how to die."""


@dataclass(frozen=True, kw_only=True)
class PeerPlan:
    """What is special about a peer."""

    parts: ByzantineParts | None = None
    clock: Clock = field(default_factory=Clock)
    start_s: float = 0.0
    train_s: float = 0.01
    work_ms_max: float = 4.0
    leave_after: Round | None = None
    crashes: tuple[Crash, ...] = ()
    disk_fails_s: tuple[float, float] | None = None
    """From when until when no commit succeeds."""


@dataclass(frozen=True, slots=True)
class State:
    """As `invariants.observed.PeerState`."""

    _peer: Peer
    _all: Sequence[Address]

    @property
    def is_up(self) -> bool:
        return self._peer.is_up

    @property
    def is_finished(self) -> bool:
        run = self._peer.run
        return run is not None and run.is_finished

    @property
    def is_muted(self) -> bool:
        run = self._peer.run
        return run is not None and run.is_muted

    @property
    def round(self) -> Round:
        run = self._peer.run
        return -1 if run is None else run.round

    @property
    def members(self) -> Sequence[Address]:
        run = self._peer.run
        return self._all if run is None else run.epoch.addresses

    @property
    def first_round(self) -> Round:
        return self._peer.first_round

    @property
    def heads(self) -> Mapping[Round, Digest]:
        rows = self._peer.disk.read("SELECT round, head FROM rounds")
        return {int(round): head_digest(decode(Head, head, bytes_max=len(head))) for round, head in rows}

    @property
    def banned(self) -> Mapping[Address, str]:
        run = self._peer.run
        return {} if run is None else run.banned


class TrueWorld:
    def __init__(
        self,
        task: Task,
        peer_count: int,
        *,
        seed: int,
        directory: Path,
        network: Network | None = None,
        sharing: Sharing | None = None,
        learner: MakeLearner | None = None,
        plans: Mapping[int, PeerPlan] | None = None,
        calm_s: float = 0.0,
        block_s: float = 0.5,
    ) -> None:
        """directory: empty, for the homes."""
        self.task = task
        self.calm_s = calm_s
        self.log = Log()
        """Of the network's traffic."""
        plans = plans or {}
        seeds = [random.Random(f"key/{seed}/{index}").randbytes(32) for index in range(peer_count)]
        seeds.sort(key=lambda each: derive(each).address)
        self.addresses = tuple(derive(each).address for each in seeds)
        self.peer_ids = [ID(b"\x12\x20" + sha256(address).digest()).to_base58().encode() for address in self.addresses]
        self.domain = Domain(chain_id=CHAIN_ID, contract=bytes(20))
        self.hub = Hub(
            network or PlainNetwork(latency_ms=(5, 40), is_lost=lambda sender, receiver, now_ms: False),
            random.Random(f"network/{seed}"),
            self.log,
            self.peer_ids,
        )
        self.chain = Chain(task=task, domain=self.domain, rng=random.Random(f"chain/{seed}"), block_s=block_s)
        self.chain.on_anchored = self._on_anchored
        self.byzantine = frozenset(index for index, plan in plans.items() if plan.parts is not None)
        memory = Memory()
        around = Surroundings(
            task=task,
            hub=self.hub,
            chain=self.chain,
            learner=learner or (lambda process, train_s: TinyLearner(task, process, memory, train_s=train_s)),
            sharing=StandInSharing() if sharing is None else sharing,
            seed=seed,
        )
        self.peers = [
            self._peer(index, key_seed, directory / f"peer{index}", around, plans.get(index, PeerPlan()))
            for index, key_seed in enumerate(seeds)
        ]
        self.checkers: Checkers | None = None
        self.ended_s = 0.0
        self._seed = seed
        self._actions: list[tuple[float, Callable[[], object]]] = []
        self._authors: dict[bytes, Address] = {}

    def _peer(self, index: int, key_seed: bytes, directory: Path, around: Surroundings, plan: PeerPlan) -> Peer:
        directory.mkdir()
        peer = Peer(
            index=index,
            key_seed=key_seed,
            directory=directory,
            around=around,
            observer=Observer(
                on_effect=partial(self._on_effect, index),
                on_published=partial(self._on_published, index),
                on_answered=partial(self._on_answered, index),
                on_broken=partial(self._on_broken, index),
            ),
            clock=plan.clock,
            start_s=plan.start_s,
            train_s=plan.train_s,
            work_ms_max=plan.work_ms_max,
            leave_after=plan.leave_after,
            crashes=deque(plan.crashes),
            calm_s=self.calm_s,
        )
        if plan.parts is not None:
            peer.parts = plan.parts
        if plan.disk_fails_s is not None:
            from_s, until_s = plan.disk_fails_s
            peer.disk.is_failing = lambda: from_s <= trio.current_time() < until_s
        return peer

    # --- running it --------------------------------------------------------------------

    def at(self, at_s: float, action: Callable[[], object]) -> None:
        """Before it runs."""
        self._actions.append((at_s, action))

    def run(self, *, until_s: float, until: Callable[[], bool] | None = None) -> None:
        runtime.run(partial(self._main, until_s, until or self.is_over), self._seed)

    async def _main(self, until_s: float, until: Callable[[], bool]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hub.carry)
            nursery.start_soon(self.chain.mine)
            for peer in self.peers:
                nursery.start_soon(peer.live)
            nursery.start_soon(_act, self.calm_s, self._calm_down)
            for at_s, action in self._actions:
                nursery.start_soon(_act, at_s, action)
            if self.checkers is not None:
                nursery.start_soon(self._look, self.checkers)
            with trio.move_on_at(until_s):
                while not until():  # noqa: ASYNC110  nobody tells when
                    await trio.sleep(LOOK_S)
            self.ended_s = trio.current_time()
            if self.checkers is not None and not self.checkers.is_over:
                self.checkers.at_end()
                self._compare_models(self.checkers)
            nursery.cancel_scope.cancel()

    async def _look(self, checkers: Checkers) -> None:
        await trio.sleep_until(checkers.first_look_ms / 1000)
        while not checkers.is_over:
            checkers.on_time()
            await trio.sleep(checkers.look_every_ms / 1000)

    def _calm_down(self) -> None:
        for peer in self.honest:
            if peer.process is not None:
                peer.process.crash_at_step = None

    @property
    def honest(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.index not in self.byzantine]

    def is_over(self) -> bool:
        """Whether all honest peers have a result, and the chain all anchors, confirmed."""
        checkers = self.checkers
        if checkers is not None and checkers.is_over:
            return True
        is_done = all((peer.result is not None and peer.is_up) or peer.broken is not None for peer in self.honest)
        return is_done and len(self.chain.confirmed.state.anchored) == self.task.epoch_count

    def watch(self, *, bound_ms: int, amnesiacs: Collection[int] = ()) -> Checkers:
        self.checkers = Checkers(
            self,
            byzantine=self.byzantine,
            amnesiacs=amnesiacs,
            bound_ms=bound_ms,
            calm_ms=round(1000 * self.calm_s),
        )
        return self.checkers

    # --- as the invariants see it --------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return round(trio.current_time() * 1000)

    def state(self, index: int) -> State:
        return State(self.peers[index], self.addresses)

    def events_digest(self) -> str:
        """Over all event logs, those of lost homes too."""
        digest = sha256()
        for peer in self.peers:
            for path in sorted(peer.directory.glob("*/events.jsonl")):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    # --- what peers do -------------------------------------------------------------------

    def _on_effect(self, index: int, effect: Effect) -> None:
        checkers = self.checkers
        if checkers is None:
            return
        match effect:
            case Closed():
                checkers.on_closed(index, effect)
            case Notice():
                checkers.on_notice(index, effect)
            case SubmitAnchor() | SubmitVerdict() | SubmitEquivocation():
                checkers.on_submitted(index, effect)
            case _:
                pass

    def _on_published(self, index: int, data: bytes) -> None:
        if data[:1] != PACKET or self.checkers is None:
            return
        self._check_synced(index, data[1:])
        self.checkers.on_sent(index, codec.decode(Packet, data[1:], bytes_max=params.PACKET_BYTES_MAX))

    def _on_answered(self, index: int, protocol: str, reply: bytes) -> None:
        if protocol != RESYNC_PROTOCOL:
            return
        for packet in decode(ResyncReply, reply, bytes_max=params.RESYNC_FRAME_BYTES_MAX).packets:
            if self._author(packet) == self.addresses[index]:
                self._check_synced(index, encode(packet))

    def _check_synced(self, index: int, packet: bytes) -> None:
        """Nothing that is signed is shown before it is synced: a crash would have the slot signed again."""
        if index not in self.byzantine and packet not in self.peers[index].disk.envelopes:
            self.violated(f"peer{index} shows what it has signed and not synced")

    def _author(self, packet: Packet) -> Address:
        known = self._authors.get(packet.signature)
        if known is None:
            known = self._authors[packet.signature] = recover(self.domain, packet.envelope, packet.signature)
        return known

    def _on_anchored(self, anchor: SubmitAnchor) -> None:
        if self.checkers is not None:
            self.checkers.on_anchored(anchor)

    def _on_broken(self, index: int, error: Exception) -> None:
        if self.checkers is None:
            raise error
        self.checkers.on_broken(index, error)

    def _compare_models(self, checkers: Checkers) -> None:
        """Every honest peer ends with the same model file."""
        files = {sha256((peer.home / "model.safetensors").read_bytes()).digest() for peer in self.honest if peer.result}
        if len(files) > 1:
            self.violated(f"{len(files)} different models at the end")

    def violated(self, what: str) -> None:
        assert self.checkers is not None
        self.checkers.history.violated(what)


async def _act(at_s: float, action: Callable[[], object]) -> None:
    await trio.sleep_until(at_s)
    action()


def homes() -> tempfile.TemporaryDirectory[str]:
    """Where peers live while a world runs."""
    return tempfile.TemporaryDirectory(prefix="p2pdfl-", dir=ANYWHERE if Path(ANYWHERE).is_dir() else None)
