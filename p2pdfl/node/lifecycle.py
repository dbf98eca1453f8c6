"""One member of a task, from its key file to its last round.

keys, task and learner      this machine computes what the task's publisher computed, or it stops here
network                     listen, dial, find the others
chain                       register with a deposit, wait until registration closes
node                        the rounds
linger                      answer those who are still at it
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from p2pdfl.base import params, workers
from p2pdfl.base import task as task_file
from p2pdfl.base.task import Deployment, Task, TaskError
from p2pdfl.base.types import Digest, Entropy, Packet, Registration, Round
from p2pdfl.chain.client import ChainClient, fund
from p2pdfl.chain.rpc import ChainError, Refused, Reverted
from p2pdfl.chain.sender import Receipt
from p2pdfl.crypto import group
from p2pdfl.crypto.envelope import Domain, Signer, possession_digest
from p2pdfl.crypto.keys import Keys
from p2pdfl.learning.learner import Learner, StateError
from p2pdfl.net.host import Network, NetworkFailed, open_network
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.peers.reachability import Reachability, watched
from p2pdfl.node.chain_outbox import ChainOutbox
from p2pdfl.node.checkpoint_sync import CheckpointSync, patiently
from p2pdfl.node.compute import Compute
from p2pdfl.node.event_log import EventLog, Value
from p2pdfl.node.keyfile import KeyFileError, load_or_create
from p2pdfl.node.metrics import Metrics, served
from p2pdfl.node.node import Machine, Node, NodeResult, admit
from p2pdfl.node.status_file import kept, write_whole
from p2pdfl.node.store import Store, StoreError
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.round import Diverged
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.start import Genesis

T = TypeVar("T")

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130

FUND_MARGIN_WEI = 10**18
"""Beyond the deposit, for gas."""
STORE_LOST = "store.lost"
"""In the home of a peer whose store is gone while its key is there: it may have signed what it no longer knows."""
PEERS = "peers.json"
"""In the home: the members met, tried first after a restart."""
CONNECT_S = 30.0
"""How long a peer waits to see all other members before the first round; the rounds work with fewer."""
CONNECTIONS_WATCH_S = 0.25
"""Between looks at who is connected; what is seen is told, and nothing rests on it."""


class PeerError(Exception):
    """Why this peer can't take part, and what to do about it."""


EXPECTED_ERRORS = (
    PeerError,
    TaskError,
    KeyFileError,
    StoreError,
    StateError,
    ChainError,
    Diverged,
    NetworkFailed,
    OSError,
)
"""The world's fault, each with words for a person."""


@dataclass(frozen=True, kw_only=True)
class Options:
    task: Path
    home: Path
    name: str
    listen: list[str]
    announce: list[str]
    bootstrap: list[str]
    via: list[str]
    relay: bool
    fund: bool
    linger_s: float
    followers_max: int
    metrics: tuple[str, int] | None = None
    """Host and port to serve Prometheus on."""
    leave_after: Round | None = None
    """Asks the contract to let this peer go once that round has closed."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a peer is made of.  To behave otherwise, it is given other parts, of which nothing here knows."""

    store: Callable[[Path], Store] = Store
    machine: Callable[[Run], Machine] = lambda run: run
    compute: Callable[[Learner, Digest, Keys, Entropy], Compute] = Compute


def live(options: Options, parts: Parts) -> int:
    """Returns the exit code; what is the world's fault is told in one line on stderr."""
    try:
        return trio.run(_until_stopped, options, parts)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except EXPECTED_ERRORS as error:
        return _complain(error)
    except BaseExceptionGroup as group:
        # what goes wrong in a nursery comes wrapped; anything unexpected in there deserves its traceback
        expected, unexpected = group.split(EXPECTED_ERRORS)
        if unexpected is not None or expected is None:
            raise
        return _complain(_first(expected))


