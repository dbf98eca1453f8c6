"""What a member knows of its open round, to be looked at and not to be changed: for attackers, simulators and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType

from p2pdfl.base.types import (
    Certificate,
    Contents,
    Digest,
    EquivocationProof,
    Head,
    Packet,
    Propose,
    UpdateEntry,
    VerdictProof,
    View,
)
from p2pdfl.protocol.commits import CommitKey, HeldCommit, UpdateKey
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.round import OpenRound, Phase


class RoundView:
    def __init__(self, open_round: OpenRound) -> None:
        self._round = open_round

    @property
    def context(self) -> RoundContext:
        return self._round.context

    @property
    def phase(self) -> Phase:
        return self._round.phase

    @property
    def packets(self) -> Sequence[Packet]:
        """Everything signed that was taken in this round."""
        return tuple(self._round.packets)

    # --- COMMITs, updates -----------------------------------------------------------------

    @property
    def commits(self) -> Mapping[CommitKey, HeldCommit]:
        """Valid ones."""
        return MappingProxyType(self._round.commits.valid)

    @property
    def invalid_commits(self) -> AbstractSet[CommitKey]:
        return frozenset(self._round.commits.invalid)

    @property
    def unverified_commits(self) -> Sequence[HeldCommit]:
        commits = self._round.commits
        return (*commits.unchecked.values(), *commits.checking.values())

    @property
    def updates(self) -> AbstractSet[UpdateKey]:
        """Whose bytes are here and decode."""
        return frozenset(self._round.updates.held)

    @property
    def bad_updates(self) -> AbstractSet[UpdateKey]:
        return frozenset(self._round.updates.bad)

    @property
    def states(self) -> Mapping[tuple[UpdateEntry, ...], Digest]:
        """Aggregates that were computed here."""
        return MappingProxyType(self._round.proposals.states)

    # --- proposals, votes -----------------------------------------------------------------

    @property
    def view(self) -> View:
        return self._round.agreement.view

    @property
    def view_deadline_ms(self) -> int:
        """When the view's timer runs out."""
        return self._round.agreement.deadline_ms

    @property
    def notarizations(self) -> Mapping[View, Certificate]:
        return MappingProxyType(self._round.agreement.notarizations)

    @property
    def proposals(self) -> Mapping[Digest, Propose]:
        """By head."""
        return MappingProxyType(self._round.proposals.by_head)

    def justification(self, view: View) -> tuple[Certificate | None, tuple[Certificate, ...]] | None:
        return self._round.agreement.justification(view)

    def contents(self) -> tuple[Contents, tuple[EquivocationProof, ...], tuple[VerdictProof, ...]]:
        """As this member would close the round now."""
        return self._round.proposals.contents()

    def head(self, contents: Contents, state: Digest, block: Digest) -> Head | None:
        """Of these contents.  block: that the next list is chosen by, if this round chooses one."""
        return self._round.proposals.head(contents, state, block)

    @property
    def latest_block(self) -> Digest:
        """The newest confirmed one known here."""
        return self._round.latest_block()
