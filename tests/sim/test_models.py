"""The models of chain, clock, disk and sharing, each by itself."""

from __future__ import annotations

import random

import pytest

from p2pdfl.base.types import Entropy, Envelope, Packet, Registration
from p2pdfl.crypto.envelope import Domain
from p2pdfl.crypto.pvss import TooFewShares
from p2pdfl.protocol.events import ChainSeen
from p2pdfl.sim.chain import Anchors, Chain
from p2pdfl.sim.clock import Clock
from p2pdfl.sim.disk import Disk, SlotTaken
from p2pdfl.sim.network import Cut, FaultyNetwork
from p2pdfl.sim.sharing import StandInSharing

SHARING = StandInSharing()
KEYS = tuple(bytes([2]) + bytes([index]) * 32 for index in range(1, 8))
THRESHOLD = 3
CONTEXT = b"\x05" * 32


def entropy(seed: int = 1) -> Entropy:
    return random.Random(seed).randbytes


# --- sharing ---------------------------------------------------------------------


def _shares(seeds: tuple[int, ...]) -> dict[int, bytes]:
    summed = SHARING.sum_dealings([SHARING.deal(CONTEXT, KEYS, THRESHOLD, entropy(seed)) for seed in seeds])
    return {
        index: SHARING.decrypt(CONTEXT, b"", key, summed[index], entropy()).decrypted for index, key in enumerate(KEYS)
    }


def test_any_threshold_of_shares_give_the_same_point() -> None:
    shares = _shares((1, 2))
    points = {
        SHARING.recover({index: shares[index] for index in chosen}, THRESHOLD)
        for chosen in ((0, 1, 2), (4, 5, 6), (0, 3, 6))
    }
    assert len(points) == 1


def test_fewer_than_the_threshold_give_none() -> None:
    shares = _shares((1,))
    with pytest.raises(TooFewShares):
        SHARING.recover({index: shares[index] for index in (0, 1)}, THRESHOLD)


def test_fewer_than_the_threshold_fit_any_secret() -> None:
    """With one share more, made up, another secret comes out: the true ones alone determine nothing."""
    shares = _shares((1,))
    known = {index: shares[index] for index in (0, 1)}
    first = SHARING.recover({**known, 2: shares[2]}, THRESHOLD)
    assert SHARING.recover({**known, 2: shares[3]}, THRESHOLD) != first


def test_an_altered_dealing_or_one_for_another_context_is_invalid() -> None:
    dealing = SHARING.deal(CONTEXT, KEYS, THRESHOLD, entropy())
    altered = dealing.replace(encrypted_shares=(dealing.commitments[0], *dealing.encrypted_shares[1:]))
    items = [(CONTEXT, dealing), (CONTEXT, altered), (bytes(32), dealing)]
    assert SHARING.find_invalid_dealings(items, KEYS, THRESHOLD, entropy()) == {1, 2}


def test_a_share_of_another_holder_is_invalid() -> None:
    summed = SHARING.sum_dealings([SHARING.deal(CONTEXT, KEYS, THRESHOLD, entropy())])
    share = SHARING.decrypt(CONTEXT, b"", KEYS[0], summed[0], entropy())
    items = [(CONTEXT, KEYS[0], summed[0], share), (CONTEXT, KEYS[1], summed[1], share)]
    assert SHARING.find_invalid_shares(items, entropy()) == {1}


# --- chain -----------------------------------------------------------------------


def _chain(confirmations: int) -> Chain:
    return Chain(
        confirmed=[ChainSeen(number=1, block=bytes(32), registrations=())],
        anchors=Anchors(task=bytes(32), domain=Domain(chain_id=1, contract=bytes(20)), lists=[bytes(32)]),
        confirmations=confirmations,
    )


def _join(registrations: tuple[Registration, ...]) -> tuple[Registration, ...]:
    return (*registrations, Registration(address=bytes(20), peer_id=b"late", pvss_key=b"\x02" * 33, exiting=False))


def test_who_reads_confirmed_blocks_never_sees_a_reorganization() -> None:
    chain = _chain(confirmations=3)
    chain.submit(_join)
    seen: list[ChainSeen] = []
    for height in range(20):
        chain.mine()
        chain.reorganize(height % 4)
        assert chain.confirmed[: len(seen)] == seen
        seen = list(chain.confirmed)
    assert [block.number for block in seen] == list(range(1, len(seen) + 1))
    assert len({block.block for block in seen}) == len(seen)


def test_a_transaction_survives_a_reorganization_and_counts_once() -> None:
    chain = _chain(confirmations=2)
    chain.submit(_join)
    chain.mine()
    chain.reorganize(1)
    for _ in range(6):
        chain.mine()
    assert len(chain.confirmed[-1].registrations) == 1


# --- clock, disk, network ----------------------------------------------------------


@pytest.mark.parametrize("clock", [Clock(offset_ms=70), Clock(rate_permille=853), Clock(rate_permille=1_147)])
def test_a_clock_has_reached_what_it_was_to_show(clock: Clock) -> None:
    for local_ms in range(0, 5_000, 37):
        when_ms = clock.when_ms(local_ms, 100)
        assert clock.read_ms(when_ms) >= local_ms
        assert when_ms == 100 or clock.read_ms(when_ms - 2) < local_ms


def test_a_jump_moves_a_clock_ahead_once() -> None:
    clock = Clock(jumps=((50, 1_000),))
    assert (clock.read_ms(49), clock.read_ms(50), clock.read_ms(60)) == (49, 1_050, 1_060)


def _packet(body: bytes) -> Packet:
    envelope = Envelope(task=bytes(32), epoch=0, round=0, view=0, kind=1, body=body)
    return Packet(envelope=envelope, signature=bytes(64), payload=b"\x00")


def test_a_disk_takes_one_body_per_slot() -> None:
    disk = Disk()
    disk.put_envelope(_packet(b"\x01" * 32))
    assert disk.put_envelope(_packet(b"\x01" * 32)).envelope.body == b"\x01" * 32
    with pytest.raises(SlotTaken):
        disk.put_envelope(_packet(b"\x02" * 32))


def test_a_cut_has_a_direction_and_an_end() -> None:
    cut = Cut(from_ms=10, until_ms=20, senders=frozenset({0}), receivers=frozenset({1}))
    network = FaultyNetwork(
        calm_ms=100,
        calm_latency_ms=(5, 40),
        latency_ms=(1, 10),
        tail_chance=0.0,
        tail_ms=0,
        loss=0.0,
        duplication=0.0,
        cuts=(cut,),
    )
    rng = random.Random(1)
    assert network.delays_ms(0, 1, 15, rng) == ()
    assert network.delays_ms(1, 0, 15, rng)
    assert network.delays_ms(0, 1, 20, rng)
    assert not network.is_open(1, 0, 15)