def _complain(error: BaseException) -> int:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    # one line, whatever a chain node or a file had to say
    print(f"p2pdfl peer: {' '.join(text.split())}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, (TaskError, KeyFileError)) else EXIT_FAILED


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _until_stopped(options: Options, parts: Parts) -> int:
    """SIGINT and SIGTERM stop it in order: what is on disk stays whole, sockets are closed."""
    outcome = EXIT_INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            peer = _Peer(options, parts)
            try:
                await peer.live()
            finally:
                outcome = EXIT_OK if peer.is_done else EXIT_INTERRUPTED
            nursery.cancel_scope.cancel()
    if outcome == EXIT_INTERRUPTED:
        print("stopped; the same command goes on where this left off", flush=True)
    return outcome


class _Peer:
    def __init__(self, options: Options, parts: Parts) -> None:
        self._options = options
        self._parts = parts
        self._metrics: Metrics | None = None
        self.is_done = False

    async def live(self) -> None:
        options = self._options
        file = task_file.load(options.task)
        if file.chain is None or not file.task.is_measured:
            raise PeerError(
                f"{options.task}: the task is not published yet; `p2pdfl devchain` does that on this machine"
            )
        try:
            options.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PeerError(f"{options.home}: {error.strerror}") from None
        store_path = options.home / "store.sqlite"
        if (options.home / "key").exists() and not store_path.exists():
            # until the chain says that nothing can have been signed with this key
            (options.home / STORE_LOST).touch()
        keys = load_or_create(options.home / "key", secrets.token_bytes)
        with self._parts.store(store_path) as store, EventLog(options.home / "events.jsonl", self._tell) as event_log:
            signed = _signed(store, file.task, options.home)
            learner = await workers.run(Learner, file.task)
            self._say(f"computing the task's reference replay ({file.task.name}, {learner.arithmetic})")
            await workers.run(learner.check_reference)
            await self._join(file.task, file.chain, keys, store, signed, event_log, learner)

    async def _join(
        self,
        task: Task,
        deployment: Deployment,
        keys: Keys,
        store: Store,
        signed: list[Packet],
        event_log: EventLog,
        learner: Learner,
    ) -> None:
        options, task_id = self._options, task.task_id()
        bodies: list[Callable[[Digest], bytes | None]] = []
        async with (
            open_network(
                key_seed=keys.peer_secret,
                listen=options.listen,
                announce=options.announce,
                bootstrap=options.bootstrap,
                via=options.via,
                relay=options.relay,
                topic=f"/p2pdfl/2/{task_id.hex()}",
                blob_source=lambda digest: bodies[0](digest) if bodies else None,
                limits=Limits(followers_max=options.followers_max),
                address_book=options.home / PEERS,
            ) as network,
            self._measured(network, task, event_log),
            watched(network, partial(self._tell_reachability, event_log), entropy=secrets.token_bytes),
            kept(options.home, partial(_describe, network, learner)),
        ):
            self._announce(network, keys, event_log)
            chain = await patiently(lambda: ChainClient(deployment, task, keys.chain_secret), event_log)
            try:
                await self._register(chain, deployment.rpc, task, keys, network, event_log)
                genesis = await self._closed_registration(chain, task, keys, event_log)
                admit(network, genesis.registrations)
                is_lost = (options.home / STORE_LOST).exists()
                if is_lost:
                    self._say(
                        "the store was lost: this peer follows, and signs nothing before an epoch that is chosen later"
                    )
                if not signed:
                    await self._connect(network, genesis, event_log)
                config = RunConfig(
                    task=task,
                    task_id=task_id,
                    domain=Domain(chain_id=deployment.chain_id, contract=deployment.contract),
                )
                compute = self._parts.compute(learner, task_id, keys, secrets.token_bytes)
                position = await CheckpointSync(
                    config=config,
                    genesis=genesis,
                    chain=chain,
                    store=store,
                    network=network,
                    event_log=event_log,
                    compute=compute,
                ).position()
                run = Run(config, Signer(keys.chain_secret), position.start, None if is_lost else signed)
                node = Node(
                    machine=self._parts.machine(run),
                    compute=compute,
                    store=store,
                    network=network,
                    outbox=ChainOutbox(chain=chain, event_log=event_log),
                    event_log=event_log,
                    home=options.home,
                    first_round=position.start.round,
                    state=position.state,
                    history_rounds=config.history_rounds,
                    leave_after=options.leave_after,
                )
                bodies.append(node.body)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_watch_connections, network, event_log)
                    await node.run(
                        on_result=lambda result: self._report(result, network, event_log, keys),
                        linger_s=options.linger_s,
                    )
                    nursery.cancel_scope.cancel()
            finally:
                chain.close()

    @asynccontextmanager
    async def _measured(self, network: Network, task: Task, event_log: EventLog) -> AsyncIterator[None]:
        if self._options.metrics is None:
            yield
            return
        host, port = self._options.metrics
        self._metrics = Metrics(
            info={"name": self._options.name, "peer_id": network.peer_id.decode(), "task": task.task_id().hex()},
            counters=network.counters,
            gauges=network.gauges,
            event_log=event_log,
        )
        async with served(self._metrics, host, port) as bound:
            self._say(f"metrics at http://{f'[{host}]' if ':' in host else host}:{bound}/metrics")
            yield

    def _tell(self, event: str, fields: Mapping[str, Value]) -> None:
        _tell(event, fields)
        if self._metrics is not None:
            self._metrics.hear(event, fields)

    def _announce(self, network: Network, keys: Keys, event_log: EventLog) -> None:
        options, address = self._options, "0x" + keys.address.hex()
        peer_id = network.peer_id.decode()
        event_log.write("started", {"address": address, "peer_id": peer_id})
        facts = {
            "peer_id": peer_id,
            "addresses": network.addresses,
            "listening": network.listening,
            "address": address,
            "task": str(options.task.resolve()),
            "bootstrap": [*options.bootstrap, *options.via],
        }
        write_whole(options.home / "address.json", facts)
        self._say(f"{options.name} is {address}, listening on {', '.join(network.listening)}; others join with")
        for multiaddr in network.addresses:
            self._say(f"    --bootstrap {multiaddr}")

    def _tell_reachability(self, event_log: EventLog, found: Reachability) -> None:
        event_log.write("reachability", found.fields())
        for line in found.words():
            self._say(line)

    async def _register(
        self, chain: ChainClient, rpc: str, task: Task, keys: Keys, network: Network, event_log: EventLog
    ) -> None:
        domain, task_id, peer_id = chain.domain, task.task_id(), network.peer_id
        possession = Signer(keys.pvss_secret).sign_digest(possession_digest(domain, task_id, keys.address, peer_id))

        def register() -> Receipt | None:
            # asked before each attempt: one whose answer was lost may have arrived
            if any(entry.address == keys.address for entry in chain.registrations()):
                return None
            return chain.register(peer_id, keys.pvss_key, possession)

        if await patiently(lambda: any(entry.address == keys.address for entry in chain.registrations()), event_log):
            return
        await self._pay(chain, rpc, task, keys, event_log)
        try:
            receipt = await patiently(register, event_log)
        except Reverted as error:
            raise PeerError(f"the contract refuses the registration: {error.reason}") from None
        event_log.write("registered", {} if receipt is None else {"tx": "0x" + receipt.tx.hex()})
        (self._options.home / STORE_LOST).unlink(missing_ok=True)
        self._say(f"registered with a deposit of {task.deposit_wei / 10**18:g} ETH")

    async def _pay(self, chain: ChainClient, rpc: str, task: Task, keys: Keys, event_log: EventLog) -> None:
        needed = task.deposit_wei + FUND_MARGIN_WEI
        balance = await patiently(lambda: chain.balance_of(keys.address), event_log)
        if balance >= needed:
            return
        if not self._options.fund:
            raise PeerError(
                f"0x{keys.address.hex()} has {balance / 10**18:g} ETH and needs {needed / 10**18:g} for the deposit "
                "and gas: send it some, or add --fund on a development chain"
            )
        await patiently(partial(fund, rpc, keys.address, needed - balance), event_log)

    async def _closed_registration(self, chain: ChainClient, task: Task, keys: Keys, event_log: EventLog) -> Genesis:
        """Waits for the members; once all are there, the lowest address closes the registration, or, if it does not,
        the next."""
        seen = -1
        complete_s = None
        while True:
            block = await patiently(chain.start_block, event_log)
            if block is not None:
                await self._confirm(chain, block.number, event_log)
                registrations = await patiently(partial(chain.registrations, block.hash), event_log)
                _check_registered(registrations, keys)
                return Genesis(
                    closing_number=block.number, closing_block=block.hash, registrations=tuple(registrations)
                )
            registrations = await patiently(chain.registrations, event_log)
            willing = sorted(entry.address for entry in registrations if not entry.exiting)
            if len(willing) != seen:
                seen = len(willing)
                self._say(f"{seen} of {task.members_min} members registered")
            if seen >= task.members_min and keys.address in willing:
                complete_s = complete_s or trio.current_time()
                turn_s = willing.index(keys.address) * params.ANCHOR_STAGGER_MS / 1000
                if trio.current_time() >= complete_s + turn_s:
                    # reverts if another member was faster, or one more has registered: look again
                    with suppress(Reverted, Refused):
                        await patiently(partial(chain.start, willing), event_log)
            await trio.sleep(params.CHAIN_POLL_MS / 1000)

    async def _confirm(self, chain: ChainClient, number: int, event_log: EventLog) -> None:
        while (await patiently(chain.confirmed_block, event_log)).number < number:  # noqa: ASYNC110  the chain is polled
            await trio.sleep(params.CHAIN_POLL_MS / 1000)

    async def _connect(self, network: Network, genesis: Genesis, event_log: EventLog) -> None:
        others = len(genesis.registrations) - 1
        with trio.move_on_after(CONNECT_S):
            await network.wait_connected(others)
        count = len(network.connected())
        event_log.write("connected", {"count": count})
        self._say(f"connected to {count} of {others} other members")

    def _report(self, result: NodeResult, network: Network, event_log: EventLog, keys: Keys) -> None:
        refused = event_log.refused + type(event_log.refused)(
            {name: count for name, count in network.counters.items() if name.startswith(("refused", "contained"))}
        )
        write_whole(
            self._options.home / "result.json",
            {
                "name": self._options.name,
                "address": "0x" + keys.address.hex(),
                "peer_id": network.peer_id.decode(),
                "rounds": result.rounds,
                "first_round": min(result.heads),
                "state": result.state.hex(),
                "accuracy": result.accuracy,
                "heads": {str(round): head.hex() for round, head in sorted(result.heads.items())},
                "seconds": {name: round(seconds, 3) for name, seconds in event_log.seconds.items()},
                "bytes_sent": network.counters["bytes_sent"],
                "refused": dict(sorted(refused.items())),
            },
        )
        event_log.write("finished", {})
        self.is_done = True
        self._say(f"finished {result.rounds} rounds, accuracy {result.accuracy:.3f}, state {result.state.hex()[:16]}")

    def _say(self, text: str) -> None:
        print(text, flush=True)


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


