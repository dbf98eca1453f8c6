"""Members with real keys, and what they sign, for tests of the protocol's parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from p2pdfl.base.codec import body_digest, encode
from p2pdfl.base.types import (
    Ballot,
    Certificate,
    Close,
    Digest,
    Envelope,
    Kind,
    Member,
    Notarize,
    Packet,
    Payload,
    Registration,
)
from p2pdfl.crypto.envelope import Domain, Signer
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.protocol.membership import EpochMembers

TASK = sha256(b"task").digest()
DOMAIN = Domain(chain_id=1, contract=bytes(20))
HEAD, OTHER = sha256(b"head").digest(), sha256(b"other").digest()


@dataclass(frozen=True)
class Peer:
    keys: Keys
    signer: Signer


@lru_cache
def peers(count: int) -> tuple[Peer, ...]:
    """By ascending address, as members are."""
    keys = [derive(sha256(b"seed%d" % index).digest()) for index in range(count)]
    return tuple(sorted((Peer(key, Signer(key.chain_secret)) for key in keys), key=lambda peer: peer.signer.address))


def registrations(count: int) -> tuple[Registration, ...]:
    return tuple(
        Registration(address=peer.signer.address, peer_id=b"peer%d" % index, pvss_key=peer.keys.pvss_key, exiting=False)
        for index, peer in enumerate(peers(count))
    )


@lru_cache
def an_epoch(count: int, *, epoch: int = 0, first_round: int = 0, last_round: int = 9) -> EpochMembers:
    return EpochMembers(
        epoch=epoch,
        first_round=first_round,
        last_round=last_round,
        members=tuple(
            Member(address=entry.address, peer_id=entry.peer_id, pvss_key=entry.pvss_key)
            for entry in registrations(count)
        ),
    )


@lru_cache(maxsize=4096)
def a_packet(
    count: int,
    member: int,
    kind: Kind,
    payload: Payload,
    *,
    round: int = 0,
    view: int = 0,
    epoch: int = 0,
    task: Digest = TASK,
) -> Packet:
    envelope = Envelope(task=task, epoch=epoch, round=round, view=view, kind=int(kind), body=body_digest(payload))
    return Packet(
        envelope=envelope, signature=peers(count)[member].signer.sign(DOMAIN, envelope), payload=encode(payload)
    )


def a_certificate(
    count: int,
    kind: Kind,
    head: Digest,
    *,
    voters: Iterable[int],
    view: int = 0,
    round: int = 0,
    epoch: int = 0,
) -> Certificate:
    vote: Payload = Notarize(head=head) if kind == Kind.NOTARIZE else Close(head=head)
    return Certificate(
        epoch=epoch,
        round=round,
        view=view,
        kind=int(kind),
        head=head,
        ballots=tuple(
            Ballot(
                member=voter,
                signature=a_packet(count, voter, kind, vote, round=round, view=view, epoch=epoch).signature,
            )
            for voter in voters
        ),
    )
