"""What an auditor and a juror find when they compute another's update again (DESIGN 3, audit; ADR 15)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed
from p2pdfl.base.task import Profile
from p2pdfl.base.types import Outcome
from p2pdfl.learning import draw
from p2pdfl.learning.aggregate import gram
from p2pdfl.learning.quantize import Coding, header_of, parse

NUDGES: dict[Profile, float] = {"exact": 2.0**-50, "tolerant": 2.0**-21}
"""Of a parameter: four roundings of float64, and of float32."""


def compare(claimed: bytes, replayed: bytes, coding: Coding, profile: Profile) -> Outcome:
    """GUILTY: `claimed` is no update under the replay's header, or too far from it.  FALSE: equal, or under `tolerant`
    within AUDIT_AGREEMENT.  VOID: between.

    Both as they are before compression.
    """
    if claimed == replayed:
        return Outcome.FALSE
    try:
        distance = relative_distance(claimed, replayed, coding)
    except Malformed:
        return Outcome.GUILTY
    if profile == "tolerant" and distance <= params.AUDIT_AGREEMENT:
        return Outcome.FALSE
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


def nudged(parameters: NDArray[np.float64], seed: bytes, profile: Profile) -> NDArray[np.float64]:
    """Each moved by up to the profile's part of itself, up or down: what machines that round differently may make of
    them, and more."""
    return parameters + draw.uniform(draw.stream(b"nudge", seed), parameters.size, NUDGES[profile]) * parameters