def _describe(network: Network, learner: Learner) -> dict[str, object]:
    return {
        "profile": learner.task.profile,
        "arithmetic": str(learner.arithmetic),
        "connected": sorted(peer.decode() for peer in network.connected()),
        "counters": dict(sorted(network.counters.items())),
    }


def _tell(event: str, fields: Mapping[str, Value]) -> None:
    """One line for a person about what matters to one."""
    text = {
        "round": "round {round}: accuracy {accuracy:.3f}, {updates} updates, {seconds:.1f} s",
        "timers": "round {round}: the first leader has {view_ms} ms, by what the rounds before took",
        "accusation": "round {round}: {accuser} accuses {accused} of its update of round {audited_round}",
        "verdict": "round {round}: the jury finds {outcome}, {accused} accused by {accuser}",
        "equivocation": "round {round}: {member} signed twice in one slot",
        "ban": "round {round}: {member} is banned ({evidence})",
        "leaving": "asked the contract to let this peer go: it is no member from the next epoch on ({tx})",
        "resumed": "goes on from its own checkpoint of round {round}",
        "joined": "joined from the anchor of epoch {epoch} (round {round}), "
        "checkpoint of {checkpoint_bytes} bytes from {peer_id}",
        "no_checkpoint": "nobody hands out a checkpoint of the anchored epoch {epoch}: following from round 0",
        "checkpoint_refused": "refused the checkpoint of {peer_id}: {reason}",
        "checkpoint_unusable": "checkpoint: {error}",
        "anchor": "round {round} is anchored on chain: {tx}",
        "slash": "{member} is slashed ({evidence}): {tx}",
        "chain_error": "chain: {what}: {error}",
    }.get(event)
    if event == "round" and fields["accuracy"] is None:
        text = "round {round}: {updates} updates, {seconds:.1f} s"
    if text is not None:
        print(text.format(**fields), flush=True)


def _signed(store: Store, task: Task, home: Path) -> list[Packet]:
    """All that this key has signed.  Raises PeerError if that was for another task."""
    signed = [packet for round in range(task.total_rounds) for packet in store.envelopes(round)]
    last = store.last_round()
    closed = None if last is None else store.round(last)
    tasks = {packet.envelope.task for packet in signed} | ({closed.head.task} if closed else set())
    if tasks - {task.task_id()}:
        raise PeerError(f"{home}: belongs to another task; give each task a home of its own")
    return signed


def _check_registered(registrations: Sequence[Registration], keys: Keys) -> None:
    for entry in registrations:
        try:
            group.check(entry.pvss_key)
        except group.InvalidPoint as error:
            raise PeerError(
                f"the chain lists a PVSS key that the contract refuses ({error}): is its node sane?"
            ) from None
    if all(entry.address != keys.address for entry in registrations):
        print("registration had closed before: this peer follows, and takes part from the next epoch on", flush=True)
