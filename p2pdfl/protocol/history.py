"""The rounds closed so far, and what the next one starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pdfl.base.types import (
    ZERO_DIGEST,
    Address,
    Certificate,
    Commit,
    Contents,
    Dealing,
    Digest,
    MemberIndex,
    Packet,
    Round,
)
from p2pdfl.protocol.assignment import Assignment
from p2pdfl.protocol.beacon import FixedDealings
from p2pdfl.protocol.membership import EpochMembers


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRound:
    """What a closed round's head lists, which is all that the two rounds after it rest on."""

    round: Round
    epoch: EpochMembers
    contents: Contents
    dealings: tuple[Dealing, ...]
    """Of the COMMITs that the head names."""

    def updates_by_address(self) -> dict[Address, Digest]:
        return {self.epoch.addresses[entry.member]: entry.update for entry in self.contents.updates}

    def committed(self) -> set[Address]:
        return {self.epoch.addresses[entry.member] for entry in self.contents.commits}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound(ListedRound):
    """What later rounds, audits and resyncs still need of a closed round."""

    beacon: Digest
    assignment: Assignment
    parent_state: Digest
    state: Digest
    certificate: Certificate
    packets: tuple[Packet, ...]


@dataclass(slots=True, kw_only=True)
class History:
    closed: dict[Round, ClosedRound]
    """The last ones, as far back as an audit, its verdict and a resync can ask."""
    beacons: dict[Round, Digest]
    head: Digest
    """Of the last closed round; before any, round 0's parent."""
    state: Digest
    """That this head names."""
    undelivered: set[Address] = field(default_factory=set)
    """Members whose last committed update was not in the head."""

    def append(
        self,
        closed: ClosedRound,
        head: Digest,
        commits: Sequence[tuple[MemberIndex, Commit]],
        fixed: FixedDealings | None,
    ) -> None:
        """commits: those that the head names.  fixed: the dealings whose shares they carry, which give the beacon."""
        self.closed[closed.round] = closed
        self.head = head
        self.state = closed.state
        self._note_undelivered(closed, commits)
        if fixed is not None:
            self.beacons[closed.round + 1] = fixed.recover(
                {member: commit.share for member, commit in commits if commit.share is not None}
            )

    def _note_undelivered(self, closed: ClosedRound, commits: Sequence[tuple[MemberIndex, Commit]]) -> None:
        revealed = {entry.member for entry in closed.contents.updates}
        for member, commit in commits:
            address = closed.epoch.addresses[member]
            if member in revealed:
                self.undelivered.discard(address)
            elif commit.update != ZERO_DIGEST:
                self.undelivered.add(address)

    def forget_before(self, round: Round) -> None:
        for old in [old for old in self.closed if old < round]:
            del self.closed[old]
        for old in [old for old in self.beacons if old < round]:
            del self.beacons[old]
