"""How long peers in processes of their own take to find each other, and what that and idling costs.

python benchmarks/discovery.py [--peers 32] [--halves] [--members] [--idle 20]

--halves: two networks bootstrapped apart; once each is complete, one peer of one is given one address in the other.
--members: everybody knows from the start whom to look for, as after registration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2pdfl.net import Limits, Network, open_network

GIVE_UP_S = 240.0
COUNTED = ("dials", "dials failed", "questions", "bytes_sent", "pings_sent", "connections closed as silent")


class Child:
    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.addresses: list[str] = []
        self.connected = 0
        self.counters: Counter[str] = Counter()
        self.changed = trio.Event()

    async def follow(self) -> None:
        unread = b""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                fields = json.loads(line)
                self.addresses = fields.get("addresses", self.addresses)
                self.connected = fields.get("connected", self.connected)
                self.counters = Counter(fields.get("counters", self.counters))
            self.changed.set()
            self.changed = trio.Event()

    async def until(self, connected: int) -> None:
        while not self.addresses or self.connected < connected:
            await self.changed.wait()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode() + b"\n")


async def measure(parsed: argparse.Namespace) -> None:
    children: list[Child] = []
    async with trio.open_nursery() as nursery:

        async def start(number: int, bootstrap: list[str]) -> None:
            command = [sys.executable, __file__, "--child", str(number), "--peers", str(parsed.peers)]
            command += ["--members"] if parsed.members else []
            command += [flag for address in bootstrap for flag in ("--bootstrap", address)]
            process = await nursery.start(partial(trio.run_process, command, stdin=-1, stdout=-1, check=False))
            children.append(Child(process))
            nursery.start_soon(children[-1].follow)

        with trio.move_on_after(GIVE_UP_S) as scope:
            half = parsed.peers // 2 if parsed.halves else parsed.peers
            begun = time.monotonic()
            for first in range(0, parsed.peers, half):
                await start(first, [])
                await children[-1].until(0)
                bootstrap = children[-1].addresses
                for number in range(first + 1, first + half):
                    await start(number, bootstrap)
            for child in children:
                await child.until(0)
            print(f"{parsed.peers} processes listening after {time.monotonic() - begun:.1f} s", flush=True)
            await report(children, half - 1, begun)
            if parsed.halves:
                begun = time.monotonic()
                await children[1].tell(children[half + 1].addresses[0])
                print("one link between the halves")
                await report(children, parsed.peers - 1, begun)
        if scope.cancelled_caught:
            print(f"gave up after {GIVE_UP_S:g} s: {sorted(child.connected for child in children)}")
        if parsed.idle:
            before = [child.cpu_s() for child in children]
            await trio.sleep(parsed.idle)
            spent = sum(child.cpu_s() for child in children) - sum(before)
            print(f"idle: {100 * spent / parsed.idle / len(children):.2f} % of a core per peer")
        for child in children:
            await child.tell("counters")
        with trio.move_on_after(10):
            for child in children:
                while not child.counters:
                    await child.changed.wait()
        total = sum((child.counters for child in children), Counter[str]())
        print(", ".join(f"{name}: {total[name]}" for name in COUNTED))
        nursery.cancel_scope.cancel()


async def report(children: list[Child], connected: int, begun: float) -> None:
    times = []

    async def wait(child: Child) -> None:
        await child.until(connected)
        times.append(time.monotonic() - begun)

    async with trio.open_nursery() as nursery:
        for child in children:
            nursery.start_soon(wait, child)
    spent = sum(child.cpu_s() for child in children)
    print(f"all see all after {max(times):.1f} s, the median peer after {sorted(times)[len(times) // 2]:.1f} s;")
    print(f"CPU so far {spent:.1f} s in all, with start-up")


# --- one peer --------------------------------------------------------------------------------------------------------


def key_seed(number: int) -> bytes:
    return sha256(b"benchmark %d" % number).digest()


def peer_id(number: int) -> bytes:
    return ID.from_pubkey(create_new_key_pair(key_seed(number)).public_key).to_base58().encode()


def tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def live(parsed: argparse.Namespace) -> None:
    async with (
        open_network(
            key_seed=key_seed(parsed.child),
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=parsed.bootstrap,
            topic="benchmark",
            limits=Limits(),
        ) as network,
        trio.open_nursery() as nursery,
    ):
        if parsed.members:
            network.admit([peer_id(number) for number in range(parsed.peers)])
        tell(addresses=network.addresses)
        nursery.start_soon(obey, network)
        told = 0
        while True:
            changed = network._gossip.changed
            if told != len(network.connected()):
                told = len(network.connected())
                tell(connected=told)
            await changed.wait()


async def obey(network: Network) -> None:
    async for data in trio.lowlevel.FdStream(os.dup(0)):
        for line in data.decode().split():
            if line == "counters":
                tell(counters={name: network.counters[name] for name in COUNTED} | {"told": 1})
            else:
                network.dial(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=int, default=32)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--members", action="store_true")
    parser.add_argument("--idle", type=float, default=0.0)
    parser.add_argument("--child", type=int)
    parser.add_argument("--bootstrap", action="append", default=[])
    parsed = parser.parse_args()
    trio.run(measure if parsed.child is None else live, parsed)


if __name__ == "__main__":
    main()
