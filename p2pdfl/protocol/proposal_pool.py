"""The proposals seen in a round, and whether their heads follow from what is here."""

from __future__ import annotations

from p2pdfl.base.codec import digest_of
from p2pdfl.base.types import (
    Contents,
    Digest,
    EquivocationProof,
    Head,
    MemberIndex,
    Packet,
    Propose,
    UpdateEntry,
    VerdictProof,
    View,
)
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.commits import CommitPool, UpdatePool
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.epochs import Epochs
from p2pdfl.protocol.events import Aggregate, Effect
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.proposal import (
    Required,
    check_proposal,
    commit_keys,
    compute_contents,
    compute_head,
    omits,
    update_keys,
)
from p2pdfl.protocol.resync import Requests


class ProposalPool:
    def __init__(
        self,
        config: RunConfig,
        context: RoundContext,
        *,
        commits: CommitPool,
        updates: UpdatePool,
        evidence_pool: EvidencePool,
        requests: Requests,
        epochs: Epochs,
    ) -> None:
        """commits, updates, evidence_pool, epochs: read only."""
        self.by_view: dict[View, dict[Digest, Propose]] = {}
        self.by_head: dict[Digest, Propose] = {}
        self.states: dict[tuple[UpdateEntry, ...], Digest] = {}
        """Aggregates that were computed here."""
        self._aggregating: set[tuple[UpdateEntry, ...]] = set()
        self._packets: dict[Digest, list[Packet]] = {}
        """By head."""
        self._config, self._context = config, context
        self._commits, self._updates, self._evidence_pool = commits, updates, evidence_pool
        self._requests, self._epochs = requests, epochs

    def check(self, propose: Propose, view: View, sender: MemberIndex) -> None:
        """What can be checked without what the proposal names.  Raises Reject."""
        check_proposal(
            propose,
            view,
            sender,
            config=self._config,
            context=self._context,
            evidence_pool=self._evidence_pool,
        )

    def add(self, packet: Packet, propose: Propose) -> None:
        digest = head_digest(propose.head)
        self.by_view.setdefault(packet.envelope.view, {})[digest] = propose
        self._packets.setdefault(digest, []).append(packet)
        self.by_head.setdefault(digest, propose)

    def packets_of(self, propose: Propose) -> tuple[Packet, ...]:
        """The COMMITs that it names, all here, and the PROPOSEs of its head."""
        named = (self._commits.valid[entry.member, entry.body].packet for entry in propose.contents.commits)
        return (*named, *self._packets[head_digest(propose.head)])

    # --- make -----------------------------------------------------------------

    def contents(self) -> tuple[Contents, tuple[EquivocationProof, ...], tuple[VerdictProof, ...]]:
        """Everything held, as this member would close the round, with the proofs that back it."""
        equivocations, verdicts = self._evidence_pool.pending(self._context.round, self._context.banned)
        contents = compute_contents(
            self._context, self._commits.one_of_each(), self._updates.held, equivocations, verdicts
        )
        return contents, equivocations, verdicts

    def next_list(self, contents: Contents, block: Digest) -> EpochMembers | None:
        """None while that block is unknown here."""
        banned = self._context.banned | self._evidence_pool.bans(contents).keys()
        return self._epochs.next_list(self._context, contents, block, banned)

    def head(self, contents: Contents, state: Digest, block: Digest) -> Head | None:
        """block: that the next list is chosen by, if this round chooses one.  None while it is unknown here."""
        context = self._context
        next_members: Digest | None = context.next_members
        if context.chooses_next_members:
            following = self.next_list(contents, block)
            next_members = None if following is None else following.list_hash
        else:
            block = context.chain_block
        if next_members is None:
            return None
        return compute_head(
            context, self._config.task_id, contents, state=state, next_members=next_members, block=block
        )

    def aggregate(self, updates: tuple[UpdateEntry, ...]) -> list[Aggregate]:
        """Unless that is being done."""
        if updates in self._aggregating:
            return []
        self._aggregating.add(updates)
        return [Aggregate(round=self._context.round, parent_state=self._context.parent_state, updates=updates)]

    def on_aggregated(self, updates: tuple[UpdateEntry, ...], state: Digest) -> None:
        self._aggregating.discard(updates)
        self.states[updates] = state

    # --- follow -----------------------------------------------------------------

    def omits(self, propose: Propose, required: Required) -> bool:
        contents = propose.contents
        return omits(
            contents,
            required,
            promised=self._commits.promised_by(commit_keys(contents)),
            banned=self._evidence_pool.bans(contents).keys(),
        )

    def missing_for(self, propose: Propose) -> list[Effect] | None:
        """None once this member can tell whether the proposal's head follows from what it names; else what to ask for
        (each once per resync)."""
        contents, context, commits, updates = propose.contents, self._context, self._commits, self._updates
        named = commit_keys(contents)
        if not commits.invalid.isdisjoint(named):
            return None
        if not named <= commits.valid.keys():
            return [*self._requests.packets("commits", digest_of(contents))]
        keys = update_keys(contents)
        if not keys.keys() <= commits.promised_by(named) or not updates.bad.isdisjoint(keys):
            return None
        lacking = [key for key in keys if key not in updates.held]
        if lacking:
            addresses = context.epoch.addresses
            return [
                want
                for member, update in lacking
                for want in self._requests.update(addresses[member], update, fetch=True)
            ]
        if contents.updates not in self.states:
            return [*self.aggregate(contents.updates)]
        block = propose.head.chain_block
        if context.chooses_next_members and self.next_list(contents, block) is None:
            return [*self._requests.block(block)]
        return None

    def is_held(self, propose: Propose) -> bool:
        """Whether all that it names is here, and valid."""
        named, updates = commit_keys(propose.contents), update_keys(propose.contents)
        return named <= self._commits.valid.keys() and self._updates.held.issuperset(updates)

    def is_sound(self, propose: Propose) -> bool:
        """Whether this member computes the proposed head.  Call once nothing is missing for it."""
        contents = propose.contents
        return (
            self.is_held(propose)
            and self._commits.promised_by(commit_keys(contents)).issuperset(update_keys(contents))
            and self.head(contents, self.states[contents.updates], propose.head.chain_block) == propose.head
        )
