from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import trio

from p2pdfl.base import workers


async def test_who_is_cancelled_does_not_wait_for_the_thread() -> None:
    go_on, started, ended = threading.Event(), trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work() -> None:
        token.run_sync_soon(started.set)
        go_on.wait()
        token.run_sync_soon(ended.set)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, work)
            await started.wait()
            nursery.cancel_scope.cancel()
        assert not ended.is_set()
    finally:
        go_on.set()
    await ended.wait()


async def test_what_the_work_raises_comes_through() -> None:
    with pytest.raises(OSError, match="no answer"):
        await workers.run(fail, "no answer")


def fail(text: str) -> None:
    raise OSError(text)


async def test_a_limiter_holds_back_what_is_too_much() -> None:
    limiter = trio.CapacityLimiter(1)
    at_once: list[int] = []
    working: set[object] = set()

    def work() -> None:
        working.add(threading.current_thread())
        at_once.append(len(working))
        working.discard(threading.current_thread())

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(lambda: workers.run(work, limiter=limiter))
    assert at_once == [1] * 8


def test_leaving_ends_the_process_in_the_middle_of_work_with_the_code_and_all_that_was_said() -> None:
    program = (
        "import threading, time; from p2pdfl.base import workers; "
        "threading.Thread(target=time.sleep, args=(3600,)).start(); print('said', end=''); workers.leave(7)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said", "")
