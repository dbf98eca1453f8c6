"""Work off the event loop that may be left to itself.

Who is told to stop does not wait for a training to end or for a chain that does not answer: the thread goes on alone,
its result is dropped, and the process ends without it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

LEAVE_S = 0.5
LEAVE_POLL_S = 0.01

_NAME = "p2pdfl work"


async def run(work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None) -> T:
    """work must not touch what is closed when this is cancelled."""
    # trio-typing, which libp2p brings, shadows trio's own types with old ones
    return await trio.to_thread.run_sync(  # type: ignore[call-arg]
        work, *arguments, limiter=limiter, abandon_on_cancel=True, thread_name=_NAME
    )


def is_busy() -> bool:
    """Whether any thread is still at such work."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def leave(code: int) -> int:
    """The exit code; if work in threads does not come to its end soon, the process ends here.

    torch aborts the process when the interpreter, on its way out, stops a thread in the middle of an operation.
    """
    deadline_s = time.monotonic() + LEAVE_S
    while is_busy() and time.monotonic() < deadline_s:
        time.sleep(LEAVE_POLL_S)
    if is_busy():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
