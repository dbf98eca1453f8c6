"""One life of a peer's process, which may end between any two effects."""

from __future__ import annotations

import trio


class Killed(BaseException):
    """The process has ended.  No `except Exception` of the peer's code must go on after it."""


class Process:
    def __init__(self, *, crash_at_step: int | None = None) -> None:
        self.scope = trio.CancelScope()
        self.nursery: trio.Nursery
        """For what others ask of it; there while it lives."""
        self.crash_at_step = crash_at_step
        self.is_dead = False
        self.is_quiet = False
        """Whether nobody asks it any more or hears of it: it is on its way down, or not yet up."""
        self.steps = 0
        self._spent_s = 0.0

    def step(self) -> None:
        """Each device calls this before and after what it does.  Raises Killed."""
        if self.is_dead:
            raise Killed
        self.steps += 1
        if self.steps == self.crash_at_step:
            self.kill()
            raise Killed

    def kill(self) -> None:
        self.is_dead = True
        self.scope.cancel()

    def spend(self, seconds: float) -> None:
        """The work that a thread is at takes this long on top."""
        self._spent_s += seconds

    def take_spent(self) -> float:
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s
