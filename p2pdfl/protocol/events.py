"""What goes into the protocol machine (events) and what comes out of it (effects).

The machine never waits: an effect that takes time (training, cryptography, a look at the chain) comes back as an
event.  Each effect carries all that its performer needs, so that the node, the simulator and a test perform the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pdfl.base.types import (
    Address,
    BlockNumber,
    Certificate,
    Checkpoint,
    Commit,
    Contents,
    Dealing,
    Digest,
    EquivocationProof,
    Head,
    Outcome,
    Packet,
    Point,
    Registration,
    Round,
    Share,
    UpdateEntry,
    VerdictProof,
)
from p2pdfl.protocol.membership import EpochMembers

# --- events ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketReceived:
    packet: Packet
    source: bytes | None = None
    """Who gave it to this node, as the network names it: for the caller, who wants to know whose fault a `Reject` is.
    What the packet is worth does not depend on it."""
    is_own: bool = True
    """Whether the source gave it as its own, and not among others' in a resync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateReceived:
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Resynced:
    """A member's answer for that round has been handed over whole."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    round: Round
    update: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    round: Round
    dealing: Dealing


@dataclass(frozen=True, slots=True, kw_only=True)
class Decrypted:
    round: Round
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsChecked:
    """`invalid`: the bodies of those COMMITs whose dealing or share does not verify."""

    round: Round
    checked: tuple[Digest, ...]
    invalid: frozenset[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeld:
    """The bytes of an update that a COMMIT of `round` names are here.  Not `valid`: they do not decode under the
    author's header, which is the author's provable fault."""

    round: Round
    author: Address
    update: Digest
    valid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    round: Round
    updates: tuple[UpdateEntry, ...]
    state: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The outcome of replaying `author`'s update of `audited_round`."""

    audited_round: Round
    author: Address
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSeen:
    """A confirmed block and the registry as of it.  The first one after a start is the newest that the chain has."""

    number: BlockNumber
    block: Digest
    registrations: tuple[Registration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed; `Run.next_deadline_ms` says when the next one is due."""


Event = (
    PacketReceived
    | CertificateReceived
    | Resynced
    | Trained
    | Dealt
    | Decrypted
    | CommitsChecked
    | UpdateHeld
    | Aggregated
    | Replayed
    | ChainSeen
    | Tick
)

# --- effects -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Put the packet on disk, synced, then gossip it.  Never the other way round."""

    packet: Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    round: Round
    parent_state: Digest
    seed: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    round: Round
    context: bytes
    keys: tuple[Point, ...]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decrypt:
    round: Round
    context: bytes
    summed: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class DealingCheck:
    """One COMMIT to verify; the share's fields are None in round 0."""

    body: Digest
    commit: Commit
    dealing_context: bytes
    share_context: bytes | None
    holder_key: Point
    summed: Point | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCommits:
    round: Round
    checks: tuple[DealingCheck, ...]
    keys: tuple[Point, ...]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """Gossip (or announce) the own update's bytes."""

    round: Round
    update: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class WantUpdate:
    """Report `UpdateHeld` once these bytes are here.  `fetch`: gossip is late, pull them."""

    round: Round
    author: Address
    update: Digest
    fetch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    round: Round
    parent_state: Digest
    updates: tuple[UpdateEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    audited_round: Round
    parent_state: Digest
    seed: Digest
    author: Address
    update: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """Ask another member, over a stream, for what `Run.resync_request()` lacks."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChain:
    """Report `ChainSeen` for the latest confirmed block and, if it is confirmed, for this one."""

    block: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A round closed at this member: everything the store and the transcript keep of it.

    packets: the COMMITs that the head names, the PROPOSE, and the ACCUSEs and JUDGEs heard since the round before."""

    round: Round
    view: int
    head: Head
    contents: Contents
    certificate: Certificate
    packets: tuple[Packet, ...]
    members: EpochMembers
    beacon: Digest
    banned: frozenset[Address]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepNotarized:
    """Keep it on disk until the round closes, before the CLOSE for its head that follows leaves this member.

    Who voted for a head does not skip its view any more; so whatever crashes, there must be somebody to show the others
    the notarization, which lets them go on to the next view, and what the head follows from (docs/protocol.md).

    packets: the COMMITs that the head names and its PROPOSEs."""

    certificate: Certificate
    packets: tuple[Packet, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepCheckpoint:
    """Keep it on disk with the state of its last head, for a restart and for who joins; of all, the newest few."""

    checkpoint: Checkpoint
    state: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitAnchor:
    """delay_ms: the turn of this member, if nobody before it got it through."""

    head: Head
    certificate: Certificate
    members: tuple[Address, ...]
    next_members: tuple[Address, ...]
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitVerdict:
    proof: VerdictProof
    members: tuple[Address, ...]
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitEquivocation:
    proof: EquivocationProof
    accused: Address
    delay_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something a person or a report wants to know; changes nothing."""

    name: str
    fields: Mapping[str, str | int | float | Sequence[str] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last round closed."""


Effect = (
    Send
    | Train
    | Deal
    | Decrypt
    | CheckCommits
    | Reveal
    | WantUpdate
    | Aggregate
    | Replay
    | Resync
    | ReadChain
    | Closed
    | KeepNotarized
    | KeepCheckpoint
    | SubmitAnchor
    | SubmitVerdict
    | SubmitEquivocation
    | Notice
    | Finished
)


def notice(name: str, **fields: str | int) -> Notice:
    return Notice(name=name, fields=fields)


def phase_notice(round: Round, view: int, phase: str) -> Notice:
    return notice("phase", round=round, view=view, phase=phase)


def hex_of(address: Address) -> str:
    """As notices name a member."""
    return "0x" + address.hex()
