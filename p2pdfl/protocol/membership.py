"""Registrations -> an epoch's members and its quorums (DESIGN 1, 2, 3 "Epoch change").

Members are ordered by ascending address; n, q, t and the list are fixed within an epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from p2pdfl.base import params
from p2pdfl.base.types import Address, Digest, Epoch, Member, MemberIndex, Point, Registration, Round
from p2pdfl.crypto.envelope import list_hash


@dataclass(frozen=True, kw_only=True)
class EpochMembers:
    epoch: Epoch
    first_round: Round
    last_round: Round
    members: tuple[Member, ...]

    @cached_property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(member.address for member in self.members)

    @cached_property
    def keys(self) -> tuple[Point, ...]:
        return tuple(member.pvss_key for member in self.members)

    @cached_property
    def indices(self) -> dict[Address, MemberIndex]:
        return {address: index for index, address in enumerate(self.addresses)}

    @cached_property
    def list_hash(self) -> Digest:
        return list_hash(self.addresses)

    @cached_property
    def count(self) -> int:
        return len(self.members)

    @cached_property
    def quorum(self) -> int:
        return params.quorum(self.count)

    @cached_property
    def threshold(self) -> int:
        return params.threshold(self.count)

    @cached_property
    def jury(self) -> int:
        return params.jury(self.count)


def select_members(registrations: Iterable[Registration], excluded: Collection[Address]) -> tuple[Member, ...]:
    """Registered, not exiting and not excluded (banned or absent), by ascending address."""
    return tuple(
        Member(address=entry.address, peer_id=entry.peer_id, pvss_key=entry.pvss_key)
        for entry in sorted(registrations, key=lambda entry: entry.address)
        if not entry.exiting and entry.address not in excluded
    )
