"""Whole peers in virtual time: a run follows from its seed, and what devices do to it costs time only."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from p2pdfl.base.types import Envelope, Packet
from p2pdfl.byzantine.machine import Deviation
from p2pdfl.byzantine.process import byzantine_parts
from p2pdfl.node.store import Store
from p2pdfl.sim import caches
from p2pdfl.sim.mutants import NodePlant
from p2pdfl.sim.network import Cut, FaultyNetwork
from p2pdfl.sim.true.chain import Faults
from p2pdfl.sim.true.disk import Disk
from p2pdfl.sim.true.hunt import draw_case, run_case
from p2pdfl.sim.true.learner import tiny_task
from p2pdfl.sim.true.mutants import planted
from p2pdfl.sim.true.peer import Crash
from p2pdfl.sim.true.process import Process
from p2pdfl.sim.true.world import PeerPlan, TrueWorld, homes

pytestmark = pytest.mark.slow

TASK: dict[str, Any] = {
    "training_rounds": 5,
    "verdict_rounds": 1,
    "epoch_rounds": 4,
    "audit_fraction": 0.5,
    "confirmations": 2,
    "commit_ms": 1_000,
    "reveal_ms": 500,
    "grace_ms": 200,
    "view_ms": 1_000,
    "resync_ms": 300,
}
"""Eight rounds, two epochs."""
BOUND_MS = 300_000
BEGUN_S = 3.0
"""By then the rounds of a quiet run have begun."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with homes() as path:
        yield Path(path)


def a_world(
    directory: Path,
    peer_count: int = 4,
    *,
    plans: Mapping[int, PeerPlan] | None = None,
    late: int = 0,
    task: Mapping[str, Any] | None = None,
    train_s: float = 0.3,
    **options: Any,
) -> TrueWorld:
    """train_s: of those without a plan, so that rounds take a while."""
    drawn = {index: PeerPlan(train_s=train_s) for index in range(peer_count)} | dict(plans or {})
    measured = tiny_task(**{**TASK, **(task or {})}, members_min=peer_count - late)
    options = {"seed": 1, "calm_s": 60.0, **options}
    return TrueWorld(measured, peer_count, directory=directory, plans=drawn, **options)


def run_checked(world: TrueWorld, *, amnesiacs: tuple[int, ...] = ()) -> TrueWorld:
    """To the end: every honest peer has all rounds and the same model, and the chain has all anchors."""
    checkers = world.watch(bound_ms=BOUND_MS, amnesiacs=amnesiacs)
    with caches.installed():
        world.run(until_s=3_600)
    assert checkers.violations == []
    assert all(peer.result is not None for peer in world.honest)
    assert len(world.chain.confirmed.state.anchored) == world.task.epoch_count
    return world


