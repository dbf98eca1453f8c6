"""The words of the protocol as types: ids, numbers, and every payload that travels.

Wire types are pydantic models: fields in declared order are the fixed-length array on the wire (`codec`), and
validation at construction is the typed decoding of what another peer sent.  Past `codec.decode` types are true.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Self

from annotated_types import Ge, Len, Lt
from pydantic import BaseModel, ConfigDict, model_validator

from p2pdfl.base import params

Digest = Annotated[bytes, Len(32, 32)]
"""A sha256."""
Address = Annotated[bytes, Len(20, 20)]
"""A member's chain address, which is also its identity in update headers and lists."""
Point = Annotated[bytes, Len(33, 33)]
"""A compressed secp256k1 point; that it is on the curve is checked by `crypto.group`."""
Scalar = Annotated[bytes, Len(32, 32)]
"""A big-endian integer; that it is below the group order is checked by `crypto.group`."""
Signature = Annotated[bytes, Len(64, 64)]
"""An ECDSA signature in EIP-2098 form: r, then s with the parity of y in its top bit."""

AddressList = Annotated[tuple[Address, ...], Len(1, params.MEMBER_COUNT_MAX)]

Round = Annotated[int, Ge(0), Lt(2**32)]
Epoch = Annotated[int, Ge(0), Lt(2**32)]
View = Annotated[int, Ge(0), Lt(2**32)]
MemberIndex = Annotated[int, Ge(0), Lt(params.MEMBER_COUNT_MAX)]
BlockNumber = Annotated[int, Ge(0), Lt(2**64)]

Entropy = Callable[[int], bytes]
"""n -> n secret random bytes.  `secrets.token_bytes` in a node, a seeded stream in simulation."""

ZERO_DIGEST = bytes(32)


class Wire(BaseModel):
    """Base of everything that travels or is hashed: immutable, strict, an array in declared field order."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=False)

    @model_validator(mode="before")
    @classmethod
    def _from_array(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            names = tuple(cls.model_fields)
            if len(value) != len(names):
                raise ValueError(f"expected an array of {len(names)}")
            return dict(zip(names, value, strict=True))
        return value

    def to_array(self) -> tuple[Any, ...]:
        values = self.__dict__
        return tuple([_plain(values[name]) for name in type(self).__pydantic_fields__])

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**{name: changes.get(name, getattr(self, name)) for name in type(self).model_fields})


def _plain(value: Any) -> Any:
    # most are bytes, and whether something is a Wire is slow to ask
    if type(value) in (bytes, int):
        return value
    if isinstance(value, tuple):
        return tuple([_plain(item) for item in value])
    if isinstance(value, Wire):
        return value.to_array()
    if isinstance(value, IntEnum):
        return int(value)
    return value


class Kind(IntEnum):
    """Which payload an envelope carries.  The numbers are signed and known to the contract."""

    COMMIT = 1
    PROPOSE = 2
    NOTARIZE = 3
    CLOSE = 4
    ACCUSE = 5
    JUDGE = 6


class Outcome(IntEnum):
    """What a juror finds after replaying an accused update.  The numbers are signed and known to the contract."""

    GUILTY = 1
    """The update differs from its replay, or does not decode: the accused loses."""
    FALSE = 2
    """Digests are equal: the accuser loses."""
    VOID = 3
    """In between, as on hardware that computes differently: nobody loses."""
    OBJECTIVE = 4
    """No replay needed: an invalid dealing or share, or an update that does not decode.  Accuser = accused."""


class Envelope(Wire):
    """What a member signs, as EIP-712 typed data (`crypto.envelope`)."""

    task: Digest
    epoch: Epoch
    round: Round
    view: View
    kind: Annotated[int, Ge(1), Lt(7)]
    body: Digest


class Packet(Wire):
    """One signed message on the wire: the envelope, its signature and the payload whose sha256 is `body`."""

    envelope: Envelope
    signature: Signature
    payload: Annotated[bytes, Len(1, params.PAYLOAD_BYTES_MAX)]


class Dealing(Wire):
    """A PVSS sharing with its LDEI proof (ALBATROSS): the i-th entries belong to holder i.

    encrypted_shares: Y_i = p(i) * pk_i;  commitments: A_i = r(i) * pk_i;
    response: the t coefficients, lowest first, of z(X) = r(X) - e p(X).
    """

    encrypted_shares: Annotated[tuple[Point, ...], Len(1, params.MEMBER_COUNT_MAX)]
    commitments: Annotated[tuple[Point, ...], Len(1, params.MEMBER_COUNT_MAX)]
    response: Annotated[tuple[Scalar, ...], Len(1, params.MEMBER_COUNT_MAX)]


class Share(Wire):
    """One holder's decryption of the summed dealings, with the DLEQ proof that it was done with its key."""

    decrypted: Point
    commitment_generator: Point
    commitment_decrypted: Point
    response: Scalar


class Commit(Wire):
    """parent: the head this round builds on.  update: digest of the sender's update, zero for none.
    share: None only in round 0, where no dealings are fixed yet."""

    parent: Digest
    update: Digest
    dealing: Dealing
    share: Share | None


class CommitEntry(Wire):
    member: MemberIndex
    body: Digest


class UpdateEntry(Wire):
    member: MemberIndex
    update: Digest


class EquivocationEntry(Wire):
    """Two bodies (ascending) that one member signed in one slot."""

    member: MemberIndex
    epoch: Epoch
    round: Round
    view: View
    kind: Annotated[int, Ge(1), Lt(7)]
    body_low: Digest
    body_high: Digest


