"""One peer from its registration to its last round, on the ports that it is handed.

registration    a deposit on chain, then the list of the first epoch
checkpoint      the own one, another member's, or round 0
node            the rounds
linger          answer those who are still at it
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Entropy, Round
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Signer
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning.learner import Learner
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.checkpoint_sync import CheckpointSync, Position
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.home import Home
from p2pdfl.node.node import Node, NodeResult, admit
from p2pdfl.node.ports import Chain, Connect, Machine, Network, Workers
from p2pdfl.node.registration import Registrar
from p2pdfl.node.store import Store
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.protocol.start import Genesis

CONNECT_S = 30.0
"""How long a peer waits to see all other members before the first round; the rounds work with fewer."""
CONNECTIONS_WATCH_S = 0.25
"""Between looks at who is connected; what is seen is told, and nothing rests on it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a peer is made of.  To behave otherwise, it is given other parts, of which nothing here knows."""

    store: Callable[[Path, Connect], Store] = Store
    machine: Callable[[Run], Machine] = lambda run: run
    compute: Callable[[Learner, Digest, Keys, Entropy, Sharing], Compute] = Compute


@dataclass(kw_only=True)
class Participant:
    task: Task
    home: Home
    learner: Learner
    parts: Parts
    network: Network
    chain: Chain
    workers: Workers
    entropy: Entropy
    rng: random.Random
    """Whom to ask; an attacker must not be able to tell."""
    say: Callable[[str], None]
    on_result: Callable[[NodeResult], None]
    fund: Callable[[Address, int], None] | None = None
    linger_s: float
    leave_after: Round | None = None
    """Asks the contract to let this peer go once that round has closed."""
    sharing: Sharing = pvss

    async def live(self) -> None:
        genesis = await self._registered()
        admit(self.network, genesis.registrations)
        if self.home.is_store_lost:
            self.say("the store was lost: this peer follows, and signs nothing before an epoch that is chosen later")
        if not self.home.signed:
            await self._connect(genesis)
        config = RunConfig(task=self.task, task_id=self.task.task_id(), domain=self.chain.domain, sharing=self.sharing)
        compute = self.parts.compute(self.learner, config.task_id, self.home.keys, self.entropy, self.sharing)
        node = self._node(config, compute, await self._position(config, genesis, compute))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_connections, self.network, self.home.event_log)
            await node.run(on_result=self.on_result, linger_s=self.linger_s)
            nursery.cancel_scope.cancel()

    async def _registered(self) -> Genesis:
        registrar = Registrar(
            task=self.task,
            home=self.home,
            peer_id=self.network.peer_id,
            chain=self.chain,
            workers=self.workers,
            fund=self.fund,
            say=self.say,
        )
        await registrar.register()
        return await registrar.closed()

    async def _connect(self, genesis: Genesis) -> None:
        others = len(genesis.registrations) - 1
        with trio.move_on_after(CONNECT_S):
            await self.network.wait_connected(others)
        count = len(self.network.connected())
        self.home.event_log.write("connected", {"count": count})
        self.say(f"connected to {count} of {others} other members")

    async def _position(self, config: RunConfig, genesis: Genesis, compute: Compute) -> Position:
        return await CheckpointSync(
            config=config,
            genesis=genesis,
            chain=self.chain,
            store=self.home.store,
            network=self.network,
            workers=self.workers,
            event_log=self.home.event_log,
            compute=compute,
            rng=self.rng,
        ).position()

    def _node(self, config: RunConfig, compute: Compute, position: Position) -> Node:
        home = self.home
        run = Run(config, Signer(home.keys.chain_secret), position.start, None if home.is_store_lost else home.signed)
        return Node(
            machine=self.parts.machine(run),
            compute=compute,
            store=home.store,
            network=self.network,
            workers=self.workers,
            outbox=ChainOutbox(chain=self.chain, workers=self.workers, event_log=home.event_log),
            event_log=home.event_log,
            home=home.path,
            first_round=position.start.round,
            state=position.state,
            history_rounds=config.history_rounds,
            leave_after=self.leave_after,
            rng=self.rng,
        )


async def _watch_connections(network: Network, event_log: EventLog) -> None:
    """Tells which members come and go."""
    known = network.connected()
    while True:
        await trio.sleep(CONNECTIONS_WATCH_S)
        connected = network.connected()
        for peer_id in sorted(known - connected):
            event_log.write("lost", {"peer_id": peer_id.decode()})
        for peer_id in sorted(connected - known):
            event_log.write("found", {"peer_id": peer_id.decode()})
        known = connected
