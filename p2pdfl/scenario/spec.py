"""A scenario file: the task, how many peers, who cheats or dies and when, and what must come of it.

name = "byzantine"
peers = 8
seed = 0

[task]                  # fields of `task.Task`
training_rounds = 20

[[byzantine]]
peer = 3                # index, or name: "peer3"
behaviour = "sign_flip" # one of `byzantine.machine.Behaviour`
from_round = 3
factor = -1             # what the behaviour does with it says `byzantine.attacks`
every = 2               # only in each second round from then on
collude = true          # with all others that do: they shield each other

[[faults]]
peer = "peer5"
kind = "kill"           # by SIGKILL, as soon as it tells of that round
at_round = 4

[[faults]]
peer = "peer2"
kind = "kill"
at_round = 6
phase = "commit"        # when it has told of that: "train" (the default), "commit" (it has signed and sent its COMMIT),
                        #     "reveal", "propose" or "close" (its CLOSE); or of what comes next, if it passes that over
seconds = 10            # started again then, or
rounds = 2              #     when the others have got so many rounds further; if both stand there, after both
lose_disk = true        # with its key alone

[[faults]]
peer = "peer4"
kind = "leave"          # asks the contract to let it go; out of the members from the next epoch on
at_round = 7

[[faults]]
peer = "peer8"
kind = "join"           # starts when the first of the others tells of that round; task.members_min says how many begin
at_round = 9

[[faults]]
peer = "peer6"
kind = "stop"           # SIGSTOP then, SIGCONT after `seconds` and `rounds` as above
at_round = 4
seconds = 12
rounds = 2

[[faults]]
peer = "peer7"
kind = "unplug"         # its network interface goes down, and up again as above; needs root
at_round = 4
seconds = 15

[[partitions]]          # these and all others hear nothing of each other; needs root
peers = ["peer5", "peer6", "peer7"]
at_round = 5            # when the first peer tells of it, or of its `phase`
seconds = 15            # and `rounds`, as above

[[chain_outages]]       # nobody reaches the chain; one after the other
kind = "refuse"         # every connection is closed without an answer, or "hang": nothing answers, no block is mined
at_round = 5            # as above
seconds = 20

[network]               # each peer in a network namespace of its own; needs root, else peers share loopback
rate_mbit = 20          # of each peer's link, either way
loss_percent = 1        # of the packets that a peer receives
delay_ms = 100          # of each packet, one way: a round trip takes twice as long

[expected]
caught = { peer3 = "guilty" }
accuracy_min = 0.93
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from p2pdfl.base import config_file
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address
from p2pdfl.byzantine.machine import Behaviour, Deviation

PEER_COUNT_MAX = 64
"""Processes on one machine, about 300 MB each."""

OutageKind = Literal["refuse", "hang"]

Phase = Literal["train", "commit", "reveal", "propose", "close"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Of a round, in the order in which a peer tells of them; one that is late or behind passes some over."""

Evidence = Literal["guilty", "false", "objective", "equivocation"]
"""What a ban rests on: a verdict's outcome, or two envelopes in one slot."""


class Place(NamedTuple):
    """How far a peer is.  A later view's phases are no further than those of the first."""

    round: int
    phase_index: int

    def __str__(self) -> str:
        return f"round {self.round}, {PHASES[self.phase_index]}"


class ScenarioError(ValueError):
    """A scenario file that cannot be run, said in words that name the field."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cheat(_Table):
    behaviour: Behaviour
    from_round: int = Field(default=0, ge=0)
    factor: float | None = Field(default=None, allow_inf_nan=False)
    """What the behaviour does with it is its own affair (`byzantine.attacks`): `scale` multiplies the update by it."""
    every: int = Field(default=1, ge=1)
    """In each so-many-th round."""

    def deviation(self, colluders: Iterable[Address] = ()) -> Deviation:
        return Deviation(
            behaviour=self.behaviour,
            from_round=self.from_round,
            factor=self.factor,
            every=self.every,
            colluders=frozenset(colluders),
        )


class ByzantinePeer(Cheat):
    peer: int | str
    collude: bool = False
    """With all others of whom the file says so."""


class _Span(_Table):
    """From a phase of a round on, for so long by the clock and by the others' rounds."""

    at_round: int = Field(ge=0)
    phase: Phase = PHASES[0]
    seconds: float | None = Field(default=None, gt=0, le=3600)
    rounds: int | None = Field(default=None, ge=1)

    @property
    def place(self) -> Place:
        return Place(self.at_round, PHASES.index(self.phase))

    @property
    def has_end(self) -> bool:
        return self.seconds is not None or self.rounds is not None


