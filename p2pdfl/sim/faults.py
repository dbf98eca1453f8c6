"""What goes wrong in a run, all of it drawn from a seed before the run starts."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from p2pdfl.base.types import Registration
from p2pdfl.sim.clock import Clock
from p2pdfl.sim.network import Cut, FaultyNetwork
from p2pdfl.sim.world import World

CALM_LATENCY_MS = (5, 40)
CALM_BLOCK_MS = 1_000
LOCAL_MS_MAX = 10_000_000
"""Where a monotonic clock may stand when a peer starts."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    peer: int
    at_ms: int
    is_store_lost: bool
    down_ms: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    calm_ms: int
    """From here on nothing goes wrong any more, but for the Byzantine."""
    network: FaultyNetwork
    clocks: tuple[Clock, ...]
    train_ms: tuple[int, ...]
    chain_delay_ms: tuple[int, ...]
    crashes: tuple[Crash, ...]
    blocks_ms: tuple[int, ...]
    outage_ms: tuple[int, int] | None
    """From when until when nobody reaches the chain."""
    reorganizations: tuple[tuple[int, int], ...]
    """(at, depth)"""
    exits: tuple[tuple[int, int], ...]
    """(at, peer)"""
    joins_ms: int | None
    """When those who are late register."""

    @property
    def amnesiacs(self) -> frozenset[int]:
        """Who loses its store: honest, and silent for an epoch at least."""
        return frozenset(crash.peer for crash in self.crashes if crash.is_store_lost)

    def apply(self, world: World) -> None:
        world.network = self.network
        for index, peer in enumerate(world.peers):
            peer.clock = self.clocks[index]
            peer.train_ms = self.train_ms[index]
            peer.chain_delay_ms = self.chain_delay_ms[index]
            for at_ms, _ in peer.clock.jumps:
                world.at(at_ms, world.schedule_tick, index)
        for crash in self.crashes:
            world.at(crash.at_ms, world.kill, crash.peer)
            world.at(crash.at_ms + crash.down_ms, _restart, world, crash)
        for at_ms in self.blocks_ms:
            world.at(at_ms, world.mine_on_top)
        world.at(2 * self.calm_ms, world.mine_from_now_on, CALM_BLOCK_MS)
        if self.outage_ms is not None:
            for at_ms, is_reachable in zip(self.outage_ms, (False, True), strict=True):
                world.at(at_ms, partial(world.reach_chain, is_reachable=is_reachable))
        for at_ms, depth in self.reorganizations:
            world.at(at_ms, world.chain.reorganize, depth)
        for at_ms, leaver in self.exits:
            world.at(at_ms, world.chain.submit, _Exit(world.registrations[leaver]))
        if self.joins_ms is not None:
            for index in sorted(world.late):
                world.at(self.joins_ms, world.chain.submit, _Join(world.registrations[index]))


def _restart(world: World, crash: Crash) -> None:
    world.restart(crash.peer, is_store_lost=crash.is_store_lost)


@dataclass(frozen=True)
class _Exit:
    entry: Registration

    def __call__(self, registrations: tuple[Registration, ...]) -> tuple[Registration, ...]:
        address = self.entry.address
        return tuple(each.replace(exiting=True) if each.address == address else each for each in registrations)


@dataclass(frozen=True)
class _Join:
    entry: Registration

    def __call__(self, registrations: tuple[Registration, ...]) -> tuple[Registration, ...]:
        return (*registrations, self.entry)


