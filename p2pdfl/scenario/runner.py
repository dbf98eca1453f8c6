"""One scenario, from an empty directory to its summary.

1. Measure the task and start the chain, side by side; deploy the contract; write task.toml.  Build the peers' network,
   if the scenario wants one.
2. Start the first peer, wait for its address, start the others with it as their bootstrap.
3. Follow every peer's events.jsonl; strike whom the scenario says, cut and heal the network; show it all.
4. When the honest peers are through, or nothing moves any more: stop the rest, ask the chain what it holds, judge.

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
import os
import platform
import shutil
import signal
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from p2pdfl.base import task as task_file
from p2pdfl.base.types import Address, Digest
from p2pdfl.chain.rpc import ChainError
from p2pdfl.crypto.keys import SEED_BYTES, derive
from p2pdfl.node.keyfile import load_or_create
from p2pdfl.node.store import Store, StoreError
from p2pdfl.scenario import ledger, network, report, spec
from p2pdfl.scenario.events import EventTail, PeerRecord, read_result
from p2pdfl.scenario.faults import Cut, Outage, Step, Strike
from p2pdfl.scenario.live import Display, display
from p2pdfl.scenario.namespaces import Unavailable
from p2pdfl.scenario.network import NetworkProcess
from p2pdfl.scenario.processes import ChainProcess, PeerForge, ProcessFailed, Stopped, send, stop
from p2pdfl.scenario.run_directory import make_room
from p2pdfl.scenario.spec import Scenario
from p2pdfl.scenario.summary import AnchorRow, SlashRow, Summary, describe_end, summarize

POLL_S = 0.2
FIRST_ADDRESS_S = 60.0
LINGER_S = 60
"""How long a peer that is done goes on answering others; the runner ends it as soon as nobody needs it."""
LOG_LINES = 15
"""Of a peer that died, shown."""
KEPT_WITHOUT_DISK = ("key", "events.jsonl", "log.txt")
"""What a peer's disk is not lost of: what makes it the same peer, and what the runner reads."""


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


@dataclass(slots=True, kw_only=True)
class _Peer:
    record: PeerRecord
    home: Path
    tail: EventTail
    process: BaseProcess | None = None
    """None until it is started."""
    strike: Strike | None = None
    stopped: Stopped | None = None
    is_reported: bool = False

    @property
    def is_killed(self) -> bool:
        return self.strike is not None and self.strike.fault.kind == "kill" and self.strike.is_on

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    @property
    def is_awaited(self) -> bool:
        """Whether it is away for a while only, and no end of a process is its end."""
        strike = self.strike
        if strike is None or strike.fault.is_for_good:
            return False
        return strike.is_on if strike.fault.kind == "kill" else strike.fault.kind == "join" and self.process is None