class Fault(_Span):
    peer: int | str
    kind: Literal["kill", "stop", "unplug", "leave", "join"]
    lose_disk: bool = False

    @model_validator(mode="after")
    def _lasts(self) -> Fault:
        if self.kind in ("leave", "join") and self.has_end:
            raise ValueError(f"a peer to {self.kind} does so for good: it takes neither seconds nor rounds")
        if self.kind == "leave" and "phase" in self.model_fields_set:
            raise ValueError("a peer leaves once its round has closed, and in no phase of it")
        if self.kind in ("stop", "unplug") and not self.has_end:
            raise ValueError(f"a peer to {self.kind} needs seconds or rounds, after which it is back")
        if self.lose_disk and not (self.kind == "kill" and self.has_end):
            raise ValueError("lose_disk is for a peer that is killed and started again")
        return self

    @property
    def is_for_good(self) -> bool:
        """Whether the peer is not expected at the end."""
        return self.kind == "kill" and not self.has_end

    def __str__(self) -> str:
        what = {"kill": "kill", "leave": "leaves", "join": "joins"}.get(self.kind, self.kind)
        if self.kind == "kill" and self.has_end:
            what = "kill and restart without its disk" if self.lose_disk else "kill and restart"
        return f"{what} at round {self.at_round}" + (f", {self.phase}" if "phase" in self.model_fields_set else "")


