"""What a node tells a person and a report: events.jsonl line by line, and its times and counts."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from p2pdfl.node.ports import Clock

Activity = Literal["train", "audit", "crypto", "network_wait", "chain"]
Value = str | int | float | None | Sequence[str]


class EventLog:
    def __init__(
        self,
        path: Path,
        tell: Callable[[str, Mapping[str, Value]], None] = lambda event, fields: None,
        clock: Clock = time,
    ) -> None:
        """Continues a file that is there: a restarted peer adds to its story.  tell: hears each event as well."""
        self._tell = tell
        self._clock = clock
        self._file = path.open("a", encoding="utf-8")
        if _is_cut_off(path):
            self._file.write("\n")
        self._start_s = self._clock.monotonic()
        self._turn = threading.Lock()
        self.seconds: dict[Activity, float] = {
            "train": 0.0,
            "audit": 0.0,
            "crypto": 0.0,
            "network_wait": 0.0,
            "chain": 0.0,
        }
        """train, audit, crypto: processor time.  chain: waiting for it, beside the rounds.  network_wait: time in
        which this node had nothing to do but wait for others."""
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def now_ms(self) -> int:
        """Since this log was opened, on the monotonic clock."""
        return int((self._clock.monotonic() - self._start_s) * 1000)

    def write(self, event: str, fields: Mapping[str, Value]) -> None:
        line = json.dumps({"ms": self.now_ms, "event": event, **fields}, default=list)
        with self._turn:
            self._file.write(line + "\n")
            self._file.flush()
        self._tell(event, fields)

    @contextmanager
    def working(self, activity: Activity) -> Iterator[None]:
        """Counts this thread's processor time."""
        start_s = self._clock.thread_time()
        try:
            yield
        finally:
            self._add(activity, self._clock.thread_time() - start_s)

    @contextmanager
    def waiting(self, activity: Activity) -> Iterator[None]:
        """Counts the time that passes."""
        start_s = self._clock.monotonic()
        try:
            yield
        finally:
            self._add(activity, self._clock.monotonic() - start_s)

    def _add(self, activity: Activity, seconds: float) -> None:
        with self._turn:
            self.seconds[activity] += seconds


def _is_cut_off(path: Path) -> bool:
    """Whether a crash has left its last line without an end."""
    with path.open("rb") as file:
        if not file.seekable() or file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
