"""Work off the event loop that may be left to itself.

Who is told to stop does not wait for a training to end or for a chain that does not answer: the thread goes on alone,
its result is dropped, and the process ends without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import trio

T = TypeVar("T")


async def run(work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
    """work must not touch what is closed when this is cancelled."""
    # trio-typing, which libp2p brings, shadows trio's own types with old ones
    return await trio.to_thread.run_sync(  # type: ignore[call-arg]
        work, *arguments, limiter=limiter, abandon_on_cancel=True
    )


class Threads:
    """trio's worker threads."""

    async def run(self, work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """May be left to itself: work must not touch what is closed when this is cancelled."""
        return await run(work, *arguments, limiter=limiter)

    async def finish(self, work: Callable[..., T], *arguments: object) -> T:
        """To its end, also when this is cancelled."""
        return await trio.to_thread.run_sync(work, *arguments)


def leave(code: int) -> NoReturn:
    """Ends the process at once.

    torch aborts the process when the interpreter, on its way out, stops a thread in the middle of an operation, and no
    look at the threads before can tell which one is about to begin.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
