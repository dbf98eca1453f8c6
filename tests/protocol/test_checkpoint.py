"""A run taken up from a checkpoint goes on as one that never stopped; and nothing in a checkpoint can be another."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from p2pdfl.base.codec import Malformed, decode, decode_payload, encode
from p2pdfl.base.types import Checkpoint, Commit, Epoch, Propose
from p2pdfl.byzantine.machine import ByzantineMachine, Deviation
from p2pdfl.protocol.checkpoint import (
    BANNED_EARLIER,
    Anchored,
    BadCheckpoint,
    UnknownBlock,
    bytes_max,
    epochs_of,
    named_block,
    restart_from,
    restore,
    rounds_of,
)
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.history import ClosedRound
from p2pdfl.protocol.run import Run
from p2pdfl.protocol.start import Start
from p2pdfl.sim import caches
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import World, stand_in_task

N = 5
EPOCHS = (0, 1, 2)
TASK = stand_in_task(
    training_rounds=13, epoch_rounds=4, verdict_rounds=1, audit_fraction=0.5, members_min=N, resync_ms=300
)
"""Four epochs; a checkpoint has five rounds, so the first one begins at round 0, and the last is the third."""


class Taken:
    """Where a member that was there all the time stood when an epoch began."""

    def __init__(self, world: World, epoch: Epoch) -> None:
        run = world.peers[1].run
        self.config, self.signer = run.config, run.signer
        self.genesis = world.genesis
        self.checkpoint = world.peers[2].disk.checkpoints[epoch]
        self.anchored: Anchored = world.chain.anchored(TASK, epoch)
        self.named = next(seen for seen in world.blocks if seen.block == named_block(self.checkpoint))
        self.context: RoundContext = run.open_round.context
        self.history = dict(run.closed)
        self.banned = set(run.banned)

    def restore(self, checkpoint: Checkpoint | None = None, **anchored: Any) -> Start:
        return restore(
            self.config,
            self.genesis,
            checkpoint or self.checkpoint,
            replace(self.anchored, **anchored),
            self.named,
        )


@cache
def taken(epoch: Epoch) -> Taken:
    """Member 0 signs twice in round 2 and is banned from round 3 or so on."""
    deviation = Deviation(behaviour="equivocate", from_round=2)
    world = World(
        TASK,
        N,
        seed=4,
        wrap=lambda index, run: ByzantineMachine(run=run, deviation=deviation) if index == 0 else run,
        sharing=StandInSharing(),
    )
    world.chain.confirmations = 0
    world.mine_from_now_on(20)
    first = TASK.last_round_of(epoch) + 1
    with caches.installed():
        world.run(
            until_ms=900_000,
            until=lambda: (
                world.peers[1].run.round == first
                and epoch in world.peers[2].disk.checkpoints
                and epoch < len(world.anchors.taken)
            ),
        )
    return Taken(world, epoch)


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("epoch", EPOCHS)
def test_the_round_that_opens_is_the_one_that_opened_for_who_was_there(epoch: Epoch) -> None:
    at = taken(epoch)
    run = Run(at.config, at.signer, at.restore(), None)
    run.start(0)
    context = run.open_round.context
    assert context == replace(at.context, undelivered=context.undelivered)
    assert set(run.banned) == at.banned
    assert run.is_muted


@pytest.mark.slow
@pytest.mark.parametrize("epoch", EPOCHS)
def test_every_case_that_is_still_open_can_be_judged_as_by_who_was_there(epoch: Epoch) -> None:
    at = taken(epoch)
    start = at.restore()
    first = TASK.last_round_of(epoch) + 1
    for round in range(max(0, first - TASK.verdict_rounds - 2), first):
        assert _without_packets(start.history[round]) == _without_packets(at.history[round])
        assert set(start.history[round].packets) <= set(at.history[round].packets) | {_proposal(at, round)}


def _without_packets(closed: ClosedRound) -> ClosedRound:
    # which proposal and whose votes reached whom first differs
    return replace(closed, packets=(), certificate=None)  # type: ignore[arg-type]


def _proposal(at: Taken, round: int) -> Any:
    return at.checkpoint.rounds[round - rounds_of(TASK, at.checkpoint.epoch)[0]].proposal


@pytest.mark.slow
def test_who_was_banned_in_it_keeps_the_evidence_and_who_was_before_does_not() -> None:
    culprit = taken(0).genesis.registrations[0].address
    assert taken(0).restore().banned == {culprit: "equivocation"}
    assert taken(2).restore().banned == {culprit: BANNED_EARLIER}


@pytest.mark.slow
@pytest.mark.parametrize("epoch", EPOCHS)
def test_it_keeps_to_its_bound_and_to_its_encoding(epoch: Epoch) -> None:
    at = taken(epoch)
    data = encode(at.checkpoint)
    assert named_block(at.checkpoint) == at.named.block
    longest = bytes_max(TASK, N)
    assert decode(Checkpoint, data, bytes_max=longest) == at.checkpoint
    assert [len(at.checkpoint.rounds), len(at.checkpoint.lists)] == [
        len(rounds_of(TASK, epoch)),
        len(epochs_of(TASK, epoch)),
    ]


def test_a_restart_goes_on_where_it_can_still_judge_or_else_as_far_back_as_it_can() -> None:
    kept = [0, 1]
    last = TASK.last_round_of(1)
    assert restart_from(TASK, kept, last + TASK.verdict_rounds + 3) == 1
    assert restart_from(TASK, kept, last + TASK.verdict_rounds + 2) == 0
    assert restart_from(TASK, [1], last + 1) == 1


# --- hostile ---------------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if not isinstance(value, tuple):
        return [path]
    return [leaf for place, item in enumerate(value) for leaf in _leaves(item, (*path, place))]


def _lists(value: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if not isinstance(value, tuple):
        return []
    return [path, *(found for place, item in enumerate(value) for found in _lists(item, (*path, place)))]


def _changed(value: Any, path: tuple[int, ...], change: Any) -> Any:
    if not path:
        return change(value)
    place, *rest = path
    return (*value[:place], _changed(value[place], tuple(rest), change), *value[place + 1 :])


def _other_leaf(value: Any, draw: int) -> Any:
    if isinstance(value, bytes):
        place, bit = draw % (8 * len(value)) // 8, draw % 8
        return value[:place] + bytes([value[place] ^ (1 << bit)]) + value[place + 1 :]
    return value ^ (1 << draw % 8) if isinstance(value, int) else 0


def _refused(at: Taken, array: Any) -> bool:
    try:
        tampered = Checkpoint.model_validate(array)
    except ValidationError:
        return True
    try:
        at.restore(tampered)
    except BadCheckpoint:
        return True
    return False


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EPOCHS), st.data())
def test_no_bit_of_it_can_be_another(epoch: Epoch, data: st.DataObject) -> None:
    at = taken(epoch)
    array = at.checkpoint.to_array()
    path = data.draw(st.sampled_from(_leaves(array)))
    draw = data.draw(st.integers(min_value=0, max_value=2**30))
    assert _refused(at, _changed(array, path, lambda leaf: _other_leaf(leaf, draw)))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EPOCHS), st.data())
def test_nothing_can_be_missing_double_or_elsewhere(epoch: Epoch, data: st.DataObject) -> None:
    """But for signatures of a certificate, in whatever order and as long as a quorum is there."""
    at = taken(epoch)
    array = at.checkpoint.to_array()
    path = data.draw(st.sampled_from([path for path in _lists(array) if path != ()]))
    items = _changed_items(array, path)
    if not items:
        return
    place = data.draw(st.integers(min_value=0, max_value=len(items) - 1))
    other = data.draw(st.integers(min_value=0, max_value=len(items) - 1))
    forms = [
        (*items[:place], *items[place + 1 :]),
        (*items[:place], items[other], *items[place:]),
        (*items[:place], items[other], *items[place + 1 :]),
    ]
    tampered = _changed(array, path, lambda _: data.draw(st.sampled_from(forms)))
    if tampered != array and not _refused(at, tampered):
        assert path[-2:] == (2, 5), "the ballots of a round's certificate"


def _changed_items(array: Any, path: tuple[int, ...]) -> Any:
    for place in path:
        array = array[place]
    return array


@pytest.mark.slow
def test_another_anchor_lists_or_registry_than_its_own() -> None:
    at = taken(1)
    for anchored, problem in (
        ({"head": bytes(32)}, "another head than the anchored one"),
        ({"epoch": 0}, "of another epoch"),
        ({"lists": {}}, "another member list"),
        ({"lists": {**at.anchored.lists, 2: bytes(32)}}, "another member list"),
        ({"registrations": at.anchored.registrations[:-1]}, "not registered"),
    ):
        with pytest.raises(BadCheckpoint, match=problem):
            at.restore(**anchored)


@pytest.mark.slow
def test_the_checkpoint_of_another_epoch_or_of_the_last_one() -> None:
    at = taken(1)
    with pytest.raises(BadCheckpoint, match=r"more or fewer rounds|another head|another round|member list"):
        at.restore(taken(0).checkpoint.replace(epoch=1))
    last = TASK.epoch_count - 1
    with pytest.raises(BadCheckpoint, match="of another epoch"):
        at.restore(at.checkpoint.replace(epoch=last), epoch=last)


@pytest.mark.slow
def test_a_block_that_the_chain_does_not_have_is_nobodys_lie() -> None:
    at = taken(1)
    for named in (None, replace(at.named, block=bytes(32))):
        with pytest.raises(UnknownBlock):
            restore(at.config, at.genesis, at.checkpoint, at.anchored, named)


@pytest.mark.slow
def test_a_proposal_that_is_none_names_no_block() -> None:
    at = taken(1)
    last = at.checkpoint.rounds[-1]
    for junk in (last.commits[0], last.proposal.replace(payload=b"\xc0")):
        with pytest.raises(BadCheckpoint):
            named_block(at.checkpoint.replace(rounds=(*at.checkpoint.rounds[:-1], last.replace(proposal=junk))))


@pytest.mark.slow
def test_what_a_checkpoint_hands_out_can_be_handed_on() -> None:
    """Its packets are the members' own: whoever asks this member for those rounds gets what others would give."""
    at = taken(1)
    for found in at.checkpoint.rounds:
        assert isinstance(decode_payload(found.proposal), Propose)
        assert all(isinstance(decode_payload(packet), Commit) for packet in found.commits)
    with pytest.raises(Malformed):
        decode(Checkpoint, encode(at.checkpoint)[:-1], bytes_max=bytes_max(TASK, N))
