"""Once the network is calm and all have closed the last round, all epochs get on chain (DESIGN 3.8).

Every member may have to wait for all before it in the leader order.
"""

from __future__ import annotations

from p2pdfl.base import params
from p2pdfl.sim.invariants.invariant import Invariant


class EpochsAnchored(Invariant):
    def on_time(self) -> None:
        history, world = self.history, self.history.world
        up = [index for index in history.honest.values() if world.state(index).is_up]
        is_done = history.anchored_count == world.task.epoch_count
        if is_done or not all(world.state(index).is_finished for index in up):
            return
        since_ms = max(history.calm_ms, *(history.progress_ms.get(index, 0) for index in up))
        if world.now_ms - since_ms > history.bound_ms + params.ANCHOR_STAGGER_MS * len(world.addresses):
            history.violated(f"epoch {history.anchored_count} is not anchored, and all have finished at {since_ms} ms")
