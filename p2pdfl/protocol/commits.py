"""The COMMITs of a round, and the updates that they promise: what a head is made of (DESIGN 3.3, 3.4).

A COMMIT's dealing and share are verified in batches, one at a time.  A valid one of a trainer promises an update,
which counts once its bytes are here and decode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from p2pdfl.base.types import ZERO_DIGEST, Commit, Contents, Digest, MemberIndex, Packet
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import CheckCommits
from p2pdfl.protocol.refusal import Reject

CommitKey = tuple[MemberIndex, Digest]
"""Signer and body.  ATTACK: whoever signs a copy of another's payload has a COMMIT with the same body."""

UpdateKey = tuple[MemberIndex, Digest]
"""Author and digest.  ATTACK: another may commit the same digest, and under its header the bytes are invalid."""


@dataclass(slots=True)
class HeldCommit:
    member: MemberIndex
    commit: Commit
    packet: Packet
    promised: UpdateKey | None
    """The update that counts if its bytes come: committed by a trainer of this round."""

    @property
    def key(self) -> CommitKey:
        return (self.member, self.packet.envelope.body)


def check_commit(context: RoundContext, commit: Commit) -> None:
    """What can be checked without cryptography.  Raises Reject."""
    if commit.parent != context.parent:
        raise Reject("commit: other parent")
    if (commit.share is None) != (context.fixed is None):
        raise Reject("commit: share missing or unasked for")


@dataclass(slots=True)
class CommitPool:
    context: RoundContext
    task_id: Digest
    valid: dict[CommitKey, HeldCommit] = field(default_factory=dict)
    """In the order in which they proved so.  An equivocator may have several."""
    invalid: set[CommitKey] = field(default_factory=set)
    members: set[MemberIndex] = field(default_factory=set)
    """Whose COMMIT is among the valid ones."""
    unchecked: dict[CommitKey, HeldCommit] = field(default_factory=dict)
    checking: dict[Digest, HeldCommit] = field(default_factory=dict)
    """The batch that is being verified, by body."""

    def add(self, packet: Packet, commit: Commit, sender: MemberIndex) -> None:
        held = self._held(packet, commit, sender)
        self.unchecked[held.key] = held

    def add_own(self, packet: Packet, commit: Commit, sender: MemberIndex) -> HeldCommit:
        """This member made it itself, which is more than that its key signed it: there is nothing to verify."""
        held = self._held(packet, commit, sender)
        self._take(held)
        return held

    def _held(self, packet: Packet, commit: Commit, sender: MemberIndex) -> HeldCommit:
        is_promise = commit.update != ZERO_DIGEST and self.context.is_trainer(sender)
        return HeldCommit(sender, commit, packet, (sender, commit.update) if is_promise else None)

    def _take(self, held: HeldCommit) -> None:
        self.valid[held.key] = held
        self.members.add(held.member)

    def next_batch(self) -> list[CheckCommits]:
        """One at a time, with each body once: what arrives meanwhile makes the next one."""
        if self.checking or not self.unchecked:
            return []
        for key, held in list(self.unchecked.items()):
            body = key[1]
            if body not in self.checking:
                self.checking[body] = held
                del self.unchecked[key]
        context = self.context
        checks = tuple(
            context.check_of(self.task_id, held.member, body, held.commit) for body, held in self.checking.items()
        )
        dealt_to = context.dealt_to
        return [CheckCommits(round=context.round, checks=checks, keys=dealt_to.keys, threshold=dealt_to.threshold)]

    def on_checked(
        self, checked: tuple[Digest, ...], invalid: frozenset[Digest]
    ) -> tuple[list[HeldCommit], list[MemberIndex]]:
        """Those that are valid; the members whose COMMIT is not, which is an objective fault."""
        valid: list[HeldCommit] = []
        culprits: list[MemberIndex] = []
        for body in checked:
            held = self.checking.pop(body)
            if body in invalid:
                self.invalid.add(held.key)
                culprits.append(held.member)
            else:
                self._take(held)
                valid.append(held)
        return valid, culprits

    def one_of_each(self) -> list[HeldCommit]:
        """The first valid one of every member, by ascending index."""
        first: dict[MemberIndex, HeldCommit] = {}
        for held in self.valid.values():
            first.setdefault(held.member, held)
        return [first[member] for member in sorted(first)]

    def named(self, contents: Contents) -> list[tuple[MemberIndex, Commit]]:
        """By contents that name none but valid ones."""
        return [(entry.member, self.valid[entry.member, entry.body].commit) for entry in contents.commits]

    def update_of(self, member: MemberIndex | None) -> Digest:
        """That it committed to; zero for none."""
        return next((held.commit.update for held in self.valid.values() if held.member == member), ZERO_DIGEST)

    def promised_by(self, named: Iterable[CommitKey]) -> set[UpdateKey]:
        """By those of these COMMITs that are here."""
        return set(promises(held for key in named if (held := self.valid.get(key)) is not None))


def promises(commits: Iterable[HeldCommit]) -> Iterator[UpdateKey]:
    """The updates that count if their bytes come."""
    return (held.promised for held in commits if held.promised is not None)


@dataclass(slots=True)
class UpdatePool:
    held: set[UpdateKey] = field(default_factory=set)
    bad: set[UpdateKey] = field(default_factory=set)
    awaited: dict[UpdateKey, None] = field(default_factory=dict)
    """Promised, and neither held nor bad yet; in the order of the COMMITs."""
    unwanted: list[UpdateKey] = field(default_factory=list)
    """Those of the awaited that have not been asked for since the last resync."""

    def promise(self, held: HeldCommit) -> None:
        promised = held.promised
        if promised is None or promised in self.awaited or self._has_come(promised):
            return
        self.awaited[promised] = None
        self.unwanted.append(promised)

    def on_update(self, key: UpdateKey, *, is_valid: bool) -> bool:
        """Whether it is one that counts: committed by a trainer of this round."""
        if key not in self.awaited and not self._has_come(key):
            return False
        self.awaited.pop(key, None)
        (self.held if is_valid else self.bad).add(key)
        return True

    def _has_come(self, key: UpdateKey) -> bool:
        return key in self.held or key in self.bad

    def is_waiting(self, undelivered: Collection[MemberIndex]) -> bool:
        """For another's than these members'."""
        return any(member not in undelivered for member, _ in self.awaited)

    def take_unwanted(self) -> list[UpdateKey]:
        """To be asked for now."""
        unwanted, self.unwanted = self.unwanted, []
        return [key for key in unwanted if key in self.awaited]

    def want_all(self) -> None:
        """From the start: a resync asks for everything that is missing."""
        self.unwanted = list(self.awaited)
