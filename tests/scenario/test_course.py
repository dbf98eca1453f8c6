"""Five peers, three epochs of four rounds: the lists of epochs 1 and 2 are chosen in rounds 2 and 6."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from p2pdfl.base.task import Task
from p2pdfl.base.types import ZERO_DIGEST, CommitEntry, Contents, Head
from p2pdfl.chain.client import Block
from p2pdfl.chain.contract import Event, ExitRequested, Registered, Started
from p2pdfl.scenario.course import Course, follow

TASK = Task(training_rounds=9, epoch_rounds=4, verdict_rounds=1)
CHOSEN = 6
PEERS = [bytes([index]) * 20 for index in range(1, 6)]
LATER = bytes([9]) * 20


def told(*indices: int) -> frozenset[str]:
    return frozenset("0x" + PEERS[index].hex() for index in indices)


ALL = told(*range(5))


def block_hash(number: int) -> bytes:
    return number.to_bytes(32, "big")


def block_of(round: int) -> int:
    """That its head names."""
    return 100 + 10 * round


def registered(address: bytes, block: int) -> Registered:
    return Registered(
        tx=ZERO_DIGEST, block=block, address=address, peer_id=b"id", pvss_key=bytes(33), deposit_wei=TASK.deposit_wei
    )


def course(
    absent: Callable[[int], Collection[int]] = lambda round: (),
    *,
    events: Collection[Event] = (),
    bans: dict[str, int] | None = None,
    rounds: Collection[int] = range(CHOSEN + 1),
) -> Course:
    """absent: round -> whose COMMIT its head does not name; members are numbered as in PEERS."""
    heads = {}
    for round in rounds:
        commits = tuple(CommitEntry(member=index, body=ZERO_DIGEST) for index in range(5) if index not in absent(round))
        contents = Contents(commits=commits, updates=(), evidence=(), verdicts=(), banned=ZERO_DIGEST)
        words = dict.fromkeys(("task", "parent", "contents", "state", "next_members"), ZERO_DIGEST)
        block = block_hash(block_of(round))
        heads[round] = (Head(epoch=TASK.epoch_of(round), round=round, chain_block=block, **words), contents)
    start: list[Event] = [registered(address, 1) for address in PEERS]
    start.append(Started(tx=ZERO_DIGEST, block=2, list_hash=ZERO_DIGEST))
    blocks = [Block(number, block_hash(number)) for number in map(block_of, range(TASK.total_rounds))]
    return follow(TASK, heads, [*start, *events], blocks, bans or {})


def test_whoever_commits_stays() -> None:
    assert course().members == {0: ALL, 1: ALL, 2: ALL}
    assert course().committed == dict.fromkeys(range(CHOSEN + 1), ALL)


def test_whose_commit_is_in_none_of_the_last_heads_is_left_out() -> None:
    assert course(lambda round: (3,) if round in (4, 5, 6) else ()).members[2] == told(0, 1, 2, 4)


def test_one_commit_in_those_heads_is_enough() -> None:
    for named in (4, 5, 6):
        assert course(partial(_absent_but_in, named)).members[2] == ALL


def _absent_but_in(named: int, round: int) -> tuple[int, ...]:
    return (3,) if round >= 3 and round != named else ()


def test_whoever_was_left_out_and_is_registered_still_comes_back_with_the_next_list() -> None:
    found = course(lambda round: (4,) if round < 8 else ())
    assert found.members == {0: ALL, 1: told(0, 1, 2, 3), 2: ALL}


def test_a_peer_leaves_with_the_list_whose_block_has_its_request() -> None:
    def leaves_in(block: int) -> Course:
        return course(events=[ExitRequested(tx=ZERO_DIGEST, block=block, address=PEERS[2])])

    in_time, too_late = leaves_in(block_of(CHOSEN)), leaves_in(block_of(CHOSEN) + 1)
    assert (in_time.members[2], in_time.leavers) == (told(0, 1, 3, 4), told(2))
    assert (too_late.members[2], too_late.leavers) == (ALL, frozenset())


def test_a_peer_joins_with_the_list_whose_block_has_its_registration() -> None:
    in_time, too_late = (course(events=[registered(LATER, block_of(CHOSEN) + late)]) for late in (0, 1))
    assert in_time.members[2] - ALL == {"0x" + LATER.hex()}
    assert too_late.members[2] == ALL


def test_who_is_banned_by_then_is_left_out() -> None:
    (banned,) = told(1)
    assert course(bans={banned: CHOSEN}).members == {0: ALL, 1: ALL, 2: told(0, 2, 3, 4)}
    assert course(bans={banned: CHOSEN + 1}).members[2] == ALL


def test_no_list_is_made_up_where_heads_are_missing() -> None:
    assert course(rounds=range(CHOSEN)).members == {0: ALL, 1: ALL}
    assert course(rounds=range(1, CHOSEN + 1)).members == {0: ALL}
    assert follow(TASK, {}, [], [], {}) == Course()


def test_whoever_registers_later_in_the_block_of_the_start_waits_for_the_next_list() -> None:
    assert course(events=[registered(LATER, 2)]).members[0] == ALL
