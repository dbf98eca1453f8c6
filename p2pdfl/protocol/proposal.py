"""What a leader proposes, and the rules for it (DESIGN 3.5): contents, omissions, justification, head.

Pure: `ProposalPool` applies them to what a member holds, `verify` to what a run left behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from p2pdfl.base.codec import digest_of
from p2pdfl.base.types import (
    Address,
    Certificate,
    CommitEntry,
    Contents,
    Digest,
    EquivocationProof,
    Head,
    MemberIndex,
    Propose,
    UpdateEntry,
    VerdictProof,
    View,
)
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.agreement import is_certificate, is_justified
from p2pdfl.protocol.commits import CommitKey, HeldCommit, UpdateKey, promises
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.refusal import Reject


def commit_keys(contents: Contents) -> frozenset[CommitKey]:
    return frozenset([(entry.member, entry.body) for entry in contents.commits])


def update_keys(contents: Contents) -> dict[UpdateKey, None]:
    """In the order of the contents."""
    return {(entry.member, entry.update): None for entry in contents.updates}


def justification(propose: Propose) -> tuple[Certificate, ...]:
    return propose.skips if propose.notarization is None else (propose.notarization, *propose.skips)


# --- make ---------------------------------------------------------------------------------------------------------


def compute_contents(
    context: RoundContext,
    commits: Iterable[HeldCommit],
    held_updates: Collection[UpdateKey],
    equivocations: Iterable[EquivocationProof],
    verdicts: Iterable[VerdictProof],
) -> Contents:
    """commits: one of each member, by ascending index."""
    commits = tuple(commits)
    return Contents(
        commits=tuple(CommitEntry(member=held.member, body=held.packet.envelope.body) for held in commits),
        updates=tuple(UpdateEntry(member=key[0], update=key[1]) for key in promises(commits) if key in held_updates),
        evidence=tuple(proof.entry for proof in equivocations),
        verdicts=tuple(proof.entry for proof in verdicts),
        banned=context.banned_hash,
    )


def compute_head(
    context: RoundContext, task_id: Digest, contents: Contents, *, state: Digest, next_members: Digest, block: Digest
) -> Head:
    """state: the aggregate of the contents' updates.  next_members, block: as this round must name them."""
    return Head(
        task=task_id,
        epoch=context.epoch.epoch,
        round=context.round,
        parent=context.parent,
        contents=digest_of(contents),
        state=state,
        next_members=next_members,
        chain_block=block,
    )


# --- check --------------------------------------------------------------------------------------------------------


def check_proposal(
    propose: Propose,
    view: View,
    sender: MemberIndex,
    *,
    config: RunConfig,
    context: RoundContext,
    evidence_pool: EvidencePool,
) -> None:
    """What can be checked without what the proposal names.  Raises Reject."""
    head, contents = propose.head, propose.contents
    if context.assignment.leader(view) != sender:
        raise Reject("propose: not this view's leader")
    of = (config.task_id, context.epoch.epoch, context.round, context.parent)
    if (head.task, head.epoch, head.round, head.parent) != of:
        raise Reject("propose: head of another round")
    if head.contents != digest_of(contents):
        raise Reject("propose: contents are not the head's")
    _check_contents(contents, context)
    if not is_justified(view=view, head=head_digest(head), notarization=propose.notarization, skips=propose.skips):
        raise Reject("propose: not justified")
    evidence_pool.check(propose, context.round, context.banned)
    for certificate in justification(propose):
        if certificate.round != context.round or not is_certificate(
            certificate, config.domain, config.task_id, context.epoch
        ):
            raise Reject("propose: justification does not verify")


def _check_contents(contents: Contents, context: RoundContext) -> None:
    if contents.banned != context.banned_hash:
        raise Reject("propose: others are banned")
    named = [entry.member for entry in contents.commits]
    if len(named) < context.epoch.quorum:
        raise Reject("propose: fewer than a quorum of commits")
    if not _is_strictly_ascending(named) or named[-1] >= context.epoch.count:
        raise Reject("propose: commits out of order")
    updates = [entry.member for entry in contents.updates]
    if not _is_strictly_ascending(updates) or not set(updates) <= set(named):
        raise Reject("propose: updates out of order")


def _is_strictly_ascending(items: Sequence[int]) -> bool:
    return all(low < high for low, high in pairwise(items))


@dataclass(frozen=True, slots=True)
class Required:
    """What a member held at its own deadline, and whom it knew to be guilty before the round: a fresh proposal must
    name the ones and ban the others."""

    members: AbstractSet[MemberIndex]
    """Of valid COMMITs."""
    updates: AbstractSet[UpdateKey]
    losers: AbstractSet[Address]


def omits(
    contents: Contents, required: Required, *, promised: AbstractSet[UpdateKey], banned: AbstractSet[Address]
) -> bool:
    """promised: by the COMMITs that the contents name.  banned: by the contents."""
    return not (
        required.members <= {member for member, _ in commit_keys(contents)}
        and promised & required.updates <= update_keys(contents).keys()
        and required.losers <= banned
    )
