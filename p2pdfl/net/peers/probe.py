"""Who answers at an address: name, TCP, multistream, Noise, one after the other, with a fresh key each time.

What answers may be anything: no more is read of it than a peer has to say, and nothing is believed but the id that its
handshake proves.
"""

from __future__ import annotations

import errno
import secrets
from dataclasses import dataclass
from enum import IntEnum

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from p2pdfl.net.addresses import Unresolved, ip_of, port_of, resolve

GREETING = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"


class Failure(IntEnum):
    """Travels in the answer to a dial-back."""

    NONE = 0
    NO_NAME = 1
    REFUSED = 2
    TIMED_OUT = 3
    NO_ROUTE = 4
    NO_PEER = 5
    NOT_TRIED = 6

    @property
    def words(self) -> str:
        return {
            Failure.NONE: "reached",
            Failure.NO_NAME: "the name has no address",
            Failure.REFUSED: "connection refused",
            Failure.TIMED_OUT: "timed out",
            Failure.NO_ROUTE: "no route to it",
            Failure.NO_PEER: "what answers there is no libp2p peer",
            Failure.NOT_TRIED: "not tried",
        }[self]


@dataclass(frozen=True, kw_only=True)
class Probe:
    failure: Failure
    peer_id: bytes = b""
    """In base58 text, of whoever proved it; empty if there was a failure."""


async def probe(address: Multiaddr, *, timeout_s: float) -> Probe:
    """Each IP address of a name in turn, until one answers.  Reads address up to its port."""
    last = Probe(failure=Failure.TIMED_OUT)
    with trio.move_on_after(timeout_s):
        try:
            resolved = await resolve(address)
        except Unresolved:
            return Probe(failure=Failure.NO_NAME)
        for one in resolved:
            last = await _probe_ip(str(ip_of(one)), port_of(one))
            if last.failure == Failure.NONE:
                return last
        return last
    return Probe(failure=Failure.TIMED_OUT)


async def _probe_ip(host: str, port: int) -> Probe:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    try:
        stream = trio.SocketStream(trio.socket.socket(family, trio.socket.SOCK_STREAM))
    except OSError:
        return Probe(failure=Failure.NO_ROUTE)
    try:
        try:
            await stream.socket.connect((host, port))
        except OSError as error:
            return Probe(failure=_failure_of(error))
        peer_id = await _handshake(stream)
        return Probe(failure=Failure.NONE, peer_id=peer_id) if peer_id else Probe(failure=Failure.NO_PEER)
    finally:
        stream.socket.close()


async def _handshake(stream: trio.SocketStream) -> bytes | None:
    own = create_new_key_pair(secrets.token_bytes(32))
    try:
        await stream.send_all(GREETING + NOISE)
        expected = GREETING + NOISE
        heard = b""
        while len(heard) < len(expected) and expected.startswith(heard):
            piece = await stream.receive_some(len(expected) - len(heard))
            if not piece:
                return None
            heard += bytes(piece)
        if heard != expected:
            return None
        noise = NoiseTransport(own, noise_privkey=create_noise_key_pair().private_key)
        secured = await noise.get_pattern().handshake_outbound(RawConnection(TrioTCPStream(stream), True), None)
        return secured.get_remote_peer().to_base58().encode()
    except Exception:  # noqa: BLE001 - whatever a hostile listener makes the handshake raise, it is no peer
        return None


def _failure_of(error: OSError) -> Failure:
    if error.errno == errno.ECONNREFUSED:
        return Failure.REFUSED
    return Failure.TIMED_OUT if error.errno == errno.ETIMEDOUT else Failure.NO_ROUTE
