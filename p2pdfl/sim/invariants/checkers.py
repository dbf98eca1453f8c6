"""All invariants over one run: a `Watcher` for a world of either kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from p2pdfl.base.types import Packet
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.sim.invariants.anchors_in_order import AnchorsInOrder
from p2pdfl.sim.invariants.epochs_anchored import EpochsAnchored
from p2pdfl.sim.invariants.history import History
from p2pdfl.sim.invariants.invariant import Invariant
from p2pdfl.sim.invariants.nobody_honest_blamed import NobodyHonestBlamed
from p2pdfl.sim.invariants.nobody_honest_breaks import NobodyHonestBreaks
from p2pdfl.sim.invariants.observed import Observed
from p2pdfl.sim.invariants.one_beacon_per_round import OneBeaconPerRound
from p2pdfl.sim.invariants.one_body_per_slot import OneBodyPerSlot
from p2pdfl.sim.invariants.one_head_per_round import OneHeadPerRound
from p2pdfl.sim.invariants.one_list_per_epoch import OneListPerEpoch
from p2pdfl.sim.invariants.proven_is_banned import ProvenIsBanned
from p2pdfl.sim.invariants.rounds_close import RoundsClose
from p2pdfl.sim.invariants.share_after_certificate import ShareAfterCertificate
from p2pdfl.sim.invariants.silent_only_without_disk import SilentOnlyWithoutDisk

INVARIANTS: tuple[type[Invariant], ...] = (
    OneBodyPerSlot,
    OneHeadPerRound,
    OneBeaconPerRound,
    OneListPerEpoch,
    ShareAfterCertificate,
    NobodyHonestBlamed,
    ProvenIsBanned,
    SilentOnlyWithoutDisk,
    NobodyHonestBreaks,
    AnchorsInOrder,
    EpochsAnchored,
    RoundsClose,
)


class Checkers:
    """What the Byzantine do is nobody's promise: of theirs, the invariants hear nothing."""

    def __init__(
        self,
        world: Observed,
        *,
        byzantine: Collection[int] = (),
        amnesiacs: Collection[int] = (),
        bound_ms: int,
        calm_ms: int = 0,
        is_beyond_a_third: bool = False,
        invariants: Sequence[type[Invariant]] = INVARIANTS,
    ) -> None:
        """amnesiacs: who loses its disk, though honest.  bound_ms: within which a calm network closes a round, and
        calm_ms: from when on it is calm.  is_beyond_a_third: a third or more are Byzantine on purpose, so the search
        goes on for what breaks."""
        self._byzantine = frozenset(byzantine)
        self.history = History(
            world,
            byzantine=self._byzantine,
            amnesiacs=amnesiacs,
            bound_ms=bound_ms,
            calm_ms=calm_ms,
            is_beyond_a_third=is_beyond_a_third,
        )
        self._invariants = [invariant(self.history) for invariant in invariants]
        # most look at few kinds of events, and there are many events
        self._on_sent: list[Callable[[int, Packet], None]] = [
            each.on_sent for each in self._invariants if type(each).on_sent is not Invariant.on_sent
        ]

    @property
    def violations(self) -> list[str]:
        return self.history.violations

    @property
    def out_of_bounds(self) -> str | None:
        return self.history.out_of_bounds

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to look for."""
        return bool(self.history.violations) or self.history.out_of_bounds is not None

    @property
    def is_chain_done(self) -> bool:
        return self.history.anchored_count == self.history.world.task.epoch_count

    # --- while it happens ----------------------------------------------------------------

    def on_sent(self, index: int, packet: Packet) -> None:
        if index not in self._byzantine:
            self.history.on_sent(index, packet)
            for on_sent in self._on_sent:
                on_sent(index, packet)

    def on_closed(self, index: int, closed: Closed) -> None:
        if index not in self._byzantine:
            self.history.on_closed(index, closed)
            for invariant in self._invariants:
                invariant.on_closed(index, closed)

    def on_submitted(self, index: int, duty: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None:
        if index not in self._byzantine:
            for invariant in self._invariants:
                invariant.on_submitted(index, duty)

    def on_anchored(self, anchor: SubmitAnchor) -> None:
        self.history.on_anchored(anchor)
        for invariant in self._invariants:
            invariant.on_anchored(anchor)

    def on_notice(self, index: int, notice: Notice) -> None:
        if index not in self._byzantine:
            self.history.on_notice(notice)
            for invariant in self._invariants:
                invariant.on_notice(index, notice)

    def on_broken(self, index: int, error: Exception) -> None:
        if index not in self._byzantine:
            for invariant in self._invariants:
                invariant.on_broken(index, error)

    # --- now and then ----------------------------------------------------------------------

    @property
    def look_every_ms(self) -> int:
        return max(1, self.history.bound_ms // 4)

    @property
    def first_look_ms(self) -> int:
        return self.history.calm_ms + self.history.bound_ms

    def on_time(self) -> None:
        """To be called at `first_look_ms` and every `look_every_ms` from then on."""
        for invariant in self._invariants:
            invariant.on_time()

    def at_end(self, *, is_live: bool = True) -> None:
        """is_live: whether the run had the time and the members to finish."""
        for invariant in self._invariants:
            invariant.at_end()
            if is_live:
                invariant.at_finish()