class Partition(_Span):
    peers: tuple[int | str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _lasts(self) -> Partition:
        if not self.has_end:
            raise ValueError("a partition needs seconds or rounds, after which it is healed")
        return self


class ChainOutage(_Span):
    kind: OutageKind = "refuse"

    @model_validator(mode="after")
    def _lasts(self) -> ChainOutage:
        if not self.has_end:
            raise ValueError("a chain outage needs seconds or rounds, after which the chain is back")
        return self


class Conditions(_Table):
    """Between peers; the chain is reached without them (see `network`)."""

    rate_mbit: float | None = Field(default=None, ge=0.01, le=10_000, allow_inf_nan=False)
    loss_percent: float = Field(default=0, ge=0, le=50)
    delay_ms: float = Field(default=0, ge=0, le=10_000)

    def __str__(self) -> str:
        rate = "at any rate" if self.rate_mbit is None else f"{self.rate_mbit:g} Mbit/s"
        return f"{rate}, {self.loss_percent:g} % loss, {self.delay_ms:g} ms delay one way"


class Expected(_Table):
    """What is stated here comes on top of what always must hold (`judge`)."""

    caught: dict[str, Evidence] = {}
    """These peers are banned and slashed with this evidence, and nobody else is."""
    honest_banned_max: int = Field(default=0, ge=0)
    accusations_max: int | None = Field(default=None, ge=0)
    accuracy_min: float | None = Field(default=None, ge=0, le=1)
    accuracy_max: float | None = Field(default=None, ge=0, le=1)
    anchors_min: int | None = Field(default=None, ge=0)
    """Default: every epoch is anchored."""
    finished_peers_min: int | None = Field(default=None, ge=0)
    """Honest peers that reach the end.  Default: all but those that are killed."""
    noticed_s_max: float | None = Field(default=None, gt=0)
    """From each fault until all other honest peers have lost the connection."""
    closed_while_cut_min: int | None = Field(default=None, ge=0)
    closed_while_cut_max: int | None = Field(default=None, ge=0)
    """Rounds that anybody closed during each partition."""
    closed_in_outage_min: int | None = Field(default=None, ge=0)
    """Rounds that anybody closed during each outage of the chain."""
    anchored_s_max: float | None = Field(default=None, gt=0)
    """From each outage's end until the epochs that ended in it, one at least, are anchored; not one before."""
    all_commit_at_end: bool = False
    """The last round's head names a COMMIT of every peer: whoever had a fault takes part again."""


class Scenario(_Table):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    peers: Annotated[int, Field(ge=1, le=PEER_COUNT_MAX)]
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Fixes the peers' keys, so that addresses and member indices are the same in every run."""
    stall_s: float = Field(default=120, gt=0, le=3600)
    """The run is given up when no peer has made progress for so long."""
    task: Task
    byzantine: tuple[ByzantinePeer, ...] = ()
    faults: tuple[Fault, ...] = ()
    partitions: tuple[Partition, ...] = ()
    chain_outages: tuple[ChainOutage, ...] = ()
    network: Conditions | None = None
    expected: Expected = Expected()

    @model_validator(mode="before")
    @classmethod
    def _everyone_is_a_member(cls, value: Any) -> Any:
        """Unless the file says otherwise, registration closes when all peers are in that do not join later."""
        if isinstance(value, dict) and isinstance(value.get("task", {}), dict):
            task = {"members_min": _peers_at_the_start(value), "name": value.get("name"), **value.get("task", {})}
            return {**value, "task": {name: item for name, item in task.items() if item is not None}}
        return value

    @model_validator(mode="after")
    def _speaks_of_its_own_peers_and_rounds(self) -> Scenario:
        if self.task.members_min > self.peers:
            raise ValueError(f"task.members_min is {self.task.members_min}, but there are only {self.peers} peers")
        named = [("byzantine", entry.peer, entry.from_round) for entry in self.byzantine]
        named += [("faults", entry.peer, entry.at_round) for entry in self.faults]
        seen: set[str] = set()
        for table, peer, round in named:
            name = self._name(table, peer)
            if name in seen:
                raise ValueError(f"{table}: {name} is named twice; a peer does one thing at most")
            seen.add(name)
            if round >= self.task.total_rounds:
                raise ValueError(f"{table}: {name}: round {round} is after the last one, {self.task.total_rounds - 1}")
        for partition in self.partitions:
            cut = self.names_of(partition)
            if len(cut) != len(partition.peers) or len(cut) == self.peers:
                raise ValueError("partitions: names a peer twice, or all of them")
        for outage in self.chain_outages:
            if outage.at_round >= self.task.total_rounds:
                last = self.task.total_rounds - 1
                raise ValueError(f"chain_outages: round {outage.at_round} is after the last one, {last}")
        joining = [name for name, fault in self.faults_by_name.items() if fault.kind == "join"]
        if self.names[0] in joining:
            raise ValueError(f"faults: {self.names[0]} is the others' bootstrap and cannot join later")
        if self.task.members_min > self.peers - len(joining):
            raise ValueError(f"task.members_min is {self.task.members_min}, but {len(joining)} peers join later")
        cheaters = set(self.behaviours)
        for name in self.expected.caught:
            if name not in cheaters:
                raise ValueError(f"expected.caught: {name} is not in any [[byzantine]] table")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The first peer is the others' bootstrap."""
        return tuple(f"peer{index}" for index in range(self.peers))

    @property
    def behaviours(self) -> dict[str, ByzantinePeer]:
        return {self._name("byzantine", entry.peer): entry for entry in self.byzantine}

    @property
    def conditions(self) -> Conditions | None:
        """None: on loopback.  A cable to unplug or to cut takes a network, if a perfect one."""
        cuts = bool(self.partitions) or any(fault.kind == "unplug" for fault in self.faults)
        return Conditions() if self.network is None and cuts else self.network

    @property
    def faults_by_name(self) -> dict[str, Fault]:
        return {self._name("faults", entry.peer): entry for entry in self.faults}

    def names_of(self, partition: Partition) -> frozenset[str]:
        return frozenset(self._name("partitions", peer) for peer in partition.peers)

    def _name(self, table: str, peer: int | str) -> str:
        if isinstance(peer, int):
            if not 0 <= peer < self.peers:
                raise ValueError(f"{table}: there is no peer {peer}; they are numbered 0 to {self.peers - 1}")
            return self.names[peer]
        if peer not in self.names:
            raise ValueError(f"{table}: there is no peer {peer!r}; they are named peer0 to peer{self.peers - 1}")
        return peer


def _peers_at_the_start(tables: dict[str, Any]) -> Any:
    peers, faults = tables.get("peers"), tables.get("faults", ())
    if not isinstance(peers, int) or not isinstance(faults, list):
        return peers
    return peers - sum(isinstance(fault, dict) and fault.get("kind") == "join" for fault in faults)


def load(path: Path) -> Scenario:
    """Raises ScenarioError with the file, the field and what is wrong with it."""
    return config_file.load(path, Scenario, ScenarioError)


def find(name_or_path: str) -> Path:
    """The file itself, or scenarios/NAME.toml.  Raises ScenarioError."""
    return config_file.find(name_or_path, "scenario", "scenarios", ScenarioError)
