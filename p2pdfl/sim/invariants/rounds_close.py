"""Once the network is calm, every honest member that is up closes a round within the bound (docs/protocol.md 3).

When a run is over that had the time, it has closed all of them, and has them on its disk.  Nothing is promised where
fewer than a quorum of honest members sign, as after too many lost their disks.
"""

from __future__ import annotations

from p2pdfl.base.params import quorum
from p2pdfl.sim.invariants.invariant import Invariant
from p2pdfl.sim.invariants.observed import PeerState


class RoundsClose(Invariant):
    def on_time(self) -> None:
        history, now_ms = self.history, self.history.world.now_ms
        for index in history.honest.values():
            peer = history.world.state(index)
            since_ms = max(history.calm_ms, history.progress_ms.get(index, 0))
            if not peer.is_up or peer.is_finished or now_ms - since_ms <= history.bound_ms:
                continue
            if not self._can_go_on(peer):
                history.out_of_bounds = "too few honest members that sign"
                return
            history.violated(
                f"peer{index} is in round {peer.round} since {since_ms} ms, for more than {history.bound_ms} ms"
            )

    def at_finish(self) -> None:
        history, total = self.history, self.history.world.task.total_rounds
        for index in history.honest.values():
            peer = history.world.state(index)
            if peer.is_up and peer.heads.keys() != set(range(peer.first_round, total)):
                history.violated(f"peer{index} is in round {peer.round} of {total}, and has closed {len(peer.heads)}")

    def _can_go_on(self, peer: PeerState) -> bool:
        """Whether the epoch that it is in has a quorum of honest members that sign."""
        history = self.history
        able = [
            address
            for address in peer.members
            if address in history.honest and not history.world.state(history.honest[address]).is_muted
        ]
        return len(able) >= quorum(len(peer.members)) or history.is_beyond_a_third
