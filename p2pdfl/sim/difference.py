"""Where two logs part: the first line in which they differ, and what led to it."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest

from p2pdfl.sim.log import CHAIN

LINES_BEFORE = 8
"""Of anybody, and of each peer that the first differing lines are about."""
LINES_AFTER = 4
_LONG_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b")
"""Two that differ do so in the beginning too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    line_number: int
    """Counted from 1."""
    before: tuple[str, ...]
    """The last lines that both have."""
    own: tuple[str, ...]
    """The last ones that both have of the peers whose lines differ: what leads to a difference may be long ago."""
    left: tuple[str, ...]
    """From the first that differs on; none: this log is over."""
    right: tuple[str, ...]


def first_difference(left: Iterable[str], right: Iterable[str]) -> Difference | int:
    """How many lines they have if they are the same.  Reads no further than it has to."""
    before: deque[str] = deque(maxlen=LINES_BEFORE)
    own: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=LINES_BEFORE))
    lefts, rights = iter(left), iter(right)
    count = 0
    for one, other in zip_longest(lefts, rights):
        count += 1
        if one == other:
            before.append(one)
            own[_who(one)].append(one)
            continue
        peers = dict.fromkeys(_who(line) for line in (one, other) if line is not None)
        return Difference(
            line_number=count,
            before=tuple(before),
            own=tuple(line for peer in peers for line in own[peer]),
            left=_rest(one, lefts),
            right=_rest(other, rights),
        )
    return count


def _rest(first: str | None, more: Iterator[str]) -> tuple[str, ...]:
    return () if first is None else (first, *islice(more, LINES_AFTER - 1))


def describe(difference: Difference, left: str, right: str) -> str:
    """left, right: what the logs are called."""
    lines = [f"they part in line {difference.line_number}", "", "the last lines of both:"]
    lines += [f"    {_readable(line)}" for line in difference.before]
    lines += ["", "the last lines of both, of the peers that differ:"]
    lines += [f"    {_readable(line)}" for line in difference.own]
    for name, mark, rest in ((left, "-", difference.left), (right, "+", difference.right)):
        lines += ["", f"{name}:" if rest else f"{name}: over"]
        lines += [f"  {mark} {_readable(line)}" for line in rest]
    return "\n".join(lines)


def _who(line: str) -> str:
    return line.split(" ", 2)[1]


def _readable(line: str) -> str:
    now_ms, peer, what = _LONG_DIGEST.sub(r"\1..", line).split(" ", 2)
    return f"{now_ms:>8} ms  {'chain' if peer == str(CHAIN) else f'peer{peer}':<7} {what}"
