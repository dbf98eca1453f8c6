"""Why a peer's message is not taken.  Reasons are fixed strings: counters and tests go by them.

A third way, a fault that others can check too, is no refusal: it becomes evidence (`evidence.py`, `audit.py`).
"""

from __future__ import annotations


class Refusal(Exception):
    """The machine's state is as it was before the message."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


class Ignore(Refusal):
    """Nobody's fault: late, early, or seen before."""


class Ahead(Ignore):
    """Others are further than this member, which should ask them."""


class Reject(Refusal):
    """The sender's fault, but not provable to others."""
