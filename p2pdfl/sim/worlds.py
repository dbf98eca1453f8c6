"""The worlds that a seed can be run in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from p2pdfl.sim import hunt
from p2pdfl.sim.mutants import NodePlant, Plant
from p2pdfl.sim.outcome import Draw, Outcome, Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class SimWorld:
    run_seed: Callable[[Draw, Sink | None], Outcome]
    """Imports what takes seconds to import when it is called."""
    plants: tuple[str, ...]
    seeds_per_turn: int
    """In a search of several worlds: so that each gets a fair part of the time."""


def _run_true(draw: Draw, sink: Sink | None) -> Outcome:
    from p2pdfl.sim.true import hunt as true_hunt

    return true_hunt.run_seed(draw, sink)


WORLDS: dict[str, SimWorld] = {
    # machines and digests
    "fast": SimWorld(run_seed=hunt.run_seed, plants=get_args(Plant), seeds_per_turn=50),
    # whole peers
    "true": SimWorld(run_seed=_run_true, plants=get_args(NodePlant), seeds_per_turn=25),
}


def worlds_of(name: str | None, plant: str | None) -> list[str]:
    """Those in which to look.  Raises ValueError if a world does not have this bug.

    name: None for all."""
    having = [each for each, world in WORLDS.items() if plant is None or plant in world.plants]
    if name is None:
        return having
    if name not in having:
        raise ValueError(f"--plant {plant} is a bug of another world: {', '.join(having)}")
    return [name]
