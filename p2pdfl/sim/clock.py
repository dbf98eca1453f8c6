"""A peer's monotonic clock: it starts anywhere, runs fast or slow, and jumps ahead, as that of a suspended machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Clock:
    offset_ms: int = 0
    rate_permille: int = 1000
    jumps: tuple[tuple[int, int], ...] = ()
    """(at, by), in true milliseconds."""

    @cached_property
    def is_steady(self) -> bool:
        return not self.jumps and self.rate_permille == 1000

    def read_ms(self, true_ms: int) -> int:
        if self.is_steady:
            return true_ms + self.offset_ms
        jumped = sum(by_ms for at_ms, by_ms in self.jumps if at_ms <= true_ms)
        return self.offset_ms + true_ms * self.rate_permille // 1000 + jumped

    def when_ms(self, local_ms: int, true_ms: int) -> int:
        """The true time, at or after `true_ms`, at which it shows `local_ms` if it does not jump before."""
        lacking = max(0, local_ms - self.read_ms(true_ms))
        if self.rate_permille == 1000:
            return true_ms + lacking
        return true_ms + -(-lacking * 1000 // self.rate_permille)
