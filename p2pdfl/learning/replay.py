"""What an auditor and a juror find when they compute another's update again (DESIGN 3, audit)."""

from __future__ import annotations

import math

from p2pdfl import params
from p2pdfl.codec import Malformed
from p2pdfl.learning.aggregate import gram
from p2pdfl.learning.quantize import Coding, header_of, parse
from p2pdfl.types import Outcome


def compare(claimed: bytes, replayed: bytes, coding: Coding) -> Outcome:
    """FALSE: equal.  GUILTY: `claimed` is no update under the replay's header, or too far from it.  VOID: between.

    Both as they are before compression.
    """
    if claimed == replayed:
        return Outcome.FALSE
    try:
        distance = relative_distance(claimed, replayed, coding)
    except Malformed:
        return Outcome.GUILTY
    return Outcome.GUILTY if distance > params.AUDIT_TOLERANCE else Outcome.VOID


def relative_distance(claimed: bytes, replayed: bytes, coding: Coding) -> float:
    """L2 norm of the decoded difference over that of the replay; raises Malformed unless `claimed` decodes.

    From inner products, which are the same on every machine, so jurors with equal replays find equal distances.
    """
    header = header_of(replayed)
    products = gram([parse(claimed, header, coding), parse(replayed, header, coding)])
    (claimed_squared, product), (_, replayed_squared) = products.tolist()
    difference = math.sqrt(max(0.0, claimed_squared + replayed_squared - 2.0 * product))
    if replayed_squared == 0:
        return 0.0 if claimed_squared == 0 else math.inf
    return difference / math.sqrt(replayed_squared)
