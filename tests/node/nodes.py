"""A chain, a small task on it, and members as `peer` makes them, all in one process on loopback."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio

from p2pdfl.base.task import Deployment, Task
from p2pdfl.base.workers import Threads
from p2pdfl.chain.client import ChainClient, fund
from p2pdfl.chain.devchain import DevChain, devchain
from p2pdfl.crypto.envelope import Domain, Signer, possession_digest
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning.learner import Learner, measure
from p2pdfl.net import Limits, Network, open_network
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.checkpoint_sync import Position
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.node import Node, NodeResult, admit
from p2pdfl.node.store import Store
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.round import Diverged
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.start import Genesis, at_genesis
from p2pdfl.scenario.ledger import publish

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ETH = 10**18


@cache
def measured(**changes: Any) -> Task:
    """Five rounds in one epoch, a second or so."""
    fields: dict[str, Any] = {
        "name": "small",
        "training_rounds": 2,
        "verdict_rounds": 1,
        "epoch_rounds": 3,
        "local_steps": 1,
        "confirmations": 0,
        "audit_fraction": 0.5,
        "commit_ms": 4000,
        "reveal_ms": 2000,
        "grace_ms": 200,
        "view_ms": 2000,
        "resync_ms": 300,
    }
    return measure(Task.model_validate(fields | changes))


@cache
def learner(task: Task) -> Learner:
    return Learner(task)


def keys_of(name: str) -> Keys:
    return derive(sha256(f"tests/nodes/{name}".encode()).digest())


@dataclass
class Place:
    """Where a task is published.  Registrations go straight to the chain: `peer` has its own tests."""

    task: Task
    chain: DevChain
    deployment: Deployment
    directory: Path
    addresses: list[str] = field(default_factory=list)
    """Of the network, to bootstrap from."""

    def client(self, name: str) -> ChainClient:
        return ChainClient(self.deployment, self.task, keys_of(name).chain_secret)

    def config(self) -> RunConfig:
        return RunConfig(
            task=self.task,
            task_id=self.task.task_id(),
            domain=Domain(chain_id=self.deployment.chain_id, contract=self.deployment.contract),
        )

    def register(self, name: str, peer_id: bytes) -> None:
        keys = keys_of(name)
        fund(self.chain.url, keys.address, self.task.deposit_wei + ETH)
        client = self.client(name)
        digest = possession_digest(client.domain, self.task.task_id(), keys.address, peer_id)
        client.register(peer_id, keys.pvss_key, Signer(keys.pvss_secret).sign_digest(digest))
        client.close()

    def start(self, *names: str) -> None:
        client = self.client(names[0])
        client.start([keys_of(name).address for name in names])
        client.close()

    def genesis(self) -> Genesis:
        client = self.client("anyone")
        block = client.start_block()
        assert block is not None
        registrations = tuple(client.registrations(block.hash))
        client.close()
        return Genesis(closing_number=block.number, closing_block=block.hash, registrations=registrations)


@contextmanager
def place(directory: Path, task: Task) -> Iterator[Place]:
    with devchain(block_s=0.2) as chain:
        published = publish(chain.url, task)
        assert published.chain is not None
        yield Place(task=task, chain=chain, deployment=published.chain, directory=directory)


@dataclass
class Member:
    name: str
    node: Node
    run: Run
    event_log: EventLog
    told: list[tuple[str, dict[str, Any]]]
    heard: trio.Event = field(default_factory=trio.Event)
    result: NodeResult | None = None
    diverged: str | None = None
    done: trio.Event = field(default_factory=trio.Event)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.told if event == name]

    async def until(self, condition: Callable[[Member], bool]) -> None:
        while not condition(self):
            await self.heard.wait()

    async def until_closed(self, round: int) -> None:
        await self.until(lambda member: any(fields["round"] >= round for fields in member.events("round")))

    async def live(self, linger_s: float = 30.0) -> None:
        def on_result(result: NodeResult) -> None:
            self.result = result
            self.done.set()

        await self.node.run(on_result=on_result, linger_s=linger_s)


@contextmanager
def member(
    at: Place, name: str, network: Network, *, computes: type[Compute] = Compute, position: Position | None = None
) -> Iterator[Member]:
    keys, task = keys_of(name), at.task
    home = at.directory / name
    home.mkdir(exist_ok=True)
    config = at.config()
    genesis = at.genesis()
    admit(network, genesis.registrations)
    client = at.client(name)
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, fields: Any) -> None:
        told.append((event, dict(fields)))
        this.heard.set()
        this.heard = trio.Event()

    with Store(home / "store.sqlite") as store, EventLog(home / "events.jsonl", tell) as event_log:
        signed = [packet for round in range(task.total_rounds) for packet in store.envelopes(round)]
        start = position.start if position else at_genesis(config, genesis)
        run = Run(config, Signer(keys.chain_secret), start, signed)
        node = Node(
            machine=run,
            compute=computes(learner(task), config.task_id, keys, secrets.token_bytes),
            store=store,
            network=network,
            workers=Threads(),
            outbox=ChainOutbox(chain=client, workers=Threads(), event_log=event_log),
            event_log=event_log,
            home=home,
            first_round=position.start.round if position else 0,
            state=position.state if position else None,
            history_rounds=config.history_rounds,
            rng=random.Random(name),
        )
        this = Member(name=name, node=node, run=run, event_log=event_log, told=told)
        try:
            yield this
        finally:
            client.close()


class Town:
    """Members that live side by side until the block ends, each with its own network."""

    def __init__(self, at: Place, nursery: trio.Nursery, limits: Limits | None = None) -> None:
        self.at = at
        self.limits = limits
        self.networks: dict[str, Network] = {}
        self.members: dict[str, Member] = {}
        self._nursery = nursery
        self._leaving: dict[str, trio.Event] = {}
        self._left: dict[str, trio.Event] = {}

    async def open(self, *names: str) -> None:
        for name in names:
            self.networks[name] = await self._nursery.start(self._hold, name)

    async def found(self, *names: str) -> None:
        """Networks, registrations, and the start of epoch 0 with these members."""
        await self.open(*names)
        for name in names:
            await trio.to_thread.run_sync(self.at.register, name, self.networks[name].peer_id)
        await trio.to_thread.run_sync(self.at.start, *names)
        for name in names:
            await self.networks[name].wait_connected(len(names) - 1)

    async def begin(self, *names: str, **options: Any) -> None:
        for name in names:
            self.members[name] = await self._nursery.start(partial(self._live, name, **options))

    async def stop(self, *names: str) -> None:
        for name in names:
            self._leaving[name].set()
        for name in names:
            await self._left[name].wait()

    async def done(self, *names: str) -> list[NodeResult]:
        found = []
        for name in names:
            await self.members[name].done.wait()
            result = self.members[name].result
            assert result is not None
            found.append(result)
        return found

    async def _hold(self, name: str, *, task_status: Any) -> None:
        self._leaving[name], self._left[name] = trio.Event(), trio.Event()
        async with open_network(
            key_seed=keys_of(name).peer_secret,
            listen=[LOOPBACK],
            bootstrap=self.at.addresses[:1],
            topic="small",
            limits=self.limits,
            blob_source=lambda digest: self.members[name].node.store.blob(digest) if name in self.members else None,
        ) as network:
            self.at.addresses += network.addresses
            task_status.started(network)
            await self._leaving[name].wait()
        self._left[name].set()

    async def _live(self, name: str, *, task_status: Any, **options: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await self._leaving[name].wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            with member(self.at, name, self.networks[name], **options) as one:
                task_status.started(one)
                try:
                    await one.live()
                except* Diverged as group:
                    error: BaseException = group
                    while isinstance(error, BaseExceptionGroup):
                        error = error.exceptions[0]
                    one.diverged = str(error)
                    one.done.set()


@asynccontextmanager
async def town(
    directory: Path, task: Task, *, limit_s: float = 60.0, limits: Limits | None = None
) -> AsyncIterator[Town]:
    learner(task)
    with place(directory, task) as at:
        async with town_at(at, limit_s=limit_s, limits=limits) as here:
            yield here


@asynccontextmanager
async def town_at(at: Place, *, limit_s: float = 60.0, limits: Limits | None = None) -> AsyncIterator[Town]:
    with trio.fail_after(limit_s):
        async with trio.open_nursery() as nursery:
            yield (here := Town(at, nursery, limits))
            await here.stop(*here.networks)
            nursery.cancel_scope.cancel()
