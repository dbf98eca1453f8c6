"""No beacon can be known before the head that fixes its dealings is certified (DESIGN 3.6; docs/protocol.md 4).

Shares for a head that cannot be certified yet are fewer than the threshold, those of the Byzantine counted.  Else the
leader could choose among sets of dealings whose sums it knows.
"""

from __future__ import annotations

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.params import threshold
from p2pdfl.base.types import Commit, Digest, Kind, Packet, Round
from p2pdfl.sim.invariants.history import History
from p2pdfl.sim.invariants.invariant import Invariant


class ShareAfterCertificate(Invariant):
    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._holders: dict[tuple[Round, Digest], set[int]] = {}
        """Who gave a share for a head before it could be certified."""

    def on_sent(self, index: int, packet: Packet) -> None:
        history, envelope = self.history, packet.envelope
        if envelope.kind != Kind.COMMIT or envelope.round == 0:
            return
        commit = decode_payload(packet)
        assert isinstance(commit, Commit)
        if commit.share is None or commit.parent in history.certifiable.get(envelope.round - 1, ()):
            return
        holders = self._holders.setdefault((envelope.round, commit.parent), set())
        holders.add(index)
        members = len(history.lists[envelope.epoch])
        if len(holders) + history.byzantine_count(envelope.epoch) >= threshold(members):
            history.violated(
                f"round {envelope.round}: the beacon is open before the head that fixes its dealings is certified"
            )
