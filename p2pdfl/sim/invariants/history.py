"""What has happened so far, as far as more than one invariant needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.params import quorum
from p2pdfl.base.types import ZERO_DIGEST, Address, Close, Digest, Epoch, Kind, Packet, Round, View
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor
from p2pdfl.sim.invariants.observed import Observed


class History:
    def __init__(
        self,
        world: Observed,
        *,
        byzantine: Collection[int],
        amnesiacs: Collection[int],
        bound_ms: int,
        calm_ms: int,
        is_beyond_a_third: bool,
    ) -> None:
        self.world = world
        self.amnesiacs = frozenset(amnesiacs)
        self.bound_ms = bound_ms
        self.calm_ms = calm_ms
        self.is_beyond_a_third = is_beyond_a_third
        self.honest: dict[Address, int] = {
            address: index for index, address in enumerate(world.addresses) if index not in byzantine
        }
        self.lists: dict[Epoch, frozenset[Address]] = {}
        """Of whoever named it first."""
        self.certifiable: dict[Round, dict[Digest, View]] = {}
        """Which heads have a quorum of CLOSE, the votes that the Byzantine could cast counted, and from which view."""
        self.closed: dict[Round, Closed] = {}
        """Of whoever closed it first."""
        self.progress_ms: dict[int, int] = {}
        """peer -> when it last closed a round"""
        self.anchored_count = 0
        self.views: Counter[View] = Counter()
        """How many rounds closed in which view."""
        self.violations: list[str] = []
        self.out_of_bounds: str | None = None
        """Why nothing is promised from here on: as when so many honest members were absent that the Byzantine are a
        third of the next list."""
        self._voters: dict[tuple[Round, View, Digest], set[int]] = {}

    def violated(self, what: str) -> None:
        self.violations.append(f"{self.world.now_ms} ms: {what}")

    def byzantine_count(self, epoch: Epoch) -> int:
        return sum(address not in self.honest for address in self.lists[epoch])

    # --- what honest peers do ----------------------------------------------------------

    def on_sent(self, index: int, packet: Packet) -> None:
        envelope = packet.envelope
        if envelope.kind != Kind.CLOSE:
            return
        vote = decode_payload(packet)
        assert isinstance(vote, Close)
        if vote.head == ZERO_DIGEST:
            return
        voters = self._voters.setdefault((envelope.round, envelope.view, vote.head), set())
        voters.add(index)
        if len(voters) + self.byzantine_count(envelope.epoch) >= quorum(len(self.lists[envelope.epoch])):
            self.certifiable.setdefault(envelope.round, {}).setdefault(vote.head, envelope.view)

    def on_closed(self, index: int, closed: Closed) -> None:
        self.progress_ms[index] = self.world.now_ms
        if self.closed.setdefault(closed.round, closed) is closed:
            self.views[closed.certificate.view] += 1

    def on_notice(self, notice: Notice) -> None:
        if notice.name != "members":
            return
        epoch, members = epoch_list(notice)
        if self.lists.setdefault(epoch, members) is not members or self.is_beyond_a_third:
            return
        liars = self.byzantine_count(epoch)
        if 3 * liars >= len(members):
            self.out_of_bounds = f"{liars} Byzantine of {len(members)} in epoch {epoch}"

    def on_anchored(self, anchor: SubmitAnchor) -> None:
        self.anchored_count = anchor.head.epoch + 1


def epoch_list(notice: Notice) -> tuple[Epoch, frozenset[Address]]:
    """Of a notice "members"."""
    epoch, addresses = notice.fields["epoch"], notice.fields["addresses"]
    assert isinstance(epoch, int)
    assert isinstance(addresses, list)
    return epoch, frozenset(bytes.fromhex(address[2:]) for address in addresses)
