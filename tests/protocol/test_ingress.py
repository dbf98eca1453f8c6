"""Who opens a packet learns who signed it, or that others are ahead."""

from __future__ import annotations

from typing import Any

import pytest

from p2pdfl.base.types import Close, Kind, Packet
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.ingress import open_packet
from p2pdfl.protocol.refusal import Ahead, Ignore, Reject
from p2pdfl.sim.world import stand_in_task

from .members import DOMAIN, HEAD, TASK, a_packet, an_epoch, peers

N = 4
OPEN_ROUND = 5
CONFIG = RunConfig(task=stand_in_task(epoch_rounds=10, training_rounds=30), task_id=TASK, domain=DOMAIN)


def opened(packet: Packet) -> tuple[int, bytes]:
    return open_packet(packet, CONFIG, {0: an_epoch(N)}, OPEN_ROUND)


def a_vote(member: int = 2, **slot: Any) -> Packet:
    return a_packet(N, member, Kind.CLOSE, Close(head=HEAD), **{"round": OPEN_ROUND, **slot})


@pytest.mark.parametrize("round", [0, OPEN_ROUND, OPEN_ROUND + 1])
def test_a_packet_from_the_oldest_round_that_is_kept_to_the_next_one_is_opened(round: int) -> None:
    assert opened(a_vote(round=round)) == (2, peers(N)[2].signer.address)


@pytest.mark.parametrize("slot", [{"round": OPEN_ROUND + 2}, {"round": 10, "epoch": 1}])
def test_a_packet_of_a_later_round_shows_that_others_are_ahead(slot: dict[str, int]) -> None:
    with pytest.raises(Ahead):
        opened(a_vote(**slot))


def test_whoever_is_no_member_shows_nothing() -> None:
    """ATTACK: else a stranger could make members ask all the time."""
    stranger = a_packet(N + 1, next(iter({*range(N + 1)} - _members_of_four())), Kind.CLOSE, Close(head=HEAD), round=7)
    with pytest.raises(Reject, match="signer is not a member"):
        opened(stranger)


def _members_of_four() -> set[int]:
    """Their indices among five."""
    addresses = an_epoch(N).addresses
    return {index for index, peer in enumerate(peers(N + 1)) if peer.signer.address in addresses}


def test_a_round_long_closed_is_nobodys_fault() -> None:
    config = RunConfig(task=CONFIG.task, task_id=TASK, domain=DOMAIN)
    open_round = config.history_rounds + 1
    with pytest.raises(Ignore, match="round long closed"):
        open_packet(a_vote(round=0), config, {0: an_epoch(N, last_round=50)}, open_round)
