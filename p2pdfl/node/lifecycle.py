"""One member of a task as a process, from its key file to its exit code.

keys, task and learner      this machine computes what the task's publisher computed, or it stops here
network                     listen, dial, find the others
chain                       its client
participant                 everything from the registration on, on these ports
"""

from __future__ import annotations

import random
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from p2pdfl.base import task as task_file
from p2pdfl.base import workers
from p2pdfl.base.task import Deployment, Task, TaskError
from p2pdfl.base.types import Digest, Round
from p2pdfl.chain.client import ChainClient, fund
from p2pdfl.chain.rpc import ChainError
from p2pdfl.learning.learner import Learner, StateError
from p2pdfl.net.host import Network, NetworkFailed, open_network
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.peers.reachability import Reachability, watched
from p2pdfl.node import console, home
from p2pdfl.node.checkpoint_sync import patiently
from p2pdfl.node.event_log import Value
from p2pdfl.node.home import Home, PeerError
from p2pdfl.node.keyfile import KeyFileError
from p2pdfl.node.metrics import Metrics, served
from p2pdfl.node.node import NodeResult
from p2pdfl.node.participant import Participant, Parts
from p2pdfl.node.status_file import kept, write_whole
from p2pdfl.node.store import StoreError, connect_file
from p2pdfl.protocol.round import Diverged

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130

PEERS = "peers.json"
"""In the home: the members met, tried first after a restart."""


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
        self._network: Network | None = None
        self.is_done = False

    async def live(self) -> None:
        options = self._options
        file = task_file.load(options.task)
        if file.chain is None or not file.task.is_measured:
            raise PeerError(
                f"{options.task}: the task is not published yet; `p2pdfl devchain` does that on this machine"
            )
        with home.opened(
            options.home,
            file.task,
            entropy=secrets.token_bytes,
            tell=self._tell,
            open_store=lambda path: self._parts.store(path, connect_file),
            clock=time,
        ) as own:
            learner = await workers.run(Learner, file.task)
            console.say(f"computing the task's reference replay ({file.task.name}, {learner.arithmetic})")
            await workers.run(learner.check_reference)
            await self._take_part(file.task, file.chain, own, learner)

    async def _take_part(self, task: Task, deployment: Deployment, own: Home, learner: Learner) -> None:
        options, threads = self._options, workers.Threads()

        def body_for_members(digest: Digest) -> bytes | None:
            # ATTACK: before they are known anybody may ask
            return own.store.blob(digest) if self._network is not None and self._network.knows_members else None

        async with (
            open_network(
                key_seed=own.keys.peer_secret,
                listen=options.listen,
                announce=options.announce,
                bootstrap=options.bootstrap,
                via=options.via,
                relay=options.relay,
                topic=f"/p2pdfl/2/{task.task_id().hex()}",
                blob_source=body_for_members,
                limits=Limits(followers_max=options.followers_max),
                address_book=options.home / PEERS,
            ) as network,
            self._measured(network, task, own),
            watched(network, partial(_tell_reachability, own), entropy=secrets.token_bytes),
            kept(options.home, partial(_describe, network, learner)),
        ):
            self._network = network
            self._announce(network, own)
            connect = partial(ChainClient, deployment, task, own.keys.chain_secret)
            chain = await patiently(connect, threads, own.event_log)
            try:
                await Participant(
                    task=task,
                    home=own,
                    learner=learner,
                    parts=self._parts,
                    network=network,
                    chain=chain,
                    workers=threads,
                    entropy=secrets.token_bytes,
                    rng=random.SystemRandom(),
                    say=console.say,
                    on_result=partial(self._report, network, own),
                    fund=partial(fund, deployment.rpc) if options.fund else None,
                    linger_s=options.linger_s,
                    leave_after=options.leave_after,
                ).live()
            finally:
                chain.close()

    @asynccontextmanager
    async def _measured(self, network: Network, task: Task, own: Home) -> AsyncIterator[None]:
        if self._options.metrics is None:
            yield
            return
        host, port = self._options.metrics
        self._metrics = Metrics(
            info={"name": self._options.name, "peer_id": network.peer_id.decode(), "task": task.task_id().hex()},
            counters=network.counters,
            gauges=network.gauges,
            event_log=own.event_log,
        )
        async with served(self._metrics, host, port) as bound:
            console.say(f"metrics at http://{f'[{host}]' if ':' in host else host}:{bound}/metrics")
            yield

    def _tell(self, event: str, fields: Mapping[str, Value]) -> None:
        console.tell(event, fields)
        if self._metrics is not None:
            self._metrics.hear(event, fields)

    def _announce(self, network: Network, own: Home) -> None:
        options, address = self._options, "0x" + own.keys.address.hex()
        peer_id = network.peer_id.decode()
        own.event_log.write("started", {"address": address, "peer_id": peer_id})
        facts = {
            "peer_id": peer_id,
            "addresses": network.addresses,
            "listening": network.listening,
            "address": address,
            "task": str(options.task.resolve()),
            "bootstrap": [*options.bootstrap, *options.via],
        }
        write_whole(options.home / "address.json", facts)
        console.say(f"{options.name} is {address}, listening on {', '.join(network.listening)}; others join with")
        for multiaddr in network.addresses:
            console.say(f"    --bootstrap {multiaddr}")

    def _report(self, network: Network, own: Home, result: NodeResult) -> None:
        event_log = own.event_log
        refused = event_log.refused + type(event_log.refused)(
            {name: count for name, count in network.counters.items() if name.startswith(("refused", "contained"))}
        )
        write_whole(
            own.path / "result.json",
            {
                "name": self._options.name,
                "address": "0x" + own.keys.address.hex(),
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
        console.say(f"finished {result.rounds} rounds, accuracy {result.accuracy:.3f}, state {result.state.hex()[:16]}")


def _tell_reachability(own: Home, found: Reachability) -> None:
    own.event_log.write("reachability", found.fields())
    for line in found.words():
        console.say(line)


def _describe(network: Network, learner: Learner) -> dict[str, object]:
    return {
        "profile": learner.task.profile,
        "arithmetic": str(learner.arithmetic),
        "connected": sorted(peer.decode() for peer in network.connected()),
        "counters": dict(sorted(network.counters.items())),
    }
