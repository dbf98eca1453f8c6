"""A run taken up in the middle: after an anchored epoch, with what one member hands out (docs/adr/0011).

The chain has the head of the epoch's last round.  Everything else is bound to it: each head names its parent and its
contents, contents name COMMITs by digest and the banned by the hash of their list, and the chain has the lists'
hashes and everybody's keys.  So whoever hands a checkpoint out can leave it broken, but cannot change a bit of what
the receiver goes on with.

Dealings and shares are not verified again: a head that is certified names only COMMITs that a quorum has verified,
and whoever could have it certified otherwise could have any state anchored, which nothing here could tell either.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed, decode_payload, digest_of
from p2pdfl.base.task import Task
from p2pdfl.base.types import (
    Address,
    Certificate,
    Checkpoint,
    CheckpointRound,
    Commit,
    CommitEntry,
    Contents,
    Dealing,
    Digest,
    Envelope,
    Epoch,
    Head,
    Kind,
    Member,
    MemberIndex,
    Packet,
    Propose,
    Registration,
    Round,
    Share,
    Wire,
)
from p2pdfl.crypto import group, pvss
from p2pdfl.crypto.envelope import BadSignature, head_digest, list_hash, recover
from p2pdfl.protocol.agreement import is_certificate
from p2pdfl.protocol.beacon import FixedDealings, fix_dealings
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import compute_context
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.history import ClosedRound, ListedRound
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.start import Genesis, Start, at_genesis

BANNED_EARLIER = "earlier"
"""Kind of evidence of a ban from before a checkpoint: who was banned is agreed on, and why is not handed on."""


class BadCheckpoint(Exception):
    """It does not belong to what the chain has anchored."""


class UnknownBlock(BadCheckpoint):
    """Its last head, which is the anchored one, names a block that this peer's chain does not have: nobody lied."""


class CheckpointRequest(Wire):
    task: Digest
    epoch: Epoch


class CheckpointReply(Wire):
    """The sha256 of the checkpoint's canonical bytes, to be pulled; None if it is not held."""

    checkpoint: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """What the chain says of the epoch, all as of one confirmed block."""

    epoch: Epoch
    head: Digest
    lists: Mapping[Epoch, Digest]
    """List hashes of `epochs_of` it."""
    registrations: tuple[Registration, ...]
    """Of all who ever registered."""


def rounds_of(task: Task, epoch: Epoch) -> range:
    """Which rounds are in that epoch's checkpoint."""
    end = task.last_round_of(epoch) + 1
    return range(max(0, end - params.checkpoint_rounds(task.verdict_rounds)), end)


def epochs_of(task: Task, epoch: Epoch) -> range:
    """Whose member lists are in it: a verdict may name a member of an epoch before that of its first round."""
    oldest_case = max(0, rounds_of(task, epoch)[0] - task.verdict_rounds)
    return range(task.epoch_of(oldest_case), epoch + 2)


def restart_from(task: Task, kept: Collection[Epoch], round: Round) -> Epoch:
    """Which of one's own, all anchored, to go on from: the newest after which one can still replay all that may be
    judged in `round`, else the oldest."""
    needed = round - task.verdict_rounds - params.AUDIT_LAG
    return max((epoch for epoch in kept if task.last_round_of(epoch) < needed), default=min(kept))


def bytes_max(task: Task, member_count: int) -> int:
    """Of an encoded checkpoint while nobody else is registered."""
    commits = member_count * (98 * member_count + 1024)
    lists = (params.CHECKPOINT_LISTS_MAX + 1) * (22 * member_count + 8)
    return params.checkpoint_rounds(task.verdict_rounds) * (commits + params.PACKET_BYTES_MAX) + lists


# --- handing out -------------------------------------------------------------------------------------------------


def make_checkpoint(
    task: Task,
    epoch: Epoch,
    *,
    epochs: Mapping[Epoch, EpochMembers],
    closed: Mapping[Round, ClosedRound],
    evidence_pool: EvidencePool,
    banned: frozenset[Address],
) -> Checkpoint:
    """banned: after the epoch's last round."""
    rounds = [closed[round] for round in rounds_of(task, epoch)]
    # nobody is banned twice
    lately = {address for each in rounds for address in evidence_pool.bans(each.contents)}
    return Checkpoint(
        epoch=epoch,
        lists=tuple(epochs[number].addresses for number in epochs_of(task, epoch)),
        banned=tuple(sorted(banned - lately)),
        rounds=tuple(_handed_out(each) for each in rounds),
    )


def _handed_out(closed: ClosedRound) -> CheckpointRound:
    proposals = [packet for packet in closed.packets if packet.envelope.kind == Kind.PROPOSE]
    return CheckpointRound(
        # one that was made again in later views is the same, but for what justified it
        proposal=proposals[0],
        commits=tuple(packet for packet in closed.packets if packet.envelope.kind == Kind.COMMIT),
        certificate=closed.certificate,
    )


