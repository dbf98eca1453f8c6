"""A whole peer, and its supervisor, who starts it again after a crash or when its disk has failed it."""

from __future__ import annotations

import random
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from p2pdfl.base.task import Task
from p2pdfl.base.types import Entropy, Round
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning.learner import Learner
from p2pdfl.node import home
from p2pdfl.node.home import Home
from p2pdfl.node.node import NodeResult
from p2pdfl.node.participant import Participant, Parts
from p2pdfl.node.ports import Machine
from p2pdfl.node.store import StoreError
from p2pdfl.protocol.events import Closed, Effect, Event, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.sim.clock import Clock
from p2pdfl.sim.true.chain import Chain, Client
from p2pdfl.sim.true.disk import Disk
from p2pdfl.sim.true.network import Connection, Hub
from p2pdfl.sim.true.process import Killed, Process
from p2pdfl.sim.true.workers import PeerClock, Workers

MakeLearner = Callable[[Process, float], Learner]
"""Given the process that computes, and for how long training occupies it."""
LINGER_S = 10**6
"""Who has finished answers the others until the world ends."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    at_step: int
    """Of the process, counted in what it does with its devices."""
    down_s: float
    is_power_lost: bool = False
    is_home_lost: bool = False
    """All but the key."""


@dataclass(kw_only=True)
class Observer:
    """Who is told what the peer does."""

    on_effect: Callable[[Effect], None]
    on_published: Callable[[bytes], None]
    on_answered: Callable[[str, bytes], None]
    on_broken: Callable[[Exception], None]


@dataclass(kw_only=True)
class Surroundings:
    """What all peers share."""

    task: Task
    hub: Hub
    chain: Chain
    learner: MakeLearner
    sharing: Sharing
    seed: int


class ObservedMachine:
    """A machine as it is, and somebody who sees what it wants done."""

    def __init__(self, machine: Machine, see: Callable[[Effect], None], on_started: Callable[[], None]) -> None:
        self._machine = machine
        self._see = see
        self._on_started = on_started
        self.next_deadline_ms = machine.next_deadline_ms
        self.resync_request = machine.resync_request

    @property
    def epoch(self) -> EpochMembers:
        return self._machine.epoch

    def start(self, now_ms: int) -> list[Effect]:
        effects = self._machine.start(now_ms)
        self._on_started()
        return self._seen(effects)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        return self._seen(self._machine.handle(event, now_ms))

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        return self._machine.resync_reply(request, load)

    def _seen(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Closed | Notice | SubmitAnchor | SubmitVerdict | SubmitEquivocation):
                self._see(effect)
        return effects


@dataclass(kw_only=True)
class Peer:
    index: int
    key_seed: bytes
    directory: Path
    around: Surroundings
    parts: Callable[[Callable[[], None]], Parts] = lambda die: Parts()
    """die: how it crashes if that is what it does."""
    observer: Observer
    clock: Clock = field(default_factory=Clock)
    start_s: float = 0.0
    train_s: float = 0.01
    work_ms_max: float = 4.0
    leave_after: Round | None = None
    crashes: deque[Crash] = field(default_factory=deque)
    calm_s: float = 0.0
    """From when on it does not crash."""
    disk: Disk = field(default_factory=Disk)
    run: Run | None = None
    """Of the process that lives, once it has begun."""
    process: Process | None = None
    result: NodeResult | None = None
    first_round: Round = 0
    lives: int = 0
    broken: Exception | None = None

    def __post_init__(self) -> None:
        self.keys: Keys = derive(self.key_seed)
        self.rng = random.Random(f"peer/{self.around.seed}/{self.index}")
        self.entropy: Entropy = random.Random(f"entropy/{self.around.seed}/{self.index}").randbytes

    @property
    def is_up(self) -> bool:
        return self.process is not None and not self.process.is_dead

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    async def live(self) -> None:
        """One life after the other."""
        await trio.sleep(self.start_s)
        while True:
            crash = self._next_crash()
            self.process = Process(crash_at_step=None if crash is None else crash.at_step)
            self.lives += 1
            failure = await self._live_once(self.process)
            was_crash = self.process.is_dead
            self.process.is_dead = True
            self.around.hub.leave(self.index)
            self.run = None
            if was_crash and crash is not None:
                self._suffer(crash)
                await trio.sleep(crash.down_s)
            elif was_crash:
                return  # by its own hand, or by the world's
            elif failure is not None and isinstance(failure, StoreError) and self.disk.failures:
                await trio.sleep(self.rng.uniform(0.5, 2.0))
            else:
                self.broken = failure or AssertionError("it ended")
                self.observer.on_broken(self.broken)
                return

    def _next_crash(self) -> Crash | None:
        return self.crashes.popleft() if self.crashes and trio.current_time() < self.calm_s else None

    def _suffer(self, crash: Crash) -> None:
        if crash.is_power_lost:
            self.disk.lose_power(self.rng)
        if crash.is_home_lost:
            # what it has shown before, others may hand back to it, and it to others
            self.disk = Disk(is_failing=self.disk.is_failing, envelopes=self.disk.envelopes)
            kept = self.directory / f"life{self.lives}"
            shutil.move(self.home, kept)
            self.home.mkdir()
            shutil.copy(kept / "key", self.home / "key")

    async def _live_once(self, process: Process) -> Exception | None:
        """What it died of, None for a crash."""
        try:
            with process.scope:
                async with trio.open_nursery() as process.nursery:
                    await self._take_part(process)
        except BaseException as error:
            if process.is_dead:
                return None
            if not isinstance(first := _first(error), Exception):
                raise
            return first
        return None

    async def _take_part(self, process: Process) -> None:
        around, task = self.around, self.around.task
        parts = self.parts(process.kill)
        connect = self.disk.connect(process)
        with home.opened(
            self.home,
            task,
            entropy=lambda count: self.key_seed,
            tell=lambda event, fields: None,
            open_store=lambda _: parts.store(self.directory / home.STORE, connect),
            clock=PeerClock(self.clock),
        ) as own:
            (self.home / home.STORE).touch()  # what tells a home that has a store from one that has lost it
            connection = around.hub.join(self.index, process, own.store.blob)
            connection.on_published = self.observer.on_published
            connection.on_answered = self.observer.on_answered
            await self._participant(process, own, connection, parts).live()

    def _participant(self, process: Process, own: Home, connection: Connection, parts: Parts) -> Participant:
        around = self.around
        rng = random.Random(f"life/{around.seed}/{self.index}/{self.lives}")
        return Participant(
            task=around.task,
            home=own,
            learner=around.learner(process, self.train_s),
            parts=Parts(store=parts.store, machine=lambda run: self._observed(parts, run), compute=parts.compute),
            network=connection,
            chain=Client(around.chain, own.keys.address, process, rng),
            workers=Workers(process, rng, work_ms_max=self.work_ms_max),
            entropy=self.entropy,
            rng=rng,
            say=lambda text: None,
            on_result=self._on_result,
            linger_s=LINGER_S,
            leave_after=self.leave_after,
            sharing=around.sharing,
        )

    def _observed(self, parts: Parts, run: Run) -> Machine:
        def on_started() -> None:
            self.run = run
            if not self.disk.rounds:
                self.first_round = run.round

        closed: dict[Round, Closed] = {}

        def see(effect: Effect) -> None:
            """A round counts as closed when it is on disk: before that come the own votes for it."""
            if isinstance(effect, Closed) and effect.round not in self.disk.rounds:
                closed[effect.round] = effect
            else:
                self.observer.on_effect(effect)

        self.disk.on_round = lambda round: self.observer.on_effect(closed.pop(round))
        return ObservedMachine(parts.machine(run), see, on_started)

    def _on_result(self, result: NodeResult) -> None:
        self.result = result


def _first(error: BaseException) -> BaseException:
    """Of a group, what is not the end of a process."""
    if isinstance(error, BaseExceptionGroup):
        return next((_first(each) for each in error.exceptions if not isinstance(_first(each), Killed)), error)
    return error
