"""A world in which nothing happens but what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from p2pdfl.base.codec import body_digest, encode
from p2pdfl.base.task import Task
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Address,
    Ballot,
    Certificate,
    Close,
    Commit,
    Contents,
    Dealing,
    Digest,
    Envelope,
    Epoch,
    Head,
    Kind,
    Member,
    Packet,
    Payload,
    Round,
    Share,
    View,
)
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.sim.invariants.checkers import Checkers
from p2pdfl.sim.invariants.invariant import Invariant
from p2pdfl.sim.world import stand_in_task

PEERS = 7
"""Five are a quorum, three a threshold; two may be Byzantine."""
BYZANTINE = (5, 6)
HONEST = (0, 1, 2, 3, 4)
BOUND_MS = 1_000
ADDRESSES = tuple(bytes([index + 1]) * 20 for index in range(PEERS))
SIGNATURE, POINT, SCALAR = bytes(64), b"\x02" * 33, bytes(32)
MEMBERS = EpochMembers(
    epoch=0,
    first_round=0,
    last_round=2,
    members=tuple(Member(address=address, peer_id=b"peer", pvss_key=POINT) for address in ADDRESSES),
)


def a_digest(name: str) -> Digest:
    return sha256(name.encode()).digest()


@dataclass
class FakePeer:
    is_up: bool = True
    is_finished: bool = False
    is_muted: bool = False
    round: Round = 0
    members: tuple[Address, ...] = ADDRESSES
    first_round: Round = 0
    heads: dict[Round, Digest] = field(default_factory=dict)
    banned: dict[Address, str] = field(default_factory=dict)


class Fabricated:
    """Six rounds in two epochs, all peers members, checked by one invariant."""

    def __init__(self, invariant: type[Invariant], *, amnesiacs: tuple[int, ...] = ()) -> None:
        self.task: Task = stand_in_task(training_rounds=3, verdict_rounds=1, epoch_rounds=3, members_min=4)
        self.now_ms = 0
        self.addresses = ADDRESSES
        self.peers = [FakePeer() for _ in range(PEERS)]
        self.checkers = Checkers(
            self, byzantine=BYZANTINE, amnesiacs=amnesiacs, bound_ms=BOUND_MS, calm_ms=500, invariants=(invariant,)
        )
        for index in HONEST:
            for epoch in (0, 1):
                self.told_members(index, epoch)

    def state(self, index: int) -> FakePeer:
        return self.peers[index]

    @property
    def violations(self) -> list[str]:
        """Without the times."""
        return [violation.split(": ", 1)[1] for violation in self.checkers.violations]

    # --- what peers do -----------------------------------------------------------------

    def told_members(self, index: int, epoch: Epoch, addresses: tuple[Address, ...] = ADDRESSES) -> None:
        names = ["0x" + address.hex() for address in addresses]
        self.checkers.on_notice(index, Notice(name="members", fields={"epoch": epoch, "addresses": names}))

    def sends(self, index: int, payload: Payload, kind: Kind, *, round: Round, view: View = 0) -> None:
        envelope = Envelope(
            task=ZERO_DIGEST,
            epoch=self.task.epoch_of(round),
            round=round,
            view=view,
            kind=kind,
            body=body_digest(payload),
        )
        packet = Packet(envelope=envelope, signature=SIGNATURE, payload=encode(payload))
        self.checkers.on_sent(index, packet)

    def finalizes(self, indices: tuple[int, ...], head: Digest, *, round: Round, view: View = 0) -> None:
        for index in indices:
            self.sends(index, Close(head=head), Kind.CLOSE, round=round, view=view)

    def gives_share(self, indices: tuple[int, ...], parent: Digest, *, round: Round) -> None:
        for index in indices:
            self.sends(index, a_commit(parent), Kind.COMMIT, round=round)

    def closes(
        self,
        index: int,
        head: Head,
        *,
        view: View = 0,
        beacon: str = "beacon",
        banned: frozenset[Address] = frozenset(),
    ) -> None:
        self.peers[index].round = head.round + 1
        certificate = Certificate(
            epoch=head.epoch,
            round=head.round,
            view=view,
            kind=Kind.CLOSE,
            head=head_digest(head),
            ballots=(Ballot(member=0, signature=SIGNATURE),),
        )
        self.checkers.on_closed(
            index,
            Closed(
                round=head.round,
                view=view,
                head=head,
                contents=Contents(commits=(), updates=(), evidence=(), verdicts=(), banned=ZERO_DIGEST),
                certificate=certificate,
                packets=(),
                members=MEMBERS,
                beacon=a_digest(beacon),
                banned=banned,
            ),
        )

    def anchors(self, head: Head) -> None:
        self.checkers.on_anchored(an_anchor(head))


def a_head(round: Round, name: str = "state") -> Head:
    return Head(
        task=ZERO_DIGEST,
        epoch=round // 3,
        round=round,
        parent=ZERO_DIGEST,
        contents=ZERO_DIGEST,
        state=a_digest(name),
        next_members=ZERO_DIGEST,
        chain_block=ZERO_DIGEST,
    )


def a_commit(parent: Digest) -> Commit:
    share = Share(decrypted=POINT, commitment_generator=POINT, commitment_decrypted=POINT, response=SCALAR)
    dealing = Dealing(encrypted_shares=(POINT,), commitments=(POINT,), response=(SCALAR,))
    return Commit(parent=parent, update=ZERO_DIGEST, dealing=dealing, share=share)


def an_anchor(head: Head) -> SubmitAnchor:
    certificate = Certificate(
        epoch=head.epoch,
        round=head.round,
        view=0,
        kind=Kind.CLOSE,
        head=head_digest(head),
        ballots=(Ballot(member=0, signature=SIGNATURE),),
    )
    return SubmitAnchor(head=head, certificate=certificate, members=ADDRESSES, next_members=ADDRESSES, delay_ms=0)
