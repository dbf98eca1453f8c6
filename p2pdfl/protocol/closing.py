"""What a round leaves when it closes: its record, its transcript, and after an epoch an anchor and a checkpoint.

Pure: `run.Run` performs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2pdfl.base.types import Address, Certificate, Commit, Epoch, MemberIndex, Packet, Propose, Round
from p2pdfl.protocol.assignment import turn_ms
from p2pdfl.protocol.checkpoint import make_checkpoint
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import Closed, Effect, KeepCheckpoint, SubmitAnchor
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.history import ClosedRound
from p2pdfl.protocol.membership import EpochMembers


def record(
    context: RoundContext,
    propose: Propose,
    certificate: Certificate,
    *,
    commits: Sequence[tuple[MemberIndex, Commit]],
    packets: tuple[Packet, ...],
) -> ClosedRound:
    """commits: as the contents name them.  packets: these and the PROPOSEs of the head."""
    return ClosedRound(
        round=context.round,
        epoch=context.epoch,
        beacon=context.beacon,
        assignment=context.assignment,
        parent_state=context.parent_state,
        contents=propose.contents,
        state=propose.head.state,
        certificate=certificate,
        dealings=tuple(commit.dealing for _, commit in commits),
        packets=packets,
    )


def transcript(context: RoundContext, propose: Propose, closed: ClosedRound, *, heard: tuple[Packet, ...]) -> Closed:
    """heard: the ACCUSEs and JUDGEs since the round before closed."""
    return Closed(
        round=closed.round,
        view=closed.certificate.view,
        head=propose.head,
        contents=closed.contents,
        certificate=closed.certificate,
        packets=(*closed.packets, *heard),
        members=closed.epoch,
        beacon=closed.beacon,
        banned=context.banned,
    )


def anchor(
    context: RoundContext,
    propose: Propose,
    certificate: Certificate,
    *,
    me: MemberIndex | None,
    following: EpochMembers | None,
) -> list[Effect]:
    """Of an epoch's last round.  following: the next epoch."""
    delay_ms = turn_ms(context.assignment, me)
    if delay_ms is None:
        return []
    return [
        SubmitAnchor(
            head=propose.head,
            certificate=certificate,
            members=context.epoch.addresses,
            next_members=following.addresses if following else (),
            delay_ms=delay_ms,
        )
    ]


def checkpoint(
    config: RunConfig,
    propose: Propose,
    *,
    epochs: Mapping[Epoch, EpochMembers],
    closed: Mapping[Round, ClosedRound],
    evidence_pool: EvidencePool,
    banned: Mapping[Address, str],
) -> list[Effect]:
    """Of an epoch's last round, but for the run's last: nobody goes on from there."""
    head = propose.head
    if head.epoch + 1 == config.task.epoch_count:
        return []
    made = make_checkpoint(
        config.task, head.epoch, epochs=epochs, closed=closed, evidence_pool=evidence_pool, banned=frozenset(banned)
    )
    return [KeepCheckpoint(checkpoint=made, state=head.state)]
