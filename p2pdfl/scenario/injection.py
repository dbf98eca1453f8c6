"""Faults as the scenario has them: peers struck, the network cut, the chain taken out of reach, and all of it ended.

A fault begins at the place, a phase of a round, that its peer tells of; a cut or an outage at that of the first honest
peer.  Whoever may be it stands still there until that is done (`halt`), so that the machine's speed has no say in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from p2pdfl.scenario.faults import Cut, Outage, Step, Strike
from p2pdfl.scenario.live import Display
from p2pdfl.scenario.network import NetworkProcess
from p2pdfl.scenario.peers import Peer
from p2pdfl.scenario.processes import ChainProcess
from p2pdfl.scenario.spec import Place, Scenario


@dataclass(slots=True, kw_only=True)
class Injector:
    scenario: Scenario
    chain: ChainProcess
    network: NetworkProcess | None
    start: Callable[[Peer], None]
    """For the first time or again."""
    screen: Display
    cuts: list[Cut] = field(init=False)
    outages: list[Outage] = field(init=False)
    """In the order in which they come."""

    def __post_init__(self) -> None:
        self.cuts = [Cut(partition) for partition in self.scenario.partitions]
        self.outages = [Outage(what) for what in sorted(self.scenario.chain_outages, key=lambda what: what.place)]

    def places(self, peer: Peer) -> frozenset[Place]:
        """Where this peer is to stand still."""
        if peer.name in self.scenario.behaviours:
            return frozenset()
        spans = [*self.cuts, *self.outages]
        if peer.strike is not None and peer.strike.fault.kind not in ("leave", "join"):
            spans.append(peer.strike)
        return frozenset(span.what.place for span in spans if span.began_s is None)

    def wait(self, peers: Iterable[Peer], timeout_s: float) -> list[Peer]:
        """Those that stand still, once there are any, or none after that time."""
        listening = [peer for peer in peers if peer.halts is not None]
        told = wait([peer.halts for peer in listening if peer.halts is not None], timeout_s)
        return [peer for peer in listening if peer.halts in told and peer.take_halt()]

    def step(self, peers: Sequence[Peer]) -> None:
        """Whatever is due.  All that the peers have told must have been read."""
        for peer in peers:
            if peer.strike is not None and (peer.is_alive or peer.is_awaited):
                self._strike(peer, peer.strike, peers)
        first = self._first(peers)
        for cut in self.cuts:
            self._cut(cut, first)
        outage = next((outage for outage in self.outages if outage.ended_s is None), None)
        if outage is not None:
            self._interrupt_the_chain(outage, first)

    def bring_the_chain_back(self) -> None:
        """From an outage that outlived the run: it is read after it."""
        if any(outage.is_on for outage in self.outages):
            self.chain.come_back()

    # --- peers ------------------------------------------------------------------------------------------------------

    def _strike(self, peer: Peer, strike: Strike, peers: Sequence[Peer]) -> None:
        first = self._first(other for other in peers if other is not peer)
        others_round = 0 if first is None else first.round
        place = first if strike.fault.kind == "join" else peer.record.place
        step = strike.step(place, others_round, time.monotonic())
        if step is not None:
            what = self._inflict(peer, strike, step)
            where = "" if peer.record.place is None else f" in {peer.record.place}"
            self.screen.say(f"{peer.name} {what}{where}, as the scenario says; the others are in round {others_round}")

    def _inflict(self, peer: Peer, strike: Strike, step: Step) -> str:
        """Returns what was done, in words."""
        match strike.fault.kind, step:
            case "kill", Step.BEGIN:
                peer.kill()
                return "killed"
            case "kill", Step.END:
                if strike.fault.lose_disk:
                    peer.lose_disk()
                self.start(peer)
                return "started again with its key alone" if strike.fault.lose_disk else "started again"
            case "stop", Step.BEGIN:
                peer.stop()
                return "stopped"
            case "stop", Step.END:
                peer.go_on()
                return "goes on again"
            case "unplug", _:
                assert self.network is not None, "a cable to unplug takes a network (spec.Scenario.conditions)"
                if step is Step.BEGIN:
                    self.network.unplug(peer.name)
                    return "unplugged"
                self.network.plug_in(peer.name)
                return "plugged in again"
            case "join", _:
                self.start(peer)
                return "joins"
            case _:
                return "leaves"

    # --- what all peers use -----------------------------------------------------------------------------------------

    def _cut(self, cut: Cut, first: Place | None) -> None:
        step = cut.step(first, 0 if first is None else first.round, time.monotonic())
        if step is None:
            return
        assert self.network is not None, "a partition takes a network (spec.Scenario.conditions)"
        names = self.scenario.names_of(cut.partition)
        if step is Step.BEGIN:
            self.network.cut(names)
            self.screen.say(f"{', '.join(sorted(names))} cut off from the others, who are in {first}")
        else:
            self.network.heal()
            closed = len(cut.rounds_closed)
            self.screen.say(f"the network is whole again; {closed} rounds were closed while it was not")

    def _interrupt_the_chain(self, outage: Outage, first: Place | None) -> None:
        step = outage.step(first, 0 if first is None else first.round, time.monotonic())
        if step is Step.BEGIN:
            self.chain.go_away(outage.outage.kind)
            does = "hangs" if outage.outage.kind == "hang" else "hangs up on everybody"
            self.screen.say(f"the chain {does}; the peers are in {first}")
        elif step is Step.END:
            self.chain.come_back()
            self.screen.say(f"the chain is back; {len(outage.rounds_closed)} rounds were closed without it")

    def _first(self, peers: Iterable[Peer]) -> Place | None:
        """How far the furthest honest one is."""
        honest = (peer.record.place for peer in peers if peer.name not in self.scenario.behaviours)
        return max((place for place in honest if place is not None), default=None)
