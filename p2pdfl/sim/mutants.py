"""Bugs planted on purpose, to show that the search finds such.  They wrap or patch; the protocol has no hooks for
them.

    quorum   a quorum of one vote less
    share    the share of the next beacon goes out at the notarization, before the certificate
    slot     what is signed is not on disk, so after a crash a slot is signed again
    impunity no proposal lists what is proven, so no cheat is banned
    third    no bug, but one Byzantine member too many
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from p2pdfl.base import params
from p2pdfl.base.types import ZERO_DIGEST, Commit, Kind, Packet, Propose
from p2pdfl.protocol.beacon import dealing_context, fix_dealings
from p2pdfl.protocol.events import Effect, Event, Send
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.protocol.signing import Vote
from p2pdfl.sim.disk import Disk
from p2pdfl.sim.world import World

Plant = Literal["quorum", "share", "slot", "impunity", "third"]
NodePlant = Literal["shown", "reorg", "memory"]
"""Of the true world (`true.mutants`), which takes seconds to import."""


class ForgetfulDisk(Disk):
    def put_envelope(self, packet: Packet) -> Packet:
        return packet


@contextmanager
def quorum_of_one_less() -> Iterator[None]:
    before = EpochMembers.quorum
    EpochMembers.quorum = property(lambda epoch: max(1, params.quorum(epoch.count) - 1))  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        EpochMembers.quorum = before  # type: ignore[method-assign]


@contextmanager
def impunity() -> Iterator[None]:
    before = EvidencePool.pending
    EvidencePool.pending = lambda self, round, banned: ((), ())  # type: ignore[method-assign]
    try:
        yield
    finally:
        EvidencePool.pending = before  # type: ignore[method-assign]


@dataclass(kw_only=True)
class HastyMachine:
    """Commits to the next round on a notarized head."""

    run: Run
    world: World
    me: int
    _rounds: set[int] = field(default_factory=set)

    def start(self, now_ms: int) -> list[Effect]:
        return self.run.start(now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects = self.run.handle(event, now_ms)
        return effects if self.run.is_finished else effects + self._hurry()

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        return self.run.resync_reply(request, load)

    def _hurry(self) -> list[Effect]:
        now, run = self.run.open_round, self.run
        round = now.context.round + 1
        notarized = next(iter(now.notarizations.values()), None)
        propose = None if notarized is None else now.proposals.get(notarized.head)
        epoch = run.epochs.get(run.config.task.epoch_of(min(round, run.config.task.total_rounds - 1)))
        if propose is None or notarized is None or epoch is None or round in self._rounds:
            return []
        if round >= run.config.task.total_rounds or run.address not in epoch.indices:
            return []
        commit = self._commit(propose, notarized.head, round, epoch)
        if commit is None:
            return []
        self._rounds.add(round)
        packet = run.signing.sign(Vote(Kind.COMMIT, round, 0, commit))
        return [] if packet is None else [Send(packet=packet)]

    def _commit(self, propose: Propose, head: bytes, round: int, epoch: EpochMembers) -> Commit | None:
        run, now, sharing = self.run, self.run.open_round, self.run.config.sharing
        keys = self.world.peers[self.me].keys
        entropy = self.world.entropy
        held = [now.commits.get((entry.member, entry.body)) for entry in propose.contents.commits]
        dealings = [each.commit.dealing for each in held if each is not None]
        if len(dealings) != len(held):
            return None
        task = run.config.task_id
        fixed = fix_dealings(task=task, round=round - 1, head=head, holders=epoch, dealings=dealings, sharing=sharing)
        member = epoch.indices[run.address]
        share = sharing.decrypt(
            fixed.share_context(member), keys.pvss_secret, keys.pvss_key, fixed.summed[member], entropy
        )
        following = run.epochs.get(run.config.task.epoch_of(min(round + 1, run.config.task.total_rounds - 1)), epoch)
        context = dealing_context(task, round, run.address, following)
        dealing = sharing.deal(context, following.keys, following.threshold, entropy)
        return Commit(parent=head, update=ZERO_DIGEST, dealing=dealing, share=share)
