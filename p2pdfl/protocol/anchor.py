"""What goes on chain, and when (DESIGN 3.8): the epoch's last head, by the members in leader order, staggered."""

from __future__ import annotations

from p2pdfl import params
from p2pdfl.protocol.assignment import Assignment
from p2pdfl.types import MemberIndex


def turn_ms(assignment: Assignment, member: MemberIndex | None) -> int | None:
    """How long this member leaves a chain transaction to those before it in the leader order; None: not its duty."""
    if member is None or member not in assignment.leaders:
        return None
    return assignment.leaders.index(member) * params.ANCHOR_STAGGER_MS
