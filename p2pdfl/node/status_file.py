"""What a running peer sees now, for whoever asks beside it: status.json in its home, there as long as it runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

logger = logging.getLogger(__name__)

NAME = "status.json"
WRITE_S = 5.0
FILE_BYTES_MAX = 1 << 20
"""Read of any file of a home; what grows is read from its end."""


@asynccontextmanager
async def kept(home: Path, describe: Callable[[], Mapping[str, object]]) -> AsyncIterator[None]:
    path = home / NAME

    async def keep() -> None:
        while True:
            try:
                write_whole(path, {"pid": os.getpid(), **describe()})
            except OSError as error:  # nothing but `p2pdfl doctor` reads it
                logger.warning("%s: %s; what this peer sees is not written", path, error)
            await trio.sleep(WRITE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            with suppress(OSError):
                path.unlink()


def of_running(home: Path) -> dict[str, Any] | None:
    """None if no peer runs in this home, or none that says so."""
    status = read_object(home / NAME)
    pid = status.get("pid")
    return status if isinstance(pid, int) and 0 < pid < 2**31 and _is_running(pid) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object, empty if there is none: what a person may have edited is nothing to fail on."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(FILE_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def last_event(home: Path, name: str) -> dict[str, Any]:
    """The newest of this name at the log's end, empty if there is none."""
    try:
        with (home / "events.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - FILE_BYTES_MAX))
            lines = file.read(FILE_BYTES_MAX).splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("event") == name:
            return event
    return {}


def write_whole(path: Path, fields: Mapping[str, object]) -> None:
    """Whole or not at all: others wait for these files."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
