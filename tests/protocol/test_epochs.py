"""Which chain blocks a member remembers, to choose the next list by."""

from __future__ import annotations

from p2pdfl.base import params
from p2pdfl.protocol.epochs import Epochs
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.sim.world import stand_in_task

from .members import an_epoch, registrations

N = 4


def a_block(number: int) -> ChainSeen:
    return ChainSeen(number=number, block=number.to_bytes(32, "big"), registrations=registrations(N))


def filled(*, named: int) -> Epochs:
    """As many blocks as are remembered, from number 10 on; the last head names the block `named`."""
    epochs = Epochs(stand_in_task(), {0: an_epoch(N)}, a_block(named))
    for number in range(10, 9 + params.CHAIN_SNAPSHOTS_MAX):
        epochs.on_chain(a_block(number))
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX
    return epochs


def test_the_oldest_block_is_forgotten_first() -> None:
    epochs = filled(named=1)
    epochs.on_chain(a_block(900))
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX
    assert a_block(10).block not in epochs.snapshots
    assert epochs.latest_block() == a_block(900).block


def test_a_block_just_read_is_not_the_one_forgotten() -> None:
    epochs = filled(named=1)
    epochs.on_chain(a_block(2))
    assert a_block(2).block in epochs.snapshots
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX


def test_the_block_that_the_last_head_names_is_never_forgotten() -> None:
    epochs = filled(named=1)
    for number in range(900, 900 + params.CHAIN_SNAPSHOTS_MAX):
        epochs.on_chain(a_block(number))
    assert a_block(1).block in epochs.snapshots


def test_a_list_takes_the_place_of_none_before_its_head_is_certified() -> None:
    epochs = filled(named=1)
    following = an_epoch(N, epoch=1, first_round=10, last_round=19)
    assert epochs.lists == {0: an_epoch(N)}
    epochs.close(a_block(12).block, following)
    assert (epochs.lists[1], epochs.block) == (following, a_block(12).block)
