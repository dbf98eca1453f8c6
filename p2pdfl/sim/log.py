"""Every event as one canonical line; the running sha256 over the lines is the run's digest."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from p2pdfl.base.types import Certificate, Packet
from p2pdfl.protocol.events import (
    Aggregated,
    CertificateReceived,
    ChainSeen,
    Closed,
    CommitsChecked,
    Dealt,
    Decrypted,
    Event,
    Replayed,
    Resynced,
    Trained,
    UpdateHeld,
)

CHAIN = -1
"""Whose lines are the chain's."""
BATCH = 1_000
"""Lines that are hashed at once: the digest does not depend on it."""


class Log:
    def __init__(self) -> None:
        self._hasher = sha256()
        self._lines: list[str] = []
        """Not hashed yet."""
        self._hashed_count = 0
        self.sink: Callable[[str], None] | None = None
        """Given every line, without its end."""

    def write(self, now_ms: int, peer: int, what: str) -> None:
        line = f"{now_ms} {peer} {what}\n"
        self._lines.append(line)
        if len(self._lines) == BATCH:
            self._hash()
        if self.sink is not None:
            self.sink(line[:-1])

    def _hash(self) -> None:
        self._hasher.update("".join(self._lines).encode())
        self._hashed_count += len(self._lines)
        self._lines.clear()

    @property
    def line_count(self) -> int:
        return self._hashed_count + len(self._lines)

    @property
    def digest(self) -> str:
        self._hash()
        return self._hasher.hexdigest()


def packet_label(packet: Packet) -> str:
    """The signature is in it: two bodies and two signatures in one slot are told apart."""
    envelope = packet.envelope
    slot = f"{envelope.epoch}/{envelope.round}/{envelope.view}/{envelope.kind}"
    return f"packet {slot} {envelope.body.hex()} {packet.signature.hex()[:32]} {len(packet.payload)}"


def certificate_label(certificate: Certificate) -> str:
    voters = ",".join(str(ballot.member) for ballot in certificate.ballots)
    slot = f"{certificate.epoch}/{certificate.round}/{certificate.view}/{certificate.kind}"
    return f"certificate {slot} {certificate.head.hex()} {voters}"


def closed_label(closed: Closed) -> str:
    return f"closed {closed.round} {closed.beacon.hex()} {certificate_label(closed.certificate)}"


def event_label(event: Event) -> str:
    match event:
        case CertificateReceived():
            return certificate_label(event.certificate)
        case Trained():
            return f"trained {event.round} {event.update.hex()}"
        case Dealt():
            return f"dealt {event.round} {event.dealing.response[0].hex()}"
        case Decrypted():
            return f"decrypted {event.round} {event.share.decrypted.hex()}"
        case CommitsChecked():
            invalid = ",".join(sorted(body.hex()[:16] for body in event.invalid))
            return f"checked {event.round} {len(event.checked)} {invalid}"
        case UpdateHeld():
            return f"held {event.round} {event.author.hex()[:8]} {event.update.hex()[:16]} {event.valid}"
        case Aggregated():
            return f"aggregated {event.round} {event.state.hex()}"
        case Replayed():
            return f"replayed {event.audited_round} {event.author.hex()[:8]} {event.outcome.name}"
        case ChainSeen():
            return f"block {event.number} {event.block.hex()[:16]}"
        case Resynced():
            return f"resynced {event.round}"
        case _:
            return type(event).__name__.lower()
