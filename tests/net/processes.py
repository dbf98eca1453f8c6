"""Networks in processes of their own, that can be stopped and killed, and put into a network namespace.

Run as a program it is such a process: a JSON object per line, {"addresses": [...]}, then {"connected": count} whenever
that changes and {"heard": text} for each message; it publishes each line that it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2pdfl.net import Network

from .loopback import LOOPBACK, network

ROOT = Path(__file__).parents[2]


class PeerProcess:
    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.addresses: list[str] = []
        self.connected = 0
        self.heard: list[str] = []
        self._changed = trio.Event()

    # libp2p brings the stubs of trio-typing, which are before trio.TaskStatus
    async def follow(self, *, task_status: trio.TaskStatus[None]) -> None:  # type: ignore[name-defined]
        unread = b""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                fields = json.loads(line)
                self.addresses = fields.get("addresses", self.addresses)
                self.connected = fields.get("connected", self.connected)
                self.heard += [fields["heard"]] if "heard" in fields else []
                if "addresses" in fields:
                    task_status.started()
            self._changed.set()
            self._changed = trio.Event()

    async def wait_connected(self, count: int) -> None:
        """Until it says that exactly count others are connected."""
        while self.connected != count:
            await self._changed.wait()

    async def wait_heard(self, text: str) -> None:
        while text not in self.heard:
            await self._changed.wait()

    async def publish(self, text: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode() + b"\n")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def peer_process(
    name: str,
    bootstrap: Sequence[str] = (),
    *,
    listen: str = LOOPBACK,
    namespace: str | None = None,
    address_book: Path | None = None,
) -> AsyncIterator[PeerProcess]:
    command = [sys.executable, "-m", "tests.net.processes", name, "--listen", listen]
    command += [flag for address in bootstrap for flag in ("--bootstrap", address)]
    command += [] if address_book is None else ["--address-book", str(address_book)]
    if namespace is not None:
        command = ["ip", "netns", "exec", namespace, *command]
    start = partial(
        trio.run_process,
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    async with trio.open_nursery() as nursery:
        peer = PeerProcess(await nursery.start(start))
        try:
            with trio.fail_after(30):
                await nursery.start(peer.follow)
            yield peer
        finally:
            peer.go_on()
            nursery.cancel_scope.cancel()


async def live(parsed: argparse.Namespace) -> None:
    async with (
        network(parsed.name, parsed.bootstrap, listen=parsed.listen, address_book=parsed.address_book) as one,
        trio.open_nursery() as nursery,
    ):
        tell({"addresses": one.addresses})
        nursery.start_soon(tell_connected, one)
        nursery.start_soon(tell_heard, one)
        async for line in lines_of(0):
            await one.publish(line)
        nursery.cancel_scope.cancel()


async def tell_connected(one: Network) -> None:
    told = 0
    while True:
        changed = one._gossip.changed
        if told != len(one.connected()):
            told = len(one.connected())
            tell({"connected": told})
        await changed.wait()


async def tell_heard(one: Network) -> None:
    async for message in one.incoming:
        tell({"heard": message.data.decode(errors="replace")[:80]})


async def lines_of(descriptor: int) -> AsyncIterator[bytes]:
    unread = b""
    async for data in trio.lowlevel.FdStream(os.dup(descriptor)):
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            yield line


def tell(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--listen", default=LOOPBACK)
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--address-book", type=Path)
    trio.run(live, parser.parse_args())


if __name__ == "__main__":
    main()
