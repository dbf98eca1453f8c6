"""One scenario, from an empty directory to its summary.

1. Measure the task and start the chain, side by side; deploy the contract; write task.toml.  Build the peers' network,
   if the scenario wants one.
2. Start the first peer, wait for its address, start the others with it as their bootstrap.
3. Follow every peer's events.jsonl; let faults begin and end (`injection`); show it all.
4. When the honest peers are through, or nothing moves any more: stop the rest, ask the chain what it holds, follow the
   heads of one honest peer (`course`), judge.

runs/<name>/
    scenario.toml task.toml environment.json
    peers/<name>/           key, address.json, events.jsonl, result.json, store.sqlite, model.safetensors, log.txt
    chain.json              the chain's events, as this machine's own chain reports them
    transcript/             see `store`; of one honest peer
    summary.json metrics.csv accuracy.png model.safetensors
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from p2pdfl.base import task as task_file
from p2pdfl.base.types import Address, Digest, Round
from p2pdfl.chain.rpc import ChainError
from p2pdfl.crypto.keys import SEED_BYTES, derive
from p2pdfl.node.keyfile import load_or_create
from p2pdfl.node.store import ClosedRound, Store, StoreError
from p2pdfl.scenario import course, ledger, network, report, spec
from p2pdfl.scenario.events import EventTail, PeerRecord, read_result
from p2pdfl.scenario.faults import Strike
from p2pdfl.scenario.halt import Halts
from p2pdfl.scenario.injection import Injector
from p2pdfl.scenario.judge import bans_of
from p2pdfl.scenario.ledger import ChainRecord
from p2pdfl.scenario.live import Display, display
from p2pdfl.scenario.namespaces import Unavailable
from p2pdfl.scenario.network import NetworkProcess
from p2pdfl.scenario.peers import Peer
from p2pdfl.scenario.processes import ChainProcess, PeerForge, ProcessFailed, stop
from p2pdfl.scenario.run_directory import make_room
from p2pdfl.scenario.spec import Scenario
from p2pdfl.scenario.summary import Summary, describe_end, summarize

POLL_S = 0.2
FIRST_ADDRESS_S = 60.0
LINGER_S = 3600
"""How long a peer that is done goes on answering others, one that has to catch up on a slow machine among them; the
runner ends it as soon as nobody needs it."""


class RunFailed(Exception):
    """The run did not come to a point where there is anything to judge."""


def run(path: Path, out: Path, *, peer_entry: str, console: Console, keep: bool = False) -> Summary:
    """Raises ScenarioError, Unavailable, RunFailed.

    An earlier run in out/<name> is replaced; keep: moved aside to out/<name>.1, .2, ... instead.
    peer_entry: "package.module:function", what each peer's process calls with its arguments.
    """
    scenario = spec.load(path)
    if scenario.conditions is not None:
        reason = network.missing(scenario.conditions, is_cut=bool(scenario.partitions))
        if reason is not None:
            raise Unavailable(reason)
    directory = out / scenario.name
    try:
        make_room(directory, made_by="scenario.toml", keep=keep)
        (directory / "peers").mkdir(parents=True)
        shutil.copyfile(path, directory / "scenario.toml")
    except OSError as error:
        raise RunFailed(f"{error.filename or directory}: {error.strerror}") from None
    try:
        return _Run(scenario, directory, peer_entry, console).go()
    except (ProcessFailed, ChainError) as error:
        raise RunFailed(str(error)) from None


@dataclass(slots=True)
class _Run:
    scenario: Scenario
    directory: Path
    peer_entry: str
    console: Console
    forge: PeerForge = field(init=False)
    peers: list[Peer] = field(default_factory=list)
    bootstrap: list[str] = field(default_factory=list)
    network: NetworkProcess | None = None
    injector: Injector = field(init=False)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forge = PeerForge(self.peer_entry)

    def go(self) -> Summary:
        started_s = time.monotonic()
        with ExitStack() as running:
            chain = ChainProcess()
            running.callback(chain.stop)
            if self.scenario.conditions is not None:
                self.network = NetworkProcess(self.scenario.names, self.scenario.conditions)
                running.callback(self.network.stop)
            published = self._publish(chain)
            screen = running.enter_context(display(self.console, self.scenario))
            running.callback(self._stop_peers)
            self.injector = Injector(
                scenario=self.scenario, chain=chain, network=self.network, start=self._start, screen=screen
            )
            try:
                self._connect_the_network(chain, screen)
                self._start_peers()
                self._watch(screen, chain)
            except KeyboardInterrupt:
                self.problems.append("interrupted")
                screen.say("interrupted; the peers are being stopped")
            self._stop_peers()
            self._read_what_is_left()
            self.injector.bring_the_chain_back()
            wall_seconds = time.monotonic() - started_s
            rounds = self._keep_the_outcome()
            chain_record = self._ask_the_chain(published, {closed.head.chain_block for closed in rounds.values()})
        records = [peer.record for peer in self.peers]
        honest = [record for record in records if record.name not in self.scenario.behaviours]
        summary = summarize(
            self.scenario,
            records,
            chain_record.anchors,
            chain_record.slashes,
            wall_seconds=wall_seconds,
            problems=self.problems,
            strikes={peer.record.name: peer.strike for peer in self.peers if peer.strike is not None},
            cuts=self.injector.cuts,
            outages=self.injector.outages,
            course=course.follow(
                self.scenario.task,
                {round: (closed.head, closed.contents) for round, closed in rounds.items()},
                chain_record.events,
                chain_record.blocks,
                {member: ban.round for member, ban in bans_of(honest).items()},
            ),
            network="loopback" if self.network is None else self.network.how,
        )
        report.write(self.directory, self.scenario, records, summary)
        return summary

    def _publish(self, chain: ChainProcess) -> task_file.TaskFile:
        with self.console.status("measuring the task, starting the chain"):
            task = self.forge.measure(self.scenario.task)
            published = ledger.publish(chain.url(), task)
        task_file.save(self.directory / "task.toml", published)
        text = json.dumps(_environment(self.scenario), indent=2) + "\n"
        (self.directory / "environment.json").write_text(text, encoding="utf-8")
        return published

    def _connect_the_network(self, chain: ChainProcess, screen: Display) -> None:
        if self.network is None or self.scenario.conditions is None:
            return
        self.network.wait_until_built()
        chain.listen_in([place.namespace for place in self.network.places.values()])
        screen.say(f"each peer in a network namespace, {self.scenario.conditions}, through {self.network.how}")

    def _start_peers(self) -> None:
        for name in self.scenario.names:
            home = self.directory / "peers" / name
            fault = self.scenario.faults_by_name.get(name)
            self.peers.append(
                Peer(
                    record=PeerRecord(name=name),
                    home=home,
                    tail=EventTail(home / "events.jsonl"),
                    strike=None if fault is None else Strike(fault),
                )
            )
        first, *others = self.peers
        self._start(first)
        addresses = self._wait_for_address(first)
        self.bootstrap = [part for address in addresses for part in ("--bootstrap", address)]
        for peer in others:
            if peer.strike is None or peer.strike.fault.kind != "join":
                self._start(peer)

    def _start(self, peer: Peer) -> None:
        """For the first time or again."""
        name, home = peer.record.name, peer.home
        load_or_create(home / "key", lambda count: _seed(self.scenario, name, count))
        arguments = ["--task", str(self.directory / "task.toml"), "--home", str(home), "--name", name]
        place = None if self.network is None else self.network.places[name]
        arguments += ["--listen", "/ip4/127.0.0.1/tcp/0" if place is None else place.listen]
        arguments += ["--fund", "--linger", str(LINGER_S), *self.bootstrap]
        byzantine = self.scenario.behaviours.get(name)
        if byzantine is not None:
            arguments += ["--byzantine", str(byzantine.deviation(colluders(self.scenario, name)))]
        if peer.strike is not None and peer.strike.fault.kind == "leave":
            arguments += ["--leave", str(peer.strike.fault.at_round)]
        namespace = None if place is None else place.namespace
        if peer.process is not None:
            peer.record.start_again()
        peer.halts, theirs = multiprocessing.Pipe()
        halts = Halts(self.injector.places(peer), theirs)
        peer.process = self.forge.start(name, arguments, home / "log.txt", namespace=namespace, halts=halts)
        theirs.close()

    def _wait_for_address(self, peer: Peer) -> list[str]:
        deadline_s = time.monotonic() + FIRST_ADDRESS_S
        while time.monotonic() < deadline_s:
            try:
                return peer.addresses()
            except FileNotFoundError:
                pass
            if not peer.is_alive:
                raise ProcessFailed(f"{peer.record.name} ended before it listened:\n{peer.last_lines()}")
            time.sleep(POLL_S)
        raise ProcessFailed(f"{peer.record.name} does not listen after {FIRST_ADDRESS_S:.0f} s")

    def _watch(self, screen: Display, chain: ChainProcess) -> None:
        started_s = moved_s = time.monotonic()
        halted: list[Peer] = []
        while True:
            moved = [peer for peer in self.peers if peer.read()]
            self.injector.step(self.peers)
            for peer in halted:
                peer.release()
            for peer in self.peers:
                if peer.record.exit_code is not None and not peer.is_awaited and not peer.is_reported:
                    peer.is_reported = True
                    self._report_end(peer, screen)
            now_s = time.monotonic()
            if moved:
                moved_s = now_s
            screen.show([peer.record for peer in self.peers], now_s - started_s)
            if self._is_over():
                return
            if now_s - moved_s > self.scenario.stall_s:
                self.problems.append(f"nothing moved for {self.scenario.stall_s:g} s")
                return
            if not chain.is_alive():
                self.problems.append("the embedded chain has stopped")
                return
            if self.network is not None and not self.network.is_alive():
                self.problems.append("the peers' network has broken down")
                return
            halted = self.injector.wait(self.peers, POLL_S)

    def _stop_peers(self) -> None:
        for peer in self.peers:
            peer.go_on()
            # one that stands still for a fault would not hear that it is to stop
            peer.release()
        stop([peer.process for peer in self.peers if peer.process is not None])

    def _report_end(self, peer: Peer, screen: Display) -> None:
        record = peer.record
        if record.result is not None and record.exit_code == 0:
            return
        if peer.is_killed or record.name in self.scenario.behaviours:
            screen.say(f"{record.name}: {describe_end(record)}")
            return
        self.problems.append(f"{record.name}: {describe_end(record)}")
        screen.say(f"{record.name}: {describe_end(record)}; its last lines:\n{peer.last_lines()}")

    def _is_over(self) -> bool:
        """Every honest peer has come to its end, and the Byzantine ones had as long as that."""
        return all(
            peer.record.result is not None or (peer.record.exit_code is not None and not peer.is_awaited)
            for peer in self.peers
            if peer.record.name not in self.scenario.behaviours
        )

    def _read_what_is_left(self) -> None:
        for peer in self.peers:
            peer.read()
            try:
                peer.record.result = read_result(peer.home / "result.json")
            except ValueError as error:
                self.problems.append(str(error))
            if peer.record.malformed_lines and peer.name not in self.scenario.behaviours and not peer.is_killed:
                self.problems.append(f"{peer.name}: {peer.record.malformed_lines} events not understood")

    def _ask_the_chain(self, published: task_file.TaskFile, named_blocks: Collection[Digest]) -> ChainRecord:
        try:
            record = ledger.read(published, named_blocks)
        except ChainError as error:
            self.problems.append(f"the chain cannot be read: {error}")
            return ChainRecord(events=[], blocks=[], anchors=[], slashes=[])
        ledger.export(self.directory / "chain.json", published, record)
        return record

    def _keep_the_outcome(self) -> dict[Round, ClosedRound]:
        """The model, the transcript and the rounds of the honest peer that holds most of these."""
        rounds: dict[Round, ClosedRound] = {}
        honest = [peer for peer in self.peers if peer.name not in self.scenario.behaviours]
        witness = max(honest, key=_rounds_held)
        model = witness.home / "model.safetensors"
        try:
            if model.exists():
                shutil.copyfile(model, self.directory / "model.safetensors")
            if (witness.home / "store.sqlite").exists():
                with Store(witness.home / "store.sqlite") as store:
                    missing = store.export_transcript(self.directory / "transcript")
                    rounds = {round: closed for round in store.heads() if (closed := store.round(round)) is not None}
                if missing:
                    self.problems.append(f"the transcript lacks {len(missing)} updates that heads name")
        except (OSError, StoreError) as error:
            self.problems.append(f"the outcome could not be kept: {error}")
        return rounds


def _rounds_held(peer: Peer) -> tuple[bool, int]:
    """Whether it came to its end, and how many.  Who lost its disk, or joined, holds fewer than it may have told of."""
    result = peer.record.result
    return result is not None, len(peer.record.rounds if result is None else result.heads)


def colluders(scenario: Scenario, name: str) -> list[Address]:
    """The addresses of those that cheat together with that peer."""
    colluding = [other for other, entry in scenario.behaviours.items() if entry.collude]
    others = [other for other in colluding if other != name] if name in colluding else []
    return [derive(_seed(scenario, other, SEED_BYTES)).address for other in others]


def _seed(scenario: Scenario, name: str, count: int) -> bytes:
    return sha256(f"p2pdfl/scenario/key/{scenario.seed}/{scenario.name}/{name}".encode()).digest()[:count]


def _environment(scenario: Scenario) -> dict[str, Any]:
    packages = ("p2pdfl", "torch", "numpy", "libp2p", "trio", "web3", "petlib", "coincurve")
    return {
        "seed": scenario.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
