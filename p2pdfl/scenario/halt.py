"""A peer stands still at the phase in which a fault is to strike, until the runner has struck.

This runs in the peer's own process, where its event log is written: the phase is told, and nothing follows it, however
slow the machine is and however late the runner.  The peer itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from p2pdfl.node.event_log import EventLog, Value
from p2pdfl.scenario.events import PhaseEntered
from p2pdfl.scenario.spec import Place


@dataclass(frozen=True, slots=True)
class Halts:
    places: frozenset[Place]
    runner: Connection[Any, Any]
    """Is told of each, and has to answer."""

    def arm(self) -> None:
        """From now on, this process stands still once it has told of one of these places, or of a later one."""
        ahead, write = sorted(self.places), EventLog.write

        def write_and_halt(log: EventLog, event: str, fields: Mapping[str, Value]) -> None:
            write(log, event, fields)
            if event != "phase" or not ahead:
                return
            here = PhaseEntered.model_validate({"event": event, **fields}).place
            if here < ahead[0]:
                return
            while ahead and ahead[0] <= here:
                ahead.pop(0)
            with suppress(EOFError, OSError):  # the runner is gone, and this process will be
                self.runner.send(None)
                self.runner.recv()

        EventLog.write = write_and_halt  # type: ignore[assignment, method-assign]
