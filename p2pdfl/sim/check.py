"""What must hold of a simulated run, whatever the faults: checked on what the peers did, not on what they say.

`Watch` sees everything while it happens; `find_violations` looks over a run that is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from p2pdfl.base import params
from p2pdfl.base.codec import decode_payload
from p2pdfl.base.params import quorum, threshold
from p2pdfl.base.types import ZERO_DIGEST, Accuse, Address, Close, Commit, Digest, Judge, Kind, Outcome, Packet, Round
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.audit import loser
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.sim.world import World


def find_violations(world: World, *, byzantine: Collection[int] = (), is_live: bool = True) -> list[str]:
    """is_live: whether the run had the time and the members to finish."""
    honest = [index for index in range(len(world.peers)) if index not in byzantine]
    violations = [*_unsafe(world, honest)]
    if is_live:
        violations += _unfinished(world, honest)
    return violations


def _unsafe(world: World, honest: list[int]) -> Iterator[str]:
    heads: dict[Round, Digest] = {}
    addresses = {world.address(index) for index in honest}
    for index in honest:
        peer = world.peers[index]
        for round, head in world.heads(index).items():
            if heads.setdefault(round, head) != head:
                yield f"round {round}: {peer.name} closed with another head"
        for closed in peer.conflicting:
            yield f"round {closed.round}: {peer.name} closed with another head than before its restart"
        for packet in _second_bodies(peer.sent):
            yield f"{peer.name} signed twice in a slot: {packet.envelope!r}"
        for address in addresses & peer.run.banned.keys():
            yield f"{peer.name} banned the honest 0x{address.hex()}: {peer.run.banned[address]}"


def _second_bodies(sent: list[Packet]) -> Iterator[Packet]:
    bodies: dict[tuple[int, int, int], Digest] = {}
    for packet in sent:
        envelope = packet.envelope
        if bodies.setdefault((envelope.round, envelope.view, envelope.kind), envelope.body) != envelope.body:
            yield packet


def _unfinished(world: World, honest: list[int]) -> Iterator[str]:
    for index in honest:
        peer = world.peers[index]
        if peer.is_up and peer.closed.keys() != set(range(peer.first_round, world.task.total_rounds)):
            yield f"{peer.name} is in round {peer.run.round} of {world.task.total_rounds} at {world.now_ms} ms"


@dataclass(kw_only=True)
class Watch:
    """Checks after every event, at a cost that does not grow with the run.

    Agreement      no two heads of a round that have, or could get from the Byzantine, a quorum of CLOSE in one view;
                   all honest members close a round with the same head and the same beacon
    Slots          nobody honest sends two bodies in a slot, whatever crashes lie between; none is stopped by its own
                   disk, and none falls silent whose disk is whole
    Blame          nobody honest accuses, judges guilty, bans or has slashed somebody honest
    Beacon         shares for a head that is not certified are fewer than the threshold, those of the Byzantine counted
    Chain          each epoch is anchored once, in order, with the head that its last round closed with
    Liveness       once the network is calm, every honest member that is up closes a round within `bound_ms`, and once
                   all have closed the last one, all epochs get on chain
    """

    world: World
    byzantine: frozenset[int]
    amnesiacs: frozenset[int] = frozenset()
    bound_ms: int
    calm_ms: int = 0
    is_beyond_a_third: bool = False
    """Whether a third or more are Byzantine on purpose: then the search goes on for what breaks."""
    violations: list[str] = field(default_factory=list)
    out_of_bounds: str | None = None
    """Why nothing is promised from here on: as when so many honest members were absent that the Byzantine are a third
    of the next list."""
    views: Counter[int] = field(default_factory=Counter)
    """How many rounds closed in which view."""

    _bodies: dict[tuple[int, int, int, int], Digest] = field(default_factory=dict)
    _closes: dict[tuple[Round, int, Digest], set[int]] = field(default_factory=dict)
    _certified: dict[Round, Digest] = field(default_factory=dict)
    """Which head has a quorum, the votes that the Byzantine could cast counted."""
    _shares: dict[tuple[Round, Digest], set[int]] = field(default_factory=dict)
    _closed: dict[Round, tuple[Digest, Digest]] = field(default_factory=dict)
    _epochs: dict[int, frozenset[Address]] = field(default_factory=dict)
    _anchored_count: int = 0
    _progress_ms: dict[int, int] = field(default_factory=dict)
    _honest: dict[Address, int] = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        self._honest = {world.address(index): index for index in range(len(world.peers)) if index not in self.byzantine}
        world.watch = self
        world.at(self.calm_ms + self.bound_ms, self._check_progress)

    @property
    def is_over(self) -> bool:
        return bool(self.violations) or self.out_of_bounds is not None

    @property
    def is_chain_done(self) -> bool:
        return self._anchored_count == self.world.task.epoch_count

    # --- what peers do ---------------------------------------------------------------

    def on_sent(self, index: int, packet: Packet) -> None:
        if index in self.byzantine:
            return
        envelope = packet.envelope
        slot = (index, envelope.round, envelope.view, envelope.kind)
        before = self._bodies.setdefault(slot, envelope.body)
        if before != envelope.body:
            self._violated(f"peer{index} signed twice in a slot: {_slot(packet)}")
        elif envelope.kind == Kind.CLOSE:
            self._on_close_vote(index, packet)
        elif envelope.kind == Kind.COMMIT and envelope.round > 0:
            self._on_share(index, packet)
        elif envelope.kind in (Kind.ACCUSE, Kind.JUDGE):
            self._on_case(index, packet)

    def on_closed(self, index: int, closed: Closed) -> None:
        if index in self.byzantine:
            return
        peer, head = self.world.peers[index], closed.certificate.head
        self._progress_ms[index] = self.world.now_ms
        first = self._closed.get(closed.round)
        if first is None:
            self._closed[closed.round] = (head, closed.beacon)
            self.views[closed.certificate.view] += 1
            if self._certified.get(closed.round) != head:
                self._violated(f"round {closed.round}: peer{index} closed with a head that no quorum certified")
        elif first != (head, closed.beacon):
            what = "head" if first[0] != head else "beacon"
            self._violated(f"round {closed.round}: peer{index} closed with another {what}")
        for address in sorted(closed.banned & self._honest.keys()):
            self._violated(f"round {closed.round}: peer{self._honest[address]} is honest and banned at peer{index}")
        if index not in self.amnesiacs and peer.run.is_muted:
            self._violated(f"round {closed.round}: peer{index} fell silent though its disk is whole")

    def on_submitted(self, index: int, duty: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None:
        if index in self.byzantine:
            return
        accused: Address | None = None
        match duty:
            case SubmitEquivocation():
                accused = duty.accused
            case SubmitVerdict():
                lost = loser(duty.proof.entry)
                accused = None if lost is None else duty.members[lost]
            case SubmitAnchor():
                pass
        if accused in self._honest:
            self._violated(f"peer{index} has the honest peer{self._honest[accused]} slashed: {type(duty).__name__}")

    def on_anchored(self, anchor: SubmitAnchor) -> None:
        head, task = anchor.head, self.world.task
        if head.epoch != self._anchored_count:
            self._violated(f"epoch {head.epoch} is anchored, and it is the turn of {self._anchored_count}")
        self._anchored_count = head.epoch + 1
        closed = self._closed.get(head.round)
        if head.round != task.last_round_of(head.epoch) or closed is None or closed[0] != head_digest(head):
            self._violated(f"epoch {head.epoch} is anchored with another head than its last round closed with")

    def on_notice(self, index: int, notice: Notice) -> None:
        if index in self.byzantine or notice.name != "members":
            return
        epoch, addresses = notice.fields["epoch"], notice.fields["addresses"]
        assert isinstance(epoch, int)
        assert isinstance(addresses, list)
        members = frozenset(bytes.fromhex(address[2:]) for address in addresses)
        if self._epochs.setdefault(epoch, members) != members:
            self._violated(f"epoch {epoch}: peer{index} has another list")
        liars = self._liars(epoch)
        if 3 * liars >= len(members) and not self.is_beyond_a_third:
            self.out_of_bounds = f"{liars} Byzantine of {len(members)} in epoch {epoch}"

    def on_broken(self, index: int, error: Exception) -> None:
        if index not in self.byzantine:
            self._violated(f"peer{index} broke: {type(error).__name__}: {error}")

    # --- what follows ------------------------------------------------------------------

    def _on_close_vote(self, index: int, packet: Packet) -> None:
        vote = decode_payload(packet)
        assert isinstance(vote, Close)
        if vote.head == ZERO_DIGEST:
            return
        envelope = packet.envelope
        voters = self._closes.setdefault((envelope.round, envelope.view, vote.head), set())
        voters.add(index)
        if len(voters) + self._liars(envelope.epoch) < quorum(len(self._epochs[envelope.epoch])):
            return
        if self._certified.setdefault(envelope.round, vote.head) != vote.head:
            self._violated(f"round {envelope.round}: two heads can be certified, the second in view {envelope.view}")

    def _on_share(self, index: int, packet: Packet) -> None:
        commit = decode_payload(packet)
        assert isinstance(commit, Commit)
        round, epoch = packet.envelope.round, packet.envelope.epoch
        if commit.share is None or self._certified.get(round - 1) == commit.parent:
            return
        holders = self._shares.setdefault((round, commit.parent), set())
        holders.add(index)
        if len(holders) + self._liars(epoch) >= threshold(len(self._epochs[epoch])):
            self._violated(f"round {round}: the beacon is open before the head that fixes its dealings is certified")

    def _on_case(self, index: int, packet: Packet) -> None:
        payload = decode_payload(packet)
        members = sorted(self._epochs[packet.envelope.epoch])
        accused: Address | None = None
        if isinstance(payload, Accuse):
            accused = members[payload.accused]
        elif isinstance(payload, Judge) and payload.outcome != Outcome.VOID:
            accused = members[payload.accuser if payload.outcome == Outcome.FALSE else payload.accused]
        if accused in self._honest:
            self._violated(f"peer{index} finds the honest peer{self._honest[accused]} guilty: {payload!r}")

    def _liars(self, epoch: int) -> int:
        return sum(address not in self._honest for address in self._epochs[epoch])

    def _check_progress(self) -> None:
        world = self.world
        if self.is_over:
            return
        world.at(world.now_ms + self.bound_ms // 4, self._check_progress)
        self._check_anchors()
        for index in sorted(self._honest.values()):
            peer = world.peers[index]
            since_ms = max(self.calm_ms, self._progress_ms.get(index, 0))
            if peer.is_up and not peer.run.is_finished and world.now_ms - since_ms > self.bound_ms:
                if not self._can_go_on(index):
                    self.out_of_bounds = "too few honest members that sign"
                    return
                self._violated(
                    f"peer{index} is in round {peer.run.round} since {since_ms} ms, for more than {self.bound_ms} ms"
                )

    def _check_anchors(self) -> None:
        """Every member may have to wait for all before it in the leader order."""
        world = self.world
        up = [index for index in self._honest.values() if world.peers[index].is_up]
        if self.is_chain_done or not all(world.peers[index].run.is_finished for index in up):
            return
        since_ms = max(self.calm_ms, *(self._progress_ms.get(index, 0) for index in up))
        if world.now_ms - since_ms > self.bound_ms + params.ANCHOR_STAGGER_MS * len(world.peers):
            self._violated(f"epoch {self._anchored_count} is not anchored, and all have finished at {since_ms} ms")

    def _can_go_on(self, index: int) -> bool:
        """Whether the epoch that it is in has a quorum of honest members that sign."""
        epoch = self.world.peers[index].run.epoch
        able = [
            address
            for address in epoch.addresses
            if address in self._honest and not self.world.peers[self._honest[address]].run.is_muted
        ]
        return len(able) >= quorum(epoch.count) or self.is_beyond_a_third

    def _violated(self, what: str) -> None:
        self.violations.append(f"{self.world.now_ms} ms: {what}")


def _slot(packet: Packet) -> str:
    envelope = packet.envelope
    return f"round {envelope.round}, view {envelope.view}, {Kind(envelope.kind).name}"