def events(world: TrueWorld, index: int, name: str) -> list[dict[str, Any]]:
    paths = sorted(world.peers[index].directory.glob("*/events.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


# --- a function of its seed -------------------------------------------------------------------------------------------


def test_a_run_does_not_depend_on_the_process() -> None:
    """ATTACK on ourselves: the order of a set of bytes changes with PYTHONHASHSEED."""
    told = [
        subprocess.run(
            [sys.executable, "-m", "sim.seven_peers"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[1],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    found = json.loads(told[0])
    assert found["violations"] == []
    assert found["lives"] == [1, 2, 2, 1, 1, 1, 1]
    assert found["joined_in"] > 0
    assert found["dropped"] > 0
    assert found["anchors"] == 3


def test_the_same_seed_twice_gives_the_same_bytes_and_another_one_does_not() -> None:
    first, again, other = (run_case(draw_case(seed, peers=4, rounds=6)).digests for seed in (5, 5, 6))
    assert first == again
    assert first["network"] != other["network"]
    assert first["events"] != other["events"]


def test_real_learning_and_cryptography_are_a_function_of_the_seed_too() -> None:
    case = draw_case(2, peers=4, rounds=4, crypto="real", learning="real")
    first, again = run_case(case), run_case(case)
    assert first.violations == ()
    assert first.digests == again.digests


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_power_lost", [False, True])
@pytest.mark.parametrize("at_step", [3, 40, 150, 151, 152, 153, 400])
def test_a_crash_anywhere_costs_time_only(directory: Path, at_step: int, is_power_lost: bool) -> None:
    crash = Crash(at_step=at_step, down_s=0.5, is_power_lost=is_power_lost)
    world = run_checked(a_world(directory, plans={1: PeerPlan(train_s=0.3, crashes=(crash,))}))
    assert world.peers[1].lives == 2


def test_a_home_that_is_lost_makes_its_peer_join_at_an_anchor_and_stay_silent_meanwhile(directory: Path) -> None:
    plan = PeerPlan(train_s=0.3, crashes=(Crash(at_step=700, down_s=1.0, is_home_lost=True),))
    world = run_checked(a_world(directory, plans={1: plan}, task={"training_rounds": 13}), amnesiacs=(1,))
    (joined,) = events(world, 1, "joined")
    assert world.peers[1].first_round == joined["round"] + 1 > 0
    assert min(world.state(1).heads) == joined["round"] + 1


def test_an_own_disk_is_gone_on_from_at_a_checkpoint(directory: Path) -> None:
    plan = PeerPlan(train_s=0.3, crashes=(Crash(at_step=900, down_s=0.2),))
    world = run_checked(a_world(directory, plans={1: plan}, task={"training_rounds": 13}))
    assert [event["round"] for event in events(world, 1, "resumed")] == [3]
    assert set(world.state(1).heads) == set(range(world.task.total_rounds))
    assert not world.state(1).is_muted


def test_all_go_down_at_once_and_come_back(directory: Path) -> None:
    plans = {index: PeerPlan(crashes=(Crash(at_step=250, down_s=0.5, is_power_lost=True),)) for index in range(4)}
    world = run_checked(a_world(directory, plans=plans))
    assert [peer.lives for peer in world.peers] == [2] * 4


# --- the disk --------------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_ends_its_peer_which_comes_back(directory: Path) -> None:
    plan = PeerPlan(train_s=0.3, disk_fails_s=(BEGUN_S, BEGUN_S + 1.0))
    world = run_checked(a_world(directory, plans={1: plan}))
    assert world.peers[1].disk.failures > 0
    assert world.peers[1].lives > 1


def test_without_power_what_no_write_has_synced_is_lost_and_what_one_has_is_not(tmp_path: Path) -> None:
    envelope = Envelope(task=bytes(32), epoch=0, round=0, view=0, kind=1, body=bytes(32))
    packet = Packet(envelope=envelope, signature=bytes(64), payload=b"\x00")
    disk = Disk()
    with Store(tmp_path / "store.sqlite", disk.connect(Process())) as store:
        store.put_blob(sha256(b"one").digest(), b"one")
        store.put_envelope(packet)
        store.put_blob(sha256(b"two").digest(), b"two")
    assert len(disk.unsynced) == 1
    disk.lose_power(random.Random(1))
    with Store(tmp_path / "store.sqlite", disk.connect(Process())) as store:
        assert store.blob(sha256(b"one").digest()) == b"one"
        assert store.envelopes(0) == (packet,)
        assert store.blob(sha256(b"two").digest()) is None


# --- the network -----------------------------------------------------------------------------------------------------


def test_halves_that_are_cut_off_wait_and_go_on(directory: Path) -> None:
    one, other = frozenset({0, 1}), frozenset({2, 3})
    cuts = tuple(
        Cut(from_ms=4_000, until_ms=12_000, senders=senders, receivers=receivers)
        for senders, receivers in ((one, other), (other, one))
    )
    network = FaultyNetwork(
        calm_ms=60_000,
        calm_latency_ms=(5, 40),
        latency_ms=(1, 40),
        tail_chance=0.0,
        tail_ms=0,
        loss=0.05,
        duplication=0.0,
        cuts=cuts,
    )
    world = run_checked(a_world(directory, network=network))
    assert world.ended_s > 12


def test_who_registers_late_follows_and_is_on_a_later_list(directory: Path) -> None:
    plans = {2: PeerPlan(train_s=0.3, start_s=BEGUN_S)}
    world = run_checked(a_world(directory, 5, plans=plans, late=1, task={"training_rounds": 15}))
    address = "0x" + world.addresses[2].hex()
    lists = {event["epoch"]: event["addresses"] for event in events(world, 0, "members")}
    assert address not in lists[0]
    assert any(address in members for members in lists.values())


def test_who_registers_when_all_is_over_is_let_in_and_follows(directory: Path) -> None:
    """Found by the true world, seed 96: after its last round nobody looked at the registry any more."""
    run_checked(a_world(directory, 5, plans={2: PeerPlan(start_s=20.0)}, late=1))


def test_who_asks_to_leave_is_on_no_later_list_and_follows_to_the_end(directory: Path) -> None:
    world = run_checked(
        a_world(directory, 5, plans={2: PeerPlan(train_s=0.3, leave_after=0)}, task={"training_rounds": 13})
    )
    address = "0x" + world.addresses[2].hex()
    lists = {event["epoch"]: event["addresses"] for event in events(world, 0, "members")}
    assert address in lists[0]
    assert address not in lists[max(lists)]


# --- the chain -------------------------------------------------------------------------------------------------------


def test_anchors_that_reorganizations_drop_are_sent_again(directory: Path) -> None:
    world = a_world(directory)
    for tenths in range(20, 300, 7):
        world.at(tenths / 10, lambda: world.chain.reorganize(2))
    run_checked(world)
    assert world.chain.dropped > 0


def test_rounds_close_while_the_chain_is_out_of_reach_and_the_anchors_follow(directory: Path) -> None:
    world = a_world(directory)
    world.chain.faults = Faults(outages_s=((4.0, 40.0),))
    finished: list[bool] = []
    world.at(30.0, lambda: finished.extend(world.state(index).is_finished for index in range(4)))
    run_checked(world)
    assert finished == [True] * 4


def test_the_first_list_is_what_the_contract_found_when_it_closed() -> None:
    """ATTACK: whoever registers later in the same block is in that block's registry, and no anchor of a list with it
    would be taken.  Found by the true world, seed 13."""
    result = run_case(draw_case(13))
    assert result.violations == ()


# --- the Byzantine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["scale", "garbage", "equivocate"])
def test_who_cheats_is_banned_by_all(directory: Path, behaviour: Any) -> None:
    deviation = Deviation(behaviour=behaviour, from_round=1)
    plans = {3: PeerPlan(parts=lambda die: byzantine_parts(deviation, die))}
    world = run_checked(
        a_world(
            directory,
            5,
            plans=plans,
            train_s=0.01,
            task={"audit_fraction": 1.0, "training_rounds": 6, "verdict_rounds": 2},
        )
    )
    assert all(events(world, index, "ban") for index in (0, 1, 2, 4))


# --- bugs planted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "seed", "found"),
    [
        ("shown", 0, "shows what it has signed and not synced"),
        ("memory", 26, "is in round"),
    ],
)
def test_a_planted_bug_is_found(plant: NodePlant, seed: int, found: str) -> None:
    assert found in "\n".join(run_case(draw_case(seed, plant=plant)).violations)


def test_an_anchor_that_nobody_sends_again_is_found(directory: Path) -> None:
    world = a_world(directory, task={"confirmations": 6})
    world.chain.on_mined = lambda: drop_anchors(world)
    checkers = world.watch(bound_ms=BOUND_MS)
    with caches.installed(), planted("reorg"):
        world.run(until_s=3_600)
    assert "is not anchored" in "\n".join(checkers.violations)


def test_an_anchor_that_is_dropped_late_is_sent_again(directory: Path) -> None:
    world = a_world(directory, task={"confirmations": 6})
    world.chain.on_mined = lambda: drop_anchors(world)
    run_checked(world)
    assert world.chain.dropped > 0


def drop_anchors(world: TrueWorld) -> None:
    """Once all have seen the first in a block that is not confirmed yet."""
    chain = world.chain
    if chain.block_count_since(lambda state: bool(state.anchored)) == 5 and not chain.dropped:
        chain.reorganize(6, again=0.0)


def test_what_was_shown_before_the_disk_was_lost_may_be_handed_on() -> None:
    """Others still have it; at seed 669 the peer is asked for it before it has written anything again."""
    assert run_case(draw_case(669)).violations == ()