def draw_plan(
    seed: int,
    *,
    peer_count: int,
    honest: Sequence[int],
    amnesiacs: Collection[int],
    halves: tuple[frozenset[int], frozenset[int]],
    confirmations: int,
) -> Plan:
    """honest: whom crashes and cuts befall.  amnesiacs: which of them lose their store, once.
    halves: of the honest, as the Byzantine would have them apart."""
    draw = random.Random(f"faults/{seed}")
    calm_ms = draw.randrange(500, 12_000)
    # a run has some kinds of faults and not others: all at once hide each other
    has = {name for name in ("loss", "tail", "cuts", "crashes", "clocks", "slow", "chain") if draw.random() < 0.5}
    network = FaultyNetwork(
        calm_ms=calm_ms,
        calm_latency_ms=CALM_LATENCY_MS,
        latency_ms=(1, draw.choice((10, 40, 200, 600))),
        tail_chance=draw.choice((0.01, 0.05, 0.2)) if "tail" in has else 0.0,
        tail_ms=draw.choice((500, 2_000, 6_000)),
        loss=draw.choice((0.02, 0.1, 0.3)) if "loss" in has else 0.0,
        duplication=draw.choice((0.0, 0.05, 0.3)),
        cuts=_draw_cuts(draw, honest, halves, calm_ms) if "cuts" in has else (),
    )
    crashes = _draw_crashes(draw, [index for index in honest if index not in amnesiacs], calm_ms, has)
    for index in sorted(amnesiacs):
        crashes.append(_draw_crash(draw, index, calm_ms, is_store_lost=True))
    blocks = range(draw.randrange(50, 1_000), 2 * calm_ms, draw.choice((100, 400, 1_500)))
    return Plan(
        calm_ms=calm_ms,
        network=network,
        clocks=tuple(_draw_clock(draw, calm_ms) if "clocks" in has else Clock() for _ in range(peer_count)),
        train_ms=tuple(draw.choice((10, 10, 200, 740, 900, 1_500)) if "slow" in has else 10 for _ in range(peer_count)),
        chain_delay_ms=tuple(draw.choice((0, 100, 1_000, calm_ms)) if "chain" in has else 0 for _ in range(peer_count)),
        crashes=tuple(crashes),
        blocks_ms=tuple(blocks),
        outage_ms=_draw_outage(random.Random(f"outage/{seed}"), calm_ms),
        reorganizations=tuple(
            (draw.randrange(2 * calm_ms), draw.randint(1, confirmations)) for _ in range(draw.randrange(4))
        )
        if "chain" in has
        else (),
        exits=tuple((draw.randrange(calm_ms), index) for index in draw.sample(list(honest), 1))
        if "chain" in has and draw.random() < 0.5
        else (),
        joins_ms=draw.randrange(calm_ms),
    )


def _draw_cuts(
    draw: random.Random, honest: Sequence[int], halves: tuple[frozenset[int], frozenset[int]], calm_ms: int
) -> tuple[Cut, ...]:
    """The Byzantine reach everybody."""
    cuts: list[Cut] = []
    for _ in range(draw.randint(1, 4)):
        from_ms = draw.randrange(calm_ms)
        until_ms = min(calm_ms, from_ms + draw.choice((200, 1_000, 4_000, 12_000)))
        some = frozenset(draw.sample(list(honest), draw.randint(1, len(honest))))
        one, other = draw.choice((halves, (some, frozenset(honest) - some)))
        cuts.append(Cut(from_ms=from_ms, until_ms=until_ms, senders=one, receivers=other))
        if draw.random() < 0.7:
            cuts.append(Cut(from_ms=from_ms, until_ms=until_ms, senders=other, receivers=one))
    return tuple(cuts)


def _draw_crashes(draw: random.Random, peers: Sequence[int], calm_ms: int, has: Collection[str]) -> list[Crash]:
    if "crashes" not in has or not peers:
        return []
    return [
        _draw_crash(draw, draw.choice(peers), calm_ms, is_store_lost=False)
        for _ in range(draw.randint(1, 2 * len(peers)))
    ]


def _draw_crash(draw: random.Random, peer: int, calm_ms: int, *, is_store_lost: bool) -> Crash:
    at_ms = draw.randrange(calm_ms)
    return Crash(
        peer=peer,
        at_ms=at_ms,
        is_store_lost=is_store_lost,
        down_ms=draw.randrange(1, max(2, min(3_000, calm_ms - at_ms))),
    )


def _draw_outage(draw: random.Random, calm_ms: int) -> tuple[int, int] | None:
    if draw.random() < 0.75:
        return None
    from_ms = draw.randrange(calm_ms)
    return (from_ms, min(calm_ms, from_ms + draw.choice((500, 3_000, 12_000))))


def _draw_clock(draw: random.Random, calm_ms: int) -> Clock:
    return Clock(
        offset_ms=draw.randrange(LOCAL_MS_MAX),
        rate_permille=draw.randint(850, 1_150),
        jumps=tuple((draw.randrange(calm_ms), draw.choice((50, 500, 3_000))) for _ in range(draw.randrange(3))),
    )
