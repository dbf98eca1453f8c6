"""What a simulated run costs, and how the protocol's traffic grows with the number of peers.

Seconds and memory of 64 peers over 50 rounds and of 256 over 10, each in a process of its own, on one core, with
digests for updates and the stand-in sharing; then messages and bytes per peer and round, 4 to 256 peers.  Written to
docs/simulator.csv and docs/simulator.svg.

    python benchmarks/simulator.py             all of it: minutes
    python benchmarks/simulator.py 64 50       one size
"""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
import time
from pathlib import Path

from p2pdfl.sim import caches
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import World, stand_in_task

SIZES = ((64, 50), (256, 10))
GROWTH = (4, 8, 16, 32, 64, 128, 256)
GROWTH_ROUNDS = 4
DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = ("peers", "rounds", "seconds", "cpu_seconds", "mebibytes", "messages_per_peer_round", "bytes_per_peer_round")


def measure(peers: int, rounds: int) -> tuple[float, ...]:
    """A message counts once for each peer that it is for, as if there were no gossip mesh."""
    task = stand_in_task(
        training_rounds=max(1, rounds - 3), verdict_rounds=1, epoch_rounds=max(3, rounds // 2), members_min=4
    )
    with caches.installed():
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        world = World(task, peers, seed=1, sharing=StandInSharing())
        world.run(until_ms=24 * 3_600_000, until=lambda: world.peers[0].run.is_finished and world.is_finished())
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert world.is_finished()
    work = peers * task.total_rounds
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (seconds, cpu_s, mebibytes, world.message_count / work, world.byte_count / work)


def measure_apart(peers: int, rounds: int) -> list[str]:
    run = subprocess.run(
        [sys.executable, __file__, str(peers), str(rounds)], check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()[-1].split(",")


def main() -> None:
    if len(sys.argv) == 3:
        peers, rounds = int(sys.argv[1]), int(sys.argv[2])
        print(",".join([str(peers), str(rounds), *(f"{value:.1f}" for value in measure(peers, rounds))]))
        return
    rows = []
    for peers, rounds in (*SIZES, *((peers, GROWTH_ROUNDS) for peers in GROWTH)):
        rows.append(measure_apart(peers, rounds))
        print(dict(zip(COLUMNS, rows[-1], strict=True)), flush=True)
    with (DOCS / "simulator.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    _plot(rows[len(SIZES) :])


def _plot(rows: list[list[str]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "simulator"
    import matplotlib.pyplot as plt

    peers = [int(row[0]) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, column, label in ((axes[0], 5, "messages"), (axes[1], 6, "bytes")):
        values = [float(row[column]) for row in rows]
        axis.loglog(peers, values, "o-", base=2)
        axis.set_xticks(peers, [str(count) for count in peers])
        axis.set_xlabel("peers")
        axis.set_title(f"{label} that a peer is the author of, per round")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(DOCS / "simulator.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