@dataclass(slots=True)
class _Run:
    scenario: Scenario
    directory: Path
    peer_entry: str
    console: Console
    forge: PeerForge = field(init=False)
    peers: list[_Peer] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    """In the order in which they come."""
    bootstrap: list[str] = field(default_factory=list)
    network: NetworkProcess | None = None
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forge = PeerForge(self.peer_entry)
        self.cuts = [Cut(partition) for partition in self.scenario.partitions]
        self.outages = [Outage(what) for what in sorted(self.scenario.chain_outages, key=lambda what: what.at_round)]

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
            try:
                self._connect_the_network(chain, screen)
                self._start_peers()
                self._watch(screen, chain)
            except KeyboardInterrupt:
                self.problems.append("interrupted")
                screen.say("interrupted; the peers are being stopped")
            self._stop_peers()
            self._read_what_is_left()
            self._bring_the_chain_back(chain)
            wall_seconds = time.monotonic() - started_s
            named_blocks = self._keep_the_outcome()
            anchors, slashes = self._ask_the_chain(published, named_blocks)
        records = [peer.record for peer in self.peers]
        summary = summarize(
            self.scenario,
            records,
            anchors,
            slashes,
            wall_seconds=wall_seconds,
            problems=self.problems,
            strikes={peer.record.name: peer.strike for peer in self.peers if peer.strike is not None},
            cuts=self.cuts,
            outages=self.outages,
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
                _Peer(
                    record=PeerRecord(name=name),
                    home=home,
                    tail=EventTail(home / "events.jsonl"),
                    strike=None if fault is None else Strike(fault, delay_s=_delay_s(self.scenario, name)),
                )
            )
        first, *others = self.peers
        self._start(first)
        addresses = self._wait_for_address(first)
        self.bootstrap = [part for address in addresses for part in ("--bootstrap", address)]
        for peer in others:
            if peer.strike is None or peer.strike.fault.kind != "join":
                self._start(peer)

    def _start(self, peer: _Peer) -> None:
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
        peer.process = self.forge.start(name, arguments, home / "log.txt", namespace=namespace)
        peer.record.exit_code = None

    def _wait_for_address(self, peer: _Peer) -> list[str]:
        deadline_s = time.monotonic() + FIRST_ADDRESS_S
        while time.monotonic() < deadline_s:
            try:
                return _read_addresses(peer.home)
            except FileNotFoundError:
                pass
            if not peer.is_alive:
                raise ProcessFailed(f"{peer.record.name} ended before it listened:\n{_last_lines(peer.home)}")
            time.sleep(POLL_S)
        raise ProcessFailed(f"{peer.record.name} does not listen after {FIRST_ADDRESS_S:.0f} s")

    def _watch(self, screen: Display, chain: ChainProcess) -> None:
        started_s = moved_s = time.monotonic()
        while True:
            moved = False
            for peer in self.peers:
                moved |= self._follow(peer, screen)
            self._cut(screen)
            self._interrupt_the_chain(chain, screen)
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
            time.sleep(POLL_S)

    def _follow(self, peer: _Peer, screen: Display) -> bool:
        """Whether the peer has got ahead: joined, closed a round, or ended."""
        record = peer.record
        before = (record.address, len(record.rounds), record.finished, record.exit_code)
        # Asked first, so that what is read below is all that an ended process has written.
        record.exit_code = None if peer.process is None else peer.process.exitcode
        for line in peer.tail.lines():
            record.add(line, time.monotonic())
        self._read_result(peer)
        self._strike(peer, screen)
        if record.exit_code is not None and not peer.is_awaited and not peer.is_reported:
            peer.is_reported = True
            self._report_end(peer, screen)
        return (record.address, len(record.rounds), record.finished, record.exit_code) != before

    def _strike(self, peer: _Peer, screen: Display) -> None:
        if peer.strike is None or not (peer.is_alive or peer.is_awaited):
            return
        others_round = self._furthest_round(but=peer)
        own_round = others_round if peer.strike.fault.kind == "join" else peer.record.round
        step = peer.strike.step(own_round, others_round or 0, time.monotonic())
        if step is None:
            return
        what = self._inflict(peer, step)
        where = "" if peer.record.round is None else f" in round {peer.record.round}"
        screen.say(
            f"{peer.record.name} {what}{where}, as the scenario says; the others are in round {others_round or 0}"
        )

    def _inflict(self, peer: _Peer, step: Step) -> str:
        """Returns what was done, in words."""
        assert peer.strike is not None
        fault = peer.strike.fault
        match fault.kind, step:
            case "kill", Step.BEGIN:
                self._kill(peer)
                return "killed"
            case "kill", Step.END:
                if fault.lose_disk:
                    _lose_disk(peer.home)
                self._start(peer)
                return "started again with its key alone" if fault.lose_disk else "started again"
            case "stop", Step.BEGIN:
                assert peer.process is not None
                peer.stopped = Stopped(peer.process)
                return "stopped"
            case "stop", Step.END:
                self._go_on(peer)
                return "goes on again"
            case "unplug", _:
                assert self.network is not None, "a cable to unplug takes a network (spec.Scenario.conditions)"
                if step is Step.BEGIN:
                    self.network.unplug(peer.record.name)
                    return "unplugged"
                self.network.plug_in(peer.record.name)
                return "plugged in again"
            case "join", _:
                self._start(peer)
                return "joins"
            case _:
                return "leaves"

    def _kill(self, peer: _Peer) -> None:
        assert peer.process is not None
        send(peer.process, signal.SIGKILL)
        peer.process.join()  # gone before it is started again: its store is locked until then

    def _go_on(self, peer: _Peer) -> None:
        if peer.stopped is not None:
            peer.stopped.go_on()
            peer.stopped = None

    def _cut(self, screen: Display) -> None:
        for cut in self.cuts:
            furthest = self._furthest_round()
            step = cut.step(furthest, furthest or 0, time.monotonic())
            if step is None:
                continue
            assert self.network is not None, "a partition takes a network (spec.Scenario.conditions)"
            names = self.scenario.names_of(cut.partition)
            if step is Step.BEGIN:
                self.network.cut(names)
                cut.closed_before = self._closed_rounds()
                screen.say(f"{', '.join(sorted(names))} cut off from the others, who are in round {furthest}")
            else:
                cut.closed = self._closed_rounds() - cut.closed_before
                self.network.heal()
                screen.say(f"the network is whole again; {cut.closed} rounds were closed while it was not")

    def _interrupt_the_chain(self, chain: ChainProcess, screen: Display) -> None:
        outage = next((outage for outage in self.outages if outage.ended_s is None), None)
        if outage is None:
            return
        furthest = self._furthest_round()
        step = outage.step(furthest, furthest or 0, time.monotonic())
        if step is Step.BEGIN:
            outage.closed_before = self._closed_rounds()
            chain.go_away(outage.outage.kind)
            does = "hangs" if outage.outage.kind == "hang" else "hangs up on everybody"
            screen.say(f"the chain {does}; the peers are in round {furthest}")
        elif step is Step.END:
            outage.closed = self._closed_rounds() - outage.closed_before
            chain.come_back()
            screen.say(f"the chain is back; {outage.closed} rounds were closed without it")

    def _bring_the_chain_back(self, chain: ChainProcess) -> None:
        """From an outage that outlived the run: it is read after it."""
        if any(outage.is_on for outage in self.outages):
            chain.come_back()

    def _furthest_round(self, but: _Peer | None = None) -> int | None:
        rounds = [peer.record.round for peer in self.peers if peer is not but and peer.record.round is not None]
        return max(rounds, default=None)

    def _closed_rounds(self) -> int:
        return max((max(peer.record.rounds, default=-1) + 1 for peer in self.peers), default=0)

    def _stop_peers(self) -> None:
        for peer in self.peers:
            self._go_on(peer)
        stop([peer.process for peer in self.peers if peer.process is not None])

    def _report_end(self, peer: _Peer, screen: Display) -> None:
        record = peer.record
        if record.result is not None and record.exit_code == 0:
            return
        if peer.is_killed or record.name in self.scenario.behaviours:
            screen.say(f"{record.name}: {describe_end(record)}")
            return
        self.problems.append(f"{record.name}: {describe_end(record)}")
        screen.say(f"{record.name}: {describe_end(record)}; its last lines:\n{_last_lines(peer.home)}")

    def _is_over(self) -> bool:
        """Every honest peer has come to its end, and the Byzantine ones had as long as that."""
        return all(
            peer.record.result is not None or (peer.record.exit_code is not None and not peer.is_awaited)
            for peer in self.peers
            if peer.record.name not in self.scenario.behaviours
        )

    def _read_result(self, peer: _Peer) -> None:
        if peer.record.result is None and (peer.record.finished or peer.record.exit_code is not None):
            try:
                peer.record.result = read_result(peer.home / "result.json")
            except ValueError:
                # In the middle of being written; at the end of the run it is a problem.
                return

    def _read_what_is_left(self) -> None:
        for peer in self.peers:
            peer.record.exit_code = None if peer.process is None else peer.process.exitcode
            for line in peer.tail.lines():
                peer.record.add(line, time.monotonic())
            try:
                peer.record.result = read_result(peer.home / "result.json")
            except ValueError as error:
                self.problems.append(str(error))
            if peer.record.malformed_lines and peer.record.name not in self.scenario.behaviours and not peer.is_killed:
                self.problems.append(f"{peer.record.name}: {peer.record.malformed_lines} events not understood")

    def _ask_the_chain(
        self, published: task_file.TaskFile, named_blocks: Collection[Digest]
    ) -> tuple[list[AnchorRow], list[SlashRow]]:
        try:
            record = ledger.read(published, named_blocks)
        except ChainError as error:
            self.problems.append(f"the chain cannot be read: {error}")
            return [], []
        ledger.export(self.directory / "chain.json", published, record)
        return record.anchors, record.slashes

    def _keep_the_outcome(self) -> set[Digest]:
        """The model and the transcript of the honest peer that holds most rounds; the chain blocks its heads name."""
        blocks: set[Digest] = set()
        honest = [peer for peer in self.peers if peer.record.name not in self.scenario.behaviours]
        witness = max(honest, key=_rounds_held)
        model = witness.home / "model.safetensors"
        try:
            if model.exists():
                shutil.copyfile(model, self.directory / "model.safetensors")
            if (witness.home / "store.sqlite").exists():
                with Store(witness.home / "store.sqlite") as store:
                    missing = store.export_transcript(self.directory / "transcript")
                    blocks = store.chain_blocks()
                if missing:
                    self.problems.append(f"the transcript lacks {len(missing)} updates that heads name")
        except (OSError, StoreError) as error:
            self.problems.append(f"the outcome could not be kept: {error}")
        return blocks