class VerdictEntry(Wire):
    """An accusation's outcome; `round` is the accusation's, `epoch` the one that round lies in."""

    epoch: Epoch
    round: Round
    accused: MemberIndex
    accuser: MemberIndex
    audited_round: Round
    outcome: Annotated[int, Ge(1), Lt(5)]


class Contents(Wire):
    """What a head closes its round with.  Every list is sorted and without repetition; no signatures.

    banned: list hash, ascending, of who was banned when the round opened.  So whoever trusts a head knows all bans
    before it without having followed the rounds (ADR 11)."""

    commits: Annotated[tuple[CommitEntry, ...], Len(0, params.MEMBER_COUNT_MAX)]
    updates: Annotated[tuple[UpdateEntry, ...], Len(0, params.MEMBER_COUNT_MAX)]
    evidence: Annotated[tuple[EquivocationEntry, ...], Len(0, params.MEMBER_COUNT_MAX)]
    verdicts: Annotated[tuple[VerdictEntry, ...], Len(0, params.MEMBER_COUNT_MAX)]
    banned: Digest


class Head(Wire):
    """The words whose sha256 closes a round (DESIGN 4).  `next_members` is the list hash of the next epoch in the
    last-but-one and last round of an epoch that has a successor, else zero."""

    task: Digest
    epoch: Epoch
    round: Round
    parent: Digest
    contents: Digest
    state: Digest
    next_members: Digest
    chain_block: Digest


class Ballot(Wire):
    """A member's signature over a vote whose words the context gives."""

    member: MemberIndex
    signature: Signature


class Certificate(Wire):
    """A quorum of one kind of vote for one head in one view.

    NOTARIZE with a head: a notarization; CLOSE with a head: the round's certificate; CLOSE with zero: a skip
    certificate.  Ballots ascend by member.
    """

    epoch: Epoch
    round: Round
    view: View
    kind: Annotated[int, Ge(3), Lt(5)]
    head: Digest
    ballots: Annotated[tuple[Ballot, ...], Len(1, params.MEMBER_COUNT_MAX)]


class VerdictProof(Wire):
    """The jurors' signatures under the JUDGE envelopes that `entry` determines."""

    entry: VerdictEntry
    ballots: Annotated[tuple[Ballot, ...], Len(1, params.MEMBER_COUNT_MAX)]


class EquivocationProof(Wire):
    """Both signatures, in the order of the entry's bodies."""

    entry: EquivocationEntry
    signature_low: Signature
    signature_high: Signature


class Propose(Wire):
    """justification: what lets this view's leader propose (DESIGN 3.7): at most one notarization of an earlier view
    and the skip certificates of the views after it.  proofs back `contents.evidence` and `contents.verdicts`."""

    contents: Contents
    head: Head
    notarization: Certificate | None
    skips: Annotated[tuple[Certificate, ...], Len(0, params.VIEW_COUNT_MAX)]
    equivocations: Annotated[tuple[EquivocationProof, ...], Len(0, params.MEMBER_COUNT_MAX)]
    verdicts: Annotated[tuple[VerdictProof, ...], Len(0, params.MEMBER_COUNT_MAX)]


class CheckpointRound(Wire):
    """A closed round as a resync hands it out: the PROPOSE of its head, the COMMITs that the head names, and its
    certificate."""

    proposal: Packet
    commits: Annotated[tuple[Packet, ...], Len(1, params.MEMBER_COUNT_MAX)]
    certificate: Certificate


class Checkpoint(Wire):
    """What a member that takes up the run after an anchored epoch needs besides the model's state
    (`protocol.checkpoint`).

    lists: addresses, ascending, of the epochs that `rounds` may name members of, to the one after `epoch`.
    banned: who was before the first of `rounds`.  rounds: the last ones of the run up to the end of `epoch`.
    """

    epoch: Epoch
    lists: Annotated[tuple[AddressList, ...], Len(2, params.CHECKPOINT_LISTS_MAX)]
    banned: Annotated[tuple[Address, ...], Len(0, params.MEMBER_COUNT_MAX)]
    rounds: Annotated[tuple[CheckpointRound, ...], Len(1, params.CHECKPOINT_ROUNDS_MAX)]


class Notarize(Wire):
    head: Digest


class Close(Wire):
    """finalize(head), or skip if zero."""

    head: Digest


class Accuse(Wire):
    accused: MemberIndex
    audited_round: Round


class Judge(Wire):
    accused: MemberIndex
    accuser: MemberIndex
    audited_round: Round
    outcome: Annotated[int, Ge(1), Lt(5)]


Payload = Commit | Propose | Notarize | Close | Accuse | Judge

PAYLOAD_TYPES: dict[Kind, type[Payload]] = {
    Kind.COMMIT: Commit,
    Kind.PROPOSE: Propose,
    Kind.NOTARIZE: Notarize,
    Kind.CLOSE: Close,
    Kind.ACCUSE: Accuse,
    Kind.JUDGE: Judge,
}


class Registration(Wire):
    """One entry of the contract's registry, as of some block."""

    address: Address
    peer_id: Annotated[bytes, Len(1, 64)]
    """The libp2p peer id in its usual base58 text, ASCII."""
    pvss_key: Point
    exiting: bool


class Member(Wire):
    address: Address
    peer_id: Annotated[bytes, Len(1, 64)]
    pvss_key: Point
