"""One peer of a run, as the runner has it: its process, what it has told so far, and the fault that is to strike it."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from p2pdfl.scenario.events import EventTail, PeerRecord, read_result
from p2pdfl.scenario.faults import Strike
from p2pdfl.scenario.processes import Stopped, send

LOG_LINES = 15
"""Of a peer that died, shown."""
KEPT_WITHOUT_DISK = ("key", "events.jsonl", "log.txt")
"""What a peer's disk is not lost of: what makes it the same peer, and what the runner reads."""


@dataclass(slots=True, kw_only=True)
class Peer:
    record: PeerRecord
    home: Path
    tail: EventTail
    process: BaseProcess | None = None
    """None until it is started."""
    halts: Connection[Any, Any] | None = None
    """From a peer that stands still until a fault has struck (`halt`); None if it is not to, or has ended."""
    strike: Strike | None = None
    stopped: Stopped | None = None
    is_reported: bool = False

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def is_killed(self) -> bool:
        return self.strike is not None and self.strike.fault.kind == "kill" and self.strike.is_on

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    @property
    def is_awaited(self) -> bool:
        """Whether it is away for a while only, and no end of a process is its end."""
        strike = self.strike
        if strike is None or strike.fault.is_for_good:
            return False
        return strike.is_on if strike.fault.kind == "kill" else strike.fault.kind == "join" and self.process is None

    def read(self) -> bool:
        """What it has told since the last call.  Whether it has got ahead: joined, closed a round, or ended."""
        record = self.record
        before = (record.address, len(record.rounds), record.finished, record.exit_code)
        # Asked first, so that what is read below is all that an ended process has written.
        record.exit_code = None if self.process is None else self.process.exitcode
        for line in self.tail.lines():
            record.add(line, time.monotonic())
        if record.result is None and (record.finished or record.exit_code is not None):
            with suppress(ValueError):  # in the middle of being written; at the end of the run it is a problem
                record.result = read_result(self.home / "result.json")
        return (record.address, len(record.rounds), record.finished, record.exit_code) != before

    def take_halt(self) -> bool:
        """When `halts` can be read: whether it stands still.  Else it has ended."""
        assert self.halts is not None
        try:
            self.halts.recv()
        except (EOFError, OSError):
            self.halts.close()
            self.halts = None
        return self.halts is not None

    def release(self) -> None:
        if self.halts is not None:
            with suppress(OSError):
                self.halts.send(None)

    def kill(self) -> None:
        assert self.process is not None
        send(self.process, signal.SIGKILL)
        self.process.join()  # gone before it is started again: its store is locked until then

    def stop(self) -> None:
        assert self.process is not None
        self.stopped = Stopped(self.process)

    def go_on(self) -> None:
        if self.stopped is not None:
            self.stopped.go_on()
            self.stopped = None

    def lose_disk(self) -> None:
        for path in self.home.iterdir():
            if path.name not in KEPT_WITHOUT_DISK:
                path.unlink()

    def addresses(self) -> list[str]:
        """Where it listens.  Raises FileNotFoundError; the file is there as a whole, or not at all."""
        addresses: list[str] = json.loads((self.home / "address.json").read_bytes())["addresses"]
        return addresses

    def last_lines(self) -> str:
        """Of its log."""
        try:
            lines = (self.home / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (its log is empty)"
