"""What a peer keeps between its starts: its key, its store, its event log, and whether a store before this was lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pdfl.base.task import Task
from p2pdfl.base.types import Entropy, Packet
from p2pdfl.crypto.keys import Keys
from p2pdfl.node.event_log import EventLog, Value
from p2pdfl.node.keyfile import load_or_create
from p2pdfl.node.ports import Clock
from p2pdfl.node.store import Store

STORE = "store.sqlite"
STORE_LOST = "store.lost"
"""In the home of a peer whose store is gone while its key is there: it may have signed what it no longer knows."""


class PeerError(Exception):
    """Why this peer can't take part, and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Home:
    path: Path
    keys: Keys
    store: Store
    event_log: EventLog
    signed: list[Packet]
    """All that this key is known here to have signed."""

    @property
    def is_store_lost(self) -> bool:
        return (self.path / STORE_LOST).exists()

    def forget_loss(self) -> None:
        """The key has just been registered: nothing can have been signed with it."""
        (self.path / STORE_LOST).unlink(missing_ok=True)


@contextmanager
def opened(
    path: Path,
    task: Task,
    *,
    entropy: Entropy,
    tell: Callable[[str, Mapping[str, Value]], None],
    open_store: Callable[[Path], Store],
    clock: Clock,
) -> Iterator[Home]:
    """Raises PeerError, KeyFileError, StoreError, OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PeerError(f"{path}: {error.strerror}") from None
    if (path / "key").exists() and not (path / STORE).exists():
        _mark_lost(path)
    keys = load_or_create(path / "key", entropy)
    with open_store(path / STORE) as store, EventLog(path / "events.jsonl", tell, clock) as event_log:
        signed = _signed(store, task, path)
        yield Home(path=path, keys=keys, store=store, event_log=event_log, signed=signed)


def _mark_lost(path: Path) -> None:
    """On disk before there is a store again: else a loss of power would make that one look whole."""
    (path / STORE_LOST).touch()
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _signed(store: Store, task: Task, path: Path) -> list[Packet]:
    """Raises PeerError if some of it was for another task."""
    signed = [packet for round in range(task.total_rounds) for packet in store.envelopes(round)]
    last = store.last_round()
    closed = None if last is None else store.round(last)
    tasks = {packet.envelope.task for packet in signed} | ({closed.head.task} if closed else set())
    if tasks - {task.task_id()}:
        raise PeerError(f"{path}: belongs to another task; give each task a home of its own")
    return signed
