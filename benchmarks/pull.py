"""Pulling a blob by digest on loopback, each peer in a process of its own: MB/s, median over a few runs.

    python benchmarks/pull.py --megabytes 1 16 --holders 1 3

The puller asks the first holder alone until `Limits.hedge_s` has passed, so `all at once` shows several holders from
the first chunk on.  CPU is the puller's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from hashlib import sha256

import trio
from rich.console import Console
from rich.table import Table

from p2pdfl.net import Limits, open_network

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
TOPIC = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--holders", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return trio.run(serve, arguments.serve, arguments.megabytes)
    table = Table("MB", "holders", "asked", "MB/s", "seconds", "CPU seconds", "chunks wasted")
    for megabytes in arguments.megabytes:
        for holders in arguments.holders:
            for name, hedge_s in [("in turn", Limits().hedge_s), ("all at once", 0.001)][: 1 + (holders > 1)]:
                row = measure(megabytes, holders, hedge_s, arguments.runs)
                table.add_row(str(megabytes), str(holders), name, *row)
    Console().print(table)


def blob(megabytes: int) -> bytes:
    draw = random.Random(megabytes)
    return b"".join(draw.randbytes(1 << 20) for _ in range(megabytes))


async def serve(number: int, megabytes: list[int]) -> None:
    """Until its standard input ends."""
    blobs = {sha256(data).digest(): data for data in map(blob, megabytes)}
    async with open_network(
        key_seed=sha256(b"holder %d" % number).digest(),
        listen=[LOOPBACK],
        bootstrap=[],
        topic=TOPIC,
        blob_source=blobs.get,
    ) as network:
        print(network.peer_id.decode(), network.addresses[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def measure(megabytes: int, holders: int, hedge_s: float, runs: int) -> list[str]:
    command = [sys.executable, __file__, "--megabytes", str(megabytes), "--serve"]
    serving = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(holders)
    ]
    try:
        told = [process.stdout.readline().split() for process in serving if process.stdout is not None]
        peers, addresses = [peer.encode() for peer, _ in told], [address for _, address in told]
        return trio.run(pull, peers, addresses, megabytes, hedge_s, runs)
    finally:
        for process in serving:
            process.communicate()


async def pull(peers: list[bytes], addresses: list[str], megabytes: int, hedge_s: float, runs: int) -> list[str]:
    digest = sha256(blob(megabytes)).digest()
    seconds, cpu = [], []
    async with open_network(
        key_seed=bytes(32), listen=[LOOPBACK], bootstrap=addresses, topic=TOPIC, limits=Limits(hedge_s=hedge_s)
    ) as network:
        await network.wait_connected(len(peers))
        for _ in range(runs):
            started_s, cpu_started_s = time.perf_counter(), time.process_time()
            pulled = await network.fetch(digest, peers, bytes_max=megabytes << 20)
            seconds.append(time.perf_counter() - started_s)
            cpu.append(time.process_time() - cpu_started_s)
            assert pulled is not None
        wasted = network.counters["blob chunks wasted"]
    middle_s = statistics.median(seconds)
    return [
        f"{megabytes / middle_s:.1f}",
        f"{middle_s:.3f}",
        f"{statistics.median(cpu):.3f}",
        str(wasted),
    ]


if __name__ == "__main__":
    main()
