"""What goes wrong in a true run, all of it drawn from a seed before the run starts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from p2pdfl.sim.clock import Clock
from p2pdfl.sim.faults import CALM_LATENCY_MS, LOCAL_MS_MAX
from p2pdfl.sim.network import Cut, FaultyNetwork
from p2pdfl.sim.true.chain import Chain
from p2pdfl.sim.true.chain import Faults as ChainFaults
from p2pdfl.sim.true.peer import Crash
from p2pdfl.sim.true.world import PeerPlan, TrueWorld

STEPS_MAX = 1_500
"""Of a process before its crash: some twenty rounds."""
KINDS = ("loss", "tail", "cuts", "crashes", "clocks", "slow", "chain", "disk")


@dataclass(frozen=True, kw_only=True)
class Plan:
    calm_s: float
    """From here on nothing goes wrong any more, but for the Byzantine."""
    network: FaultyNetwork
    peers: tuple[PeerPlan, ...]
    amnesiacs: frozenset[int]
    block_s: float
    chain: ChainFaults
    reorganizations: tuple[tuple[float, int], ...]
    """(at, depth)"""
    anchor_drops: tuple[int, ...]
    """Each time an anchor has so many blocks, it and all of them go; also after the calm, since many come then."""

    def apply(self, world: TrueWorld) -> None:
        world.chain.faults = self.chain
        for at_s, depth in self.reorganizations:
            world.at(at_s, partial(world.chain.reorganize, depth))
        world.chain.on_mined = partial(_drop_anchor, world.chain, deque(self.anchor_drops))


def draw_plan(
    seed: int,
    *,
    peer_count: int,
    honest: Sequence[int],
    amnesiacs: Collection[int],
    late: Collection[int],
    confirmations: int,
    total_rounds: int,
) -> Plan:
    """honest: whom crashes befall, and cuts.  amnesiacs: which of them lose their home.  late: who registers late."""
    draw = random.Random(f"true/faults/{seed}")
    # a run has some kinds of faults and not others: all at once hide each other
    has = {kind for kind in KINDS if draw.random() < 0.5}
    calm_s = draw.uniform(5.0, 30.0)
    peers = [_draw_peer(draw, has, calm_s, is_honest=index in honest) for index in range(peer_count)]
    for index in sorted(amnesiacs):
        peers[index] = replace(peers[index], crashes=(_draw_crash(draw, calm_s, is_home_lost=True),))
    for index in sorted(late):
        peers[index] = replace(peers[index], start_s=draw.uniform(2.0, calm_s))
    if "chain" in has and draw.random() < 0.4:
        leaver = draw.choice(list(honest))
        peers[leaver] = replace(peers[leaver], leave_after=draw.randrange(total_rounds))
    return Plan(
        calm_s=calm_s,
        network=_draw_network(draw, has, calm_s, peer_count),
        peers=tuple(peers),
        amnesiacs=frozenset(amnesiacs),
        block_s=draw.choice((0.3, 0.5, 1.0, 2.0)),
        chain=_draw_chain(draw, calm_s) if "chain" in has else ChainFaults(),
        reorganizations=_draw_reorganizations(draw, calm_s, confirmations) if "chain" in has else (),
        anchor_drops=tuple(draw.randint(1, confirmations) for _ in range(draw.randrange(3)))
        if "chain" in has and confirmations
        else (),
    )


def _drop_anchor(chain: Chain, after: deque[int]) -> None:
    """What a reorganization at any time hits too rarely to rely on."""
    newest = len(chain.tip.state.anchored)
    if after and newest and chain.block_count_since(lambda state: len(state.anchored) == newest) == after[0]:
        chain.reorganize(after.popleft(), again=0.0)


def _draw_reorganizations(draw: random.Random, calm_s: float, confirmations: int) -> tuple[tuple[float, int], ...]:
    """Again and again: what is not confirmed yet is there for a few blocks only."""
    if not confirmations or draw.random() < 0.25:
        return ()
    every_s = draw.choice((1.0, 3.0, 8.0))
    first_s = draw.uniform(0.0, every_s)
    return tuple(
        (first_s + number * every_s, draw.randint(1, confirmations))
        for number in range(int((calm_s - first_s) / every_s) + 1)
        if first_s + number * every_s < calm_s
    )


def _draw_peer(draw: random.Random, has: Collection[str], calm_s: float, *, is_honest: bool) -> PeerPlan:
    is_crashing = is_honest and "crashes" in has and draw.random() < 0.5
    fails_from_s = draw.uniform(0.0, calm_s)
    return PeerPlan(
        clock=Clock(offset_ms=draw.randrange(LOCAL_MS_MAX), rate_permille=draw.randint(850, 1_150))
        if "clocks" in has
        else Clock(),
        start_s=draw.uniform(0.0, 1.0),
        train_s=draw.choice((0.01, 0.3, 0.7, 1.2)) if "slow" in has else draw.choice((0.01, 0.3)),
        work_ms_max=draw.choice((2.0, 20.0, 200.0)) if "slow" in has else 4.0,
        crashes=tuple(_draw_crash(draw, calm_s) for _ in range(draw.randint(1, 3))) if is_crashing else (),
        disk_fails_s=(fails_from_s, min(calm_s, fails_from_s + draw.choice((0.2, 1.0, 3.0))))
        if is_honest and "disk" in has and draw.random() < 0.3
        else None,
    )


def _draw_crash(draw: random.Random, calm_s: float, *, is_home_lost: bool = False) -> Crash:
    return Crash(
        at_step=round(STEPS_MAX ** draw.random()) if draw.random() < 0.3 else draw.randint(1, STEPS_MAX),
        down_s=draw.uniform(0.05, 3.0) if draw.random() < 0.7 else draw.uniform(3.0, calm_s),
        is_power_lost=draw.random() < 0.5,
        is_home_lost=is_home_lost,
    )


def _draw_network(draw: random.Random, has: Collection[str], calm_s: float, peer_count: int) -> FaultyNetwork:
    calm_ms = round(1000 * calm_s)
    return FaultyNetwork(
        calm_ms=calm_ms,
        calm_latency_ms=CALM_LATENCY_MS,
        latency_ms=(1, draw.choice((10, 40, 200, 600))),
        tail_chance=draw.choice((0.01, 0.05, 0.2)) if "tail" in has else 0.0,
        tail_ms=draw.choice((500, 2_000, 6_000)),
        loss=draw.choice((0.02, 0.1, 0.3)) if "loss" in has else 0.0,
        duplication=0.0,
        cuts=_draw_cuts(draw, calm_ms, peer_count) if "cuts" in has else (),
    )


def _draw_cuts(draw: random.Random, calm_ms: int, peer_count: int) -> tuple[Cut, ...]:
    cuts: list[Cut] = []
    for _ in range(draw.randint(1, 4)):
        from_ms = draw.randrange(calm_ms)
        until_ms = min(calm_ms, from_ms + draw.choice((200, 1_000, 4_000, 12_000)))
        one = frozenset(draw.sample(range(peer_count), draw.randint(1, peer_count - 1)))
        other = frozenset(range(peer_count)) - one
        cuts.append(Cut(from_ms=from_ms, until_ms=until_ms, senders=one, receivers=other))
        if draw.random() < 0.7:
            cuts.append(Cut(from_ms=from_ms, until_ms=until_ms, senders=other, receivers=one))
    return tuple(cuts)


def _draw_chain(draw: random.Random, calm_s: float) -> ChainFaults:
    outages = []
    if draw.random() < 0.4:
        from_s = draw.uniform(0.0, calm_s)
        outages.append((from_s, min(calm_s, from_s + draw.choice((0.5, 3.0, 12.0)))))
    return ChainFaults(
        error_chance=draw.choice((0.0, 0.02, 0.1)),
        hang_chance=draw.choice((0.0, 0.0, 0.01)),
        outages_s=tuple(outages),
        until_s=calm_s,
    )
