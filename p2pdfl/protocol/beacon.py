"""Dealings and shares -> the beacon (DESIGN 5).

In round r every member deals for beacon[r+2].  head[r] fixes which dealings count; in round r+1 each holder decrypts
their *sum*, once, and any t shares give the point from which everybody computes beacon[r+2].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from p2pdfl.base.types import Address, Dealing, Digest, MemberIndex, Point, Round, Share
from p2pdfl.crypto import pvss
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.sharing import Sharing


@dataclass(frozen=True, kw_only=True)
class FixedDealings:
    """The dealings that head[round] fixed, summed, for the members of the round after."""

    task: Digest
    round: Round
    head: Digest
    holders: EpochMembers
    summed: tuple[Point, ...]
    """[holder]"""
    sharing: Sharing = pvss

    def share_context(self, holder: MemberIndex) -> bytes:
        return self._share_contexts[holder]

    @cached_property
    def _share_contexts(self) -> tuple[bytes, ...]:
        """[holder]: all of them are asked for, to verify what the holders send."""
        holders = self.holders
        return tuple(
            pvss.share_context(self.task, self.round, self.head, address, holder, holders.count, holders.threshold)
            for holder, address in enumerate(holders.addresses)
        )

    def recover(self, shares: Mapping[MemberIndex, Share]) -> Digest:
        """beacon[round + 2] from verified shares.  Raises pvss.TooFewShares below the threshold."""
        point = self.sharing.recover(
            {holder: share.decrypted for holder, share in shares.items()}, self.holders.threshold
        )
        return pvss.beacon(self.task, self.round + 2, self.head, point)


def fix_dealings(
    *,
    task: Digest,
    round: Round,
    head: Digest,
    holders: EpochMembers,
    dealings: Sequence[Dealing],
    sharing: Sharing = pvss,
) -> FixedDealings:
    summed = sharing.sum_dealings(dealings)
    return FixedDealings(task=task, round=round, head=head, holders=holders, summed=summed, sharing=sharing)


def dealing_context(task: Digest, round: Round, dealer: Address, holders: EpochMembers) -> bytes:
    return pvss.dealing_context(task, round, dealer, holders.keys, holders.threshold)


def initial_beacon(task: Digest, list_hash: Digest, closing_block: Digest, round: Round) -> Digest:
    """beacon[0] and beacon[1], before any dealing: nobody chose the block that closed registration freely."""
    return sha256(b"p2pdfl/beacon/0\0" + task + list_hash + closing_block + round.to_bytes(8, "big")).digest()


def initial_parent(task: Digest, list_hash: Digest, state: Digest, closing_block: Digest) -> Digest:
    """Parent of round 0."""
    return sha256(b"p2pdfl/parent/0\0" + task + list_hash + state + closing_block).digest()