# --- taking up ---------------------------------------------------------------------------------------------------


def named_block(checkpoint: Checkpoint) -> Digest:
    """The chain block that its last head names, nothing verified.  Raises BadCheckpoint."""
    return _proposed(checkpoint.rounds[-1].proposal).head.chain_block


def restore(
    config: RunConfig, genesis: Genesis, checkpoint: Checkpoint, anchored: Anchored, named: ChainSeen | None
) -> Start:
    """Where the epoch after the anchored one begins.

    named: the confirmed block `named_block`, None if the chain has no such.  Raises BadCheckpoint for anything that
    is not exactly what the chain and the members' signatures say."""
    try:
        return _restore(config, genesis, checkpoint, anchored, named)
    except (BadSignature, Malformed, group.InvalidPoint, pvss.TooFewShares) as error:
        raise BadCheckpoint(str(error)) from error


def _restore(
    config: RunConfig, genesis: Genesis, checkpoint: Checkpoint, anchored: Anchored, named: ChainSeen | None
) -> Start:
    task, epoch = config.task, checkpoint.epoch
    _ensure(epoch == anchored.epoch and epoch + 1 < task.epoch_count, "of another epoch")
    rounds = rounds_of(task, epoch)
    _ensure(len(checkpoint.rounds) == len(rounds), "more or fewer rounds")
    epochs = _epochs(task, checkpoint, anchored)
    opened = [
        _open(config, epochs[task.epoch_of(round)], round, found)
        for round, found in zip(rounds, checkpoint.rounds, strict=True)
    ]
    before = at_genesis(config, genesis) if rounds[0] == 0 else None
    _check_chain(opened, None if before is None else before.head, anchored.head)
    last = opened[-1].head
    if named is None or named.block != last.chain_block:
        raise UnknownBlock("its head names a block that the chain does not have")
    banned = dict.fromkeys(checkpoint.banned, BANNED_EARLIER)
    _ensure(tuple(sorted(banned)) == checkpoint.banned, "the banned are out of order")
    retraced = _Retraced(config, epochs, banned, before)
    for each in opened:
        retraced.take(each)
    return Start(
        round=rounds[-1] + 1,
        epochs=epochs,
        history=retraced.closed,
        beacons=retraced.beacons,
        head=opened[-1].digest,
        state=last.state,
        chain=named,
        banned=retraced.banned,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A round of a checkpoint, its signatures and digests checked, its place in the run not yet."""

    round: Round
    epoch: EpochMembers
    head: Head
    digest: Digest
    contents: Contents
    commits: tuple[Commit, ...]
    """As the contents name them."""
    packets: tuple[Packet, ...]
    certificate: Certificate

    @property
    def dealings(self) -> tuple[Dealing, ...]:
        return tuple(commit.dealing for commit in self.commits)

    @property
    def shares(self) -> dict[MemberIndex, Share]:
        named = zip(self.contents.commits, self.commits, strict=True)
        return {entry.member: commit.share for entry, commit in named if commit.share is not None}


def _epochs(task: Task, checkpoint: Checkpoint, anchored: Anchored) -> dict[Epoch, EpochMembers]:
    numbers = epochs_of(task, checkpoint.epoch)
    _ensure(len(checkpoint.lists) == len(numbers), "more or fewer member lists")
    registered = {entry.address: entry for entry in anchored.registrations}
    epochs = {}
    for number, addresses in zip(numbers, checkpoint.lists, strict=True):
        _ensure(list_hash(addresses) == anchored.lists.get(number), "another member list than the chain has")
        _ensure(registered.keys() >= set(addresses), "a member that is not registered")
        epochs[number] = EpochMembers(
            epoch=number,
            first_round=0 if number == 0 else task.last_round_of(number - 1) + 1,
            last_round=task.last_round_of(number),
            members=tuple(
                Member(address=address, peer_id=registered[address].peer_id, pvss_key=registered[address].pvss_key)
                for address in addresses
            ),
        )
    return epochs


def _open(config: RunConfig, epoch: EpochMembers, round: Round, found: CheckpointRound) -> _Opened:
    propose, certificate = _proposed(found.proposal), found.certificate
    contents, digest = propose.contents, head_digest(propose.head)
    _check_slot(config, epoch, round, found.proposal, Kind.PROPOSE)
    _ensure(propose.head.contents == digest_of(contents), "contents are not the head's")
    _ensure(
        (certificate.round, certificate.kind, certificate.head) == (round, Kind.CLOSE, digest)
        and is_certificate(certificate, config.domain, config.task_id, epoch),
        "a head without its certificate",
    )
    commits = []
    for packet in found.commits:
        sender = _check_slot(config, epoch, round, packet, Kind.COMMIT)
        commit = decode_payload(packet)
        assert isinstance(commit, Commit), "the slot's kind is COMMIT"
        commits.append((CommitEntry(member=sender, body=packet.envelope.body), commit))
    _ensure(tuple(entry for entry, _ in commits) == contents.commits, "other COMMITs than the head names")
    return _Opened(
        round=round,
        epoch=epoch,
        head=propose.head,
        digest=digest,
        contents=contents,
        commits=tuple(commit for _, commit in commits),
        packets=(*found.commits, found.proposal),
        certificate=certificate,
    )


def _proposed(packet: Packet) -> Propose:
    try:
        payload = decode_payload(packet)
    except Malformed as error:
        raise BadCheckpoint(str(error)) from error
    if not isinstance(payload, Propose):
        raise BadCheckpoint("a proposal that is none")
    return payload


def _check_slot(config: RunConfig, epoch: EpochMembers, round: Round, packet: Packet, kind: Kind) -> MemberIndex:
    """Who signed it."""
    envelope = packet.envelope
    of = Envelope(
        task=config.task_id,
        epoch=epoch.epoch,
        round=round,
        view=0 if kind is Kind.COMMIT else envelope.view,
        kind=kind,
        body=envelope.body,
    )
    _ensure(envelope == of, "a packet of another round")
    sender = epoch.indices.get(recover(config.domain, envelope, packet.signature))
    if sender is None:
        raise BadCheckpoint("a packet by no member")
    return sender


def _check_chain(opened: Sequence[_Opened], first_parent: Digest | None, anchored: Digest) -> None:
    parent = first_parent
    for each in opened:
        _ensure(parent is None or each.head.parent == parent, "heads that do not follow")
        parent = each.digest
    _ensure(parent == anchored, "another head than the anchored one")


class _Retraced:
    """What the rounds of a checkpoint give, taken one after the other."""

    def __init__(
        self, config: RunConfig, epochs: dict[Epoch, EpochMembers], banned: dict[Address, str], before: Start | None
    ) -> None:
        """before: where the first round begins if that is round 0."""
        self.banned = banned
        self.beacons = {} if before is None else dict(before.beacons)
        self.closed: dict[Round, ClosedRound] = {}
        self._listed: dict[Round, ListedRound] = {}
        self._config = config
        self._epochs = epochs
        self._evidence_pool = EvidencePool(config, epochs)
        self._last = None if before is None else (before.head, before.state, before.chain.block)
        """The last head and its words: state, chain block."""

    def take(self, opened: _Opened) -> None:
        _ensure(opened.contents.banned == list_hash(sorted(self.banned)), "others are banned")
        _ensure(
            all(self._is_member(entry.epoch, entry.member) for entry in opened.contents.evidence)
            and all(
                self._is_member(entry.epoch, max(entry.accused, entry.accuser)) for entry in opened.contents.verdicts
            ),
            "a case of no member",
        )
        # of the first two rounds, where nothing before them is known, nobody asks who was assigned what
        fixed = self._close(opened) if opened.round in self.beacons else self._list(opened)
        if fixed is not None:
            self.beacons[opened.round + 1] = fixed.recover(opened.shares)
        self.banned |= self._evidence_pool.bans(opened.contents)
        self._last = (opened.digest, opened.head.state, opened.head.chain_block)

    def _list(self, opened: _Opened) -> FixedDealings | None:
        self._listed[opened.round] = ListedRound(
            round=opened.round, epoch=opened.epoch, contents=opened.contents, dealings=opened.dealings
        )
        if self._last is None:
            return None
        return fix_dealings(
            task=self._config.task_id,
            round=opened.round - 1,
            head=self._last[0],
            holders=opened.epoch,
            dealings=self._listed[opened.round - 1].dealings,
            sharing=self._config.sharing,
        )

    def _close(self, opened: _Opened) -> FixedDealings | None:
        assert self._last is not None, "a beacon comes from the rounds before"
        parent, parent_state, chain_block = self._last
        context = compute_context(
            task=self._config.task,
            task_id=self._config.task_id,
            round=opened.round,
            epochs=self._epochs,
            closed=self._listed,
            beacon=self.beacons[opened.round],
            parent=parent,
            parent_state=parent_state,
            chain_block=chain_block,
            banned=frozenset(self.banned),
            undelivered=(),
            sharing=self._config.sharing,
        )
        closed = ClosedRound(
            round=opened.round,
            epoch=opened.epoch,
            beacon=context.beacon,
            assignment=context.assignment,
            parent_state=parent_state,
            contents=opened.contents,
            state=opened.head.state,
            certificate=opened.certificate,
            dealings=opened.dealings,
            packets=opened.packets,
        )
        self._listed[opened.round] = self.closed[opened.round] = closed
        return context.fixed

    def _is_member(self, epoch: Epoch, member: MemberIndex) -> bool:
        members = self._epochs.get(epoch)
        return members is not None and member < members.count


def _ensure(holds: bool, problem: str) -> None:
    if not holds:
        raise BadCheckpoint(problem)
