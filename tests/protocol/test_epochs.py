"""Whom the next epoch's list names, by which block; and that no member signs a head with another list."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pdfl.base import params
from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import (
    Address,
    Close,
    CommitEntry,
    Contents,
    Digest,
    Judge,
    Kind,
    Notarize,
    Outcome,
    Propose,
    Registration,
)
from p2pdfl.crypto.envelope import list_hash
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.epochs import Epochs, committed_lately, compute_next_epoch
from p2pdfl.protocol.events import Aggregated, CertificateReceived, ChainSeen, Notice, ReadChain
from p2pdfl.protocol.history import History, ListedRound
from p2pdfl.sim.world import stand_in_task

from .members import DOMAIN, HEAD, TASK, an_epoch, peers, registrations
from .stage import Stage, head_of, in_propose_phase, proposing, sent, with_state

NEWCOMER = Registration(address=b"\x80" * 20, peer_id=b"newcomer", pvss_key=peers(1)[0].keys.pvss_key, exiting=False)
BLOCK = b"\x07" * 32


# --- the list, computed --------------------------------------------------------------------------------------------


def a_list(
    entries: tuple[Registration, ...], *, absent: tuple[int, ...] = (), banned: tuple[int, ...] = ()
) -> list[Address]:
    epoch = an_epoch(5)
    following = compute_next_epoch(
        stand_in_task(epoch_rounds=10, training_rounds=30),
        epoch,
        entries,
        committed=[address for index, address in enumerate(epoch.addresses) if index not in absent],
        banned=[epoch.addresses[index] for index in banned],
    )
    assert (following.epoch, following.first_round, following.last_round) == (1, 10, 19)
    return list(following.addresses)


def members(*indices: int) -> list[Address]:
    return [an_epoch(5).addresses[index] for index in indices]


def test_whoever_is_registered_is_on_the_next_list() -> None:
    assert a_list(registrations(5)) == members(0, 1, 2, 3, 4)
    assert a_list((NEWCOMER, *registrations(5))) == sorted([*members(0, 1, 2, 3, 4), NEWCOMER.address])


def test_the_exiting_the_absent_and_the_banned_are_not() -> None:
    first, *others = registrations(5)
    assert a_list((first.replace(exiting=True), *others)) == members(1, 2, 3, 4)
    assert a_list(registrations(5), absent=(1,)) == members(0, 2, 3, 4)
    assert a_list(registrations(5), banned=(2,)) == members(0, 1, 3, 4)


def test_if_all_leave_at_once_the_unbanned_stay() -> None:
    leaving = tuple(entry.replace(exiting=True) for entry in registrations(5))
    assert a_list(leaving, banned=(2,)) == members(0, 1, 3, 4)
    assert a_list(leaving, banned=(0, 1, 2, 3, 4)) == members(0, 1, 2, 3, 4)


def test_a_commit_in_any_of_the_last_three_heads_is_presence() -> None:
    epoch = an_epoch(5)

    def a_round(round: int, *committed: int) -> ListedRound:
        return ListedRound(round=round, epoch=epoch, contents=naming(*committed), dealings=())

    closed = {round: a_round(round, member) for round, member in ((3, 1), (4, 2), (5, 3))}
    assert params.ABSENT_ROUNDS == 3
    assert committed_lately(6, epoch, naming(0), closed) == set(members(0, 2, 3))


def naming(*committed: int) -> Contents:
    commits = tuple(CommitEntry(member=member, body=bytes(32)) for member in committed)
    return Contents(commits=commits, updates=(), evidence=(), verdicts=(), banned=bytes(32))


# --- the list, agreed on -------------------------------------------------------------------------------------------


def choosing() -> Stage:
    """The last round but one of an epoch, whose head names the next list."""
    return proposing(1, epoch_rounds=3)


def see(stage: Stage, entries: tuple[Registration, ...], *, number: int = 10) -> None:
    stage.take(ChainSeen(number=number, block=BLOCK, registrations=entries))


def naming_list(propose: Propose, addresses: list[Address], block: Digest = BLOCK) -> Propose:
    return propose.replace(head=propose.head.replace(next_members=list_hash(addresses), chain_block=block))


def is_notarized(stage: Stage, propose: Propose) -> bool:
    notarized = sent(stage.take(stage.packet(stage.leader(), propose)), Kind.NOTARIZE)
    assert [decode_payload(packet) for packet in notarized] in ([], [Notarize(head=head_of(propose))])
    return bool(notarized)


WRONG_LISTS: dict[str, Callable[[list[Address], Address], list[Address]]] = {
    "as it was": lambda right, exiting: sorted(
        [exiting, *(address for address in right if address != NEWCOMER.address)]
    ),
    "without the newcomer": lambda right, exiting: [address for address in right if address != NEWCOMER.address],
    "with the exiting": lambda right, exiting: sorted([exiting, *right]),
    "without a member": lambda right, exiting: [address for address in right if address != max(right)],
    "in another order": lambda right, exiting: right[::-1],
}


@pytest.mark.parametrize("change", WRONG_LISTS.values(), ids=WRONG_LISTS)
def test_the_list_of_the_block_that_the_head_names_is_notarized_and_no_other(
    change: Callable[[list[Address], Address], list[Address]],
) -> None:
    stage = choosing()
    first, *others = stage.world.registrations
    right = sorted([*(entry.address for entry in others), NEWCOMER.address])
    see(stage, (first.replace(exiting=True), *others, NEWCOMER))
    propose = with_state(stage)
    wrong = change(right, first.address)
    assert wrong != right
    assert not is_notarized(stage, naming_list(propose, wrong))
    assert is_notarized(stage, naming_list(propose, right))


def test_whom_the_choosing_head_itself_bans_is_not_on_the_list() -> None:
    stage = choosing()
    judge = Judge(accused=3, accuser=3, audited_round=1, outcome=int(Outcome.OBJECTIVE))
    stage.take(*(stage.packet(juror, judge, view=params.MEMBER_COUNT_MAX + 3) for juror in (1, 2)))
    see(stage, stage.world.registrations)
    propose = with_state(stage)
    assert len(propose.contents.verdicts) == 1
    addresses = [entry.address for entry in stage.world.registrations]
    assert not is_notarized(stage, naming_list(propose, addresses))
    assert is_notarized(stage, naming_list(propose, addresses[:3]))


def test_a_block_older_than_the_last_heads_is_not_notarized() -> None:
    stage = choosing()
    see(stage, stage.world.registrations, number=stage.world.genesis.closing_number - 1)
    addresses = [entry.address for entry in stage.world.registrations]
    assert not is_notarized(stage, naming_list(with_state(stage), addresses))


def test_a_block_that_is_not_known_here_is_read_before_the_head_is_judged() -> None:
    stage = choosing()
    propose = naming_list(with_state(stage), [entry.address for entry in stage.world.registrations])
    effects = stage.take(stage.packet(stage.leader(), propose))
    assert ReadChain(block=BLOCK) in effects
    assert sent(effects, Kind.NOTARIZE) == []
    effects = stage.take(ChainSeen(number=10, block=BLOCK, registrations=stage.world.registrations))
    assert sent(effects, Kind.NOTARIZE) != []


def test_a_leader_names_the_list_of_the_newest_block() -> None:
    stage = next(stage for seed in range(20, 60) if (stage := _choosing_and_leading(seed)) is not None)
    for number, entries in ((10, stage.world.registrations), (11, (*stage.world.registrations, NEWCOMER))):
        block = number.to_bytes(32, "big")
        stage.take(ChainSeen(number=number, block=block, registrations=entries))
    updates = stage.proposal().contents.updates
    effects = stage.take(Aggregated(round=1, updates=updates, state=b"\x44" * 32))
    heads = [
        propose.head for packet in sent(effects, Kind.PROPOSE) if isinstance(propose := decode_payload(packet), Propose)
    ]
    expected = sorted([*(entry.address for entry in stage.world.registrations), NEWCOMER.address])
    assert [(head.chain_block, head.next_members) for head in heads] == [
        ((11).to_bytes(32, "big"), list_hash(expected))
    ]


def _choosing_and_leading(seed: int) -> Stage | None:
    stage = Stage(until=in_propose_phase(1), seed=seed, epoch_rounds=3)
    return stage if stage.leader() == 0 else None


def test_the_list_that_is_certified_is_the_next_epochs() -> None:
    stage = choosing()
    entries = (*stage.world.registrations, NEWCOMER)
    expected = sorted(entry.address for entry in entries)
    see(stage, entries)
    propose = naming_list(with_state(stage), expected)
    certificate = stage.certificate(Close(head=head_of(propose)), [1, 2, 3])
    effects = stage.take(stage.packet(stage.leader(), propose), CertificateReceived(certificate=certificate))
    assert list(stage.run.epochs[1].addresses) == expected
    lists = [effect.fields for effect in effects if isinstance(effect, Notice) and effect.name == "members"]
    assert lists == [{"epoch": 1, "addresses": ["0x" + address.hex() for address in expected]}]
    assert stage.open.context.next_members == list_hash(expected)


# --- the blocks that are remembered --------------------------------------------------------------------------------


def a_block(number: int) -> ChainSeen:
    return ChainSeen(number=number, block=number.to_bytes(32, "big"), registrations=registrations(5))


def a_chain(*, named: int) -> Epochs:
    """As many blocks as are remembered, from number 10 on; the last head names the block `named`."""
    config = RunConfig(task=stand_in_task(), task_id=TASK, domain=DOMAIN)
    history = History(closed={}, beacons={}, head=HEAD, state=HEAD)
    epochs = Epochs(config, history, {0: an_epoch(5)}, a_block(named))
    for number in range(10, 9 + params.CHAIN_SNAPSHOTS_MAX):
        epochs.on_chain(a_block(number))
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX
    return epochs


def test_the_oldest_block_is_forgotten_first() -> None:
    epochs = a_chain(named=1)
    epochs.on_chain(a_block(900))
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX
    assert a_block(10).block not in epochs.snapshots
    assert epochs.latest_block() == a_block(900).block


def test_a_block_just_read_is_not_the_one_forgotten() -> None:
    epochs = a_chain(named=1)
    epochs.on_chain(a_block(2))
    assert a_block(2).block in epochs.snapshots
    assert len(epochs.snapshots) == params.CHAIN_SNAPSHOTS_MAX


def test_the_block_that_the_last_head_names_is_never_forgotten() -> None:
    epochs = a_chain(named=1)
    for number in range(900, 900 + params.CHAIN_SNAPSHOTS_MAX):
        epochs.on_chain(a_block(number))
    assert a_block(1).block in epochs.snapshots


def test_a_list_takes_the_place_of_none_before_its_head_is_certified() -> None:
    epochs = a_chain(named=1)
    following = an_epoch(5, epoch=1, first_round=10, last_round=19)
    assert epochs.lists == {0: an_epoch(5)}
    epochs.close(a_block(12).block, following)
    assert (epochs.lists[1], epochs.block) == (following, a_block(12).block)
