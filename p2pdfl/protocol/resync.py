"""Anti-entropy between two members (DESIGN 3 "Gossip is a hint"): what one has and the other lacks.

The asker names its round and the packets it has; the answerer replies with the others of that round, the accusations
and judgements that still matter, and, if it has closed that round, the certificate.  A member that is rounds behind
asks once per round and follows.  What is missing for one thing alone is asked for once per resync (`Requests`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Annotated

from annotated_types import Len

from p2pdfl.base import params
from p2pdfl.base.codec import encode
from p2pdfl.base.types import Address, Certificate, Digest, Packet, Round, Wire
from p2pdfl.protocol.events import ReadChain, Resync, WantUpdate

PacketId = Annotated[bytes, Len(16, 16)]


class ResyncRequest(Wire):
    task: Digest
    round: Round
    have: Annotated[tuple[PacketId, ...], Len(0, params.RESYNC_HAVE_MAX)]


class ResyncReply(Wire):
    packets: Annotated[tuple[Packet, ...], Len(0, params.RESYNC_REPLY_MESSAGES_MAX)]
    certificates: Annotated[tuple[Certificate, ...], Len(0, params.RESYNC_REPLY_CERTIFICATES_MAX)]


NOTHING = ResyncReply(packets=(), certificates=())


def packet_id(packet: Packet) -> PacketId:
    return sha256(encode(packet.envelope) + packet.signature).digest()[:16]


def compute_request(task: Digest, round: Round, held: Sequence[Packet]) -> ResyncRequest:
    have = tuple(packet_id(packet) for packet in held[: params.RESYNC_HAVE_MAX])
    return ResyncRequest(task=task, round=round, have=have)


def compute_reply(
    request: ResyncRequest, packets: Iterable[Packet], certificates: Sequence[Certificate]
) -> ResyncReply:
    """As much of it as fits; what does not comes with the next request.

    By kind, COMMITs first: a head is closed with what it names, and votes come as certificates too.  So junk votes of
    which the asker takes none cannot keep it from what it needs.
    """
    have = set(request.have)
    chosen: list[Packet] = []
    size = 0
    for packet in sorted(packets, key=lambda packet: packet.envelope.kind):
        if packet_id(packet) in have:
            continue
        size += len(packet.payload) + 256
        if size > params.RESYNC_REPLY_BYTES_MAX or len(chosen) == params.RESYNC_REPLY_MESSAGES_MAX:
            break
        chosen.append(packet)
    return ResyncReply(packets=tuple(chosen), certificates=tuple(certificates[: params.RESYNC_REPLY_CERTIFICATES_MAX]))


class Requests:
    """What a member asks for in its open round, each thing once per resync."""

    def __init__(self, round: Round) -> None:
        self._round = round
        self._asked: set[tuple[object, ...]] = set()

    def forget(self) -> None:
        """A resync begins: what was asked for may be asked for again."""
        self._asked.clear()

    def packets(self, *why: object) -> list[Resync]:
        """why: what lacks some."""
        return [Resync(round=self._round)] if self._is_first(why) else []

    def update(self, author: Address, update: Digest, *, fetch: bool) -> list[WantUpdate]:
        if not self._is_first(("update", author, update, fetch)):
            return []
        return [WantUpdate(round=self._round, author=author, update=update, fetch=fetch)]

    def block(self, block: Digest) -> list[ReadChain]:
        return [ReadChain(block=block)] if self._is_first(("chain", block)) else []

    def _is_first(self, key: tuple[object, ...]) -> bool:
        if key in self._asked:
            return False
        self._asked.add(key)
        return True