def _rounds_held(peer: _Peer) -> tuple[bool, int]:
    """Whether it came to its end, and how many.  Who lost its disk, or joined, holds fewer than it may have told of."""
    result = peer.record.result
    return result is not None, len(peer.record.rounds if result is None else result.heads)


def _read_addresses(home: Path) -> list[str]:
    """Raises FileNotFoundError; the file is there as a whole, or not at all."""
    addresses: list[str] = json.loads((home / "address.json").read_bytes())["addresses"]
    return addresses


def colluders(scenario: Scenario, name: str) -> list[Address]:
    """The addresses of those that cheat together with that peer."""
    colluding = [other for other, entry in scenario.behaviours.items() if entry.collude]
    others = [other for other in colluding if other != name] if name in colluding else []
    return [derive(_seed(scenario, other, SEED_BYTES)).address for other in others]


def _seed(scenario: Scenario, name: str, count: int) -> bytes:
    return sha256(f"p2pdfl/scenario/key/{scenario.seed}/{scenario.name}/{name}".encode()).digest()[:count]


def _delay_s(scenario: Scenario, name: str) -> float:
    fraction = int.from_bytes(sha256(f"p2pdfl/scenario/instant/{scenario.seed}/{name}".encode()).digest()[:4], "big")
    return scenario.faults_by_name[name].within_s * fraction / 2**32 if name in scenario.faults_by_name else 0.0


def _lose_disk(home: Path) -> None:
    for path in home.iterdir():
        if path.name not in KEPT_WITHOUT_DISK:
            path.unlink()


def _environment(scenario: Scenario) -> dict[str, Any]:
    packages = ("p2pdfl", "torch", "numpy", "libp2p", "trio", "web3", "petlib", "coincurve")
    return {
        "seed": scenario.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _last_lines(home: Path) -> str:
    try:
        lines = (home / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (its log is empty)"
