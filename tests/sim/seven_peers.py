"""Seven whole peers, fifteen rounds, loss, one crash with and one without the disk, and a reorganization."""

from __future__ import annotations

import json
from pathlib import Path

from p2pdfl.sim import caches
from p2pdfl.sim.network import FaultyNetwork
from p2pdfl.sim.true.chain import Chain
from p2pdfl.sim.true.learner import tiny_task
from p2pdfl.sim.true.peer import Crash
from p2pdfl.sim.true.world import PeerPlan, TrueWorld, homes

CALM_S = 30.0


def drop_first_anchor(chain: Chain) -> None:
    """As soon as it is mined: a reorganization of which nothing comes again."""
    if chain.tip.state.anchored and not chain.dropped:
        chain.reorganize(2, again=0.0)


def main() -> None:
    task = tiny_task(
        training_rounds=12,
        verdict_rounds=1,
        epoch_rounds=5,
        audit_fraction=0.5,
        members_min=7,
        confirmations=2,
        commit_ms=1_000,
        reveal_ms=500,
        grace_ms=200,
        view_ms=1_000,
        resync_ms=300,
    )
    network = FaultyNetwork(
        calm_ms=round(1000 * CALM_S),
        calm_latency_ms=(5, 40),
        latency_ms=(1, 40),
        tail_chance=0.01,
        tail_ms=500,
        loss=0.1,
        duplication=0.0,
        cuts=(),
    )
    plans = {index: PeerPlan(train_s=0.3) for index in range(7)} | {
        1: PeerPlan(train_s=0.3, crashes=(Crash(at_step=500, down_s=1.0),)),
        2: PeerPlan(train_s=0.3, crashes=(Crash(at_step=1_500, down_s=1.0, is_home_lost=True),)),
    }
    with homes() as directory, caches.installed():
        world = TrueWorld(
            task, 7, seed=1, directory=Path(directory), network=network, plans=plans, calm_s=CALM_S, block_s=0.5
        )
        world.chain.on_mined = lambda: drop_first_anchor(world.chain)
        checkers = world.watch(bound_ms=300_000, amnesiacs={2})
        world.run(until_s=3_600)
        print(
            json.dumps(
                {
                    "violations": checkers.violations,
                    "rounds": task.total_rounds,
                    "lives": [peer.lives for peer in world.peers],
                    "joined_in": world.peers[2].first_round,
                    "anchors": len(world.chain.confirmed.state.anchored),
                    "dropped": world.chain.dropped,
                    "messages": world.hub.messages,
                    "virtual_s": round(world.ended_s, 1),
                    "network": world.log.digest,
                    "events": world.events_digest(),
                }
            )
        )


if __name__ == "__main__":
    main()
