"""What a frame costs, in passes through the scheduler and system calls: both are counted, neither is timed."""

from __future__ import annotations

from statistics import median

import pytest
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from net.loopback import GOSSIP, TOPIC, networks, stranger
from p2pdfl.net import Limits, Network
from p2pdfl.net.gossip.pubsub import COPIES_AT_ONCE
from p2pdfl.net.libp2p.frames import FRAME_BYTES_MAX, QuickLock


async def test_a_quick_lock_is_held_by_one_and_then_by_who_waited_longest() -> None:
    lock, holders, order = QuickLock(), 0, list[int]()

    async def hold(number: int) -> None:
        nonlocal holders
        async with lock:
            holders += 1
            assert holders == 1
            order.append(number)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            holders -= 1

    async with trio.open_nursery() as nursery, lock:
        for number in range(5):
            nursery.start_soon(hold, number)
            await trio.testing.wait_all_tasks_blocked()
    assert order == list(range(5))


async def test_who_gave_up_waiting_for_a_quick_lock_does_not_get_it() -> None:
    lock = QuickLock()
    async with lock:
        with trio.move_on_after(0):
            async with lock:
                raise AssertionError
    async with lock:
        pass


async def test_a_quick_lock_comes_back_from_who_fails() -> None:
    lock = QuickLock()
    with pytest.raises(KeyError):
        async with lock:
            raise KeyError
    with trio.fail_after(1):
        async with lock:
            pass


class Steps(trio.abc.Instrument):
    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@pytest.mark.net
@pytest.mark.slow
async def test_a_copy_makes_few_passes_through_the_scheduler(pair: tuple[Network, Network]) -> None:
    """As shipped 19, both ends together."""
    one, other = pair
    steps = Steps()
    passes = []
    trio.lowlevel.add_instrument(steps)
    for number in range(50):
        before = steps.count
        await one.publish(b"%d" % number)
        await other.incoming.receive()
        passes.append(steps.count - before)
    trio.lowlevel.remove_instrument(steps)
    assert median(passes) < 12  # whatever else is due in between takes some as well


@pytest.mark.net
@pytest.mark.slow
async def test_a_full_frame_is_one_write(pair: tuple[Network, Network]) -> None:
    """As shipped two: its header makes it too long for one Noise message."""
    one, other = pair

    async def take(peer: bytes, request: bytes) -> bytes:
        return b""

    other.serve("/test/1", take, request_bytes_max=1 << 20)
    size = 3 * FRAME_BYTES_MAX - 4  # with its length
    before = one.counters["writes"]
    await one.request(other.peer_id, "/test/1", bytes(size), reply_bytes_max=0, timeout_s=5)
    negotiation_and_end = 5
    assert one.counters["writes"] - before <= 3 + negotiation_and_end


@pytest.mark.net
@pytest.mark.slow
async def test_a_stream_carries_what_is_many_windows_long_unchanged(pair: tuple[Network, Network]) -> None:
    one, other = pair
    sent = bytes(range(256)) * (4 << 12)

    async def echo(peer: bytes, request: bytes) -> bytes:
        return request

    other.serve("/test/1", echo, request_bytes_max=len(sent))
    assert await one.request(other.peer_id, "/test/1", sent, reply_bytes_max=len(sent), timeout_s=20) == sent


@pytest.mark.net
@pytest.mark.slow
async def test_a_flood_of_small_messages_leaves_others_their_turn() -> None:
    """In one frame, and in one frame each."""
    bad = rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=b"\x00" * 38, seqno=bytes(8))
    together = encode_varint_prefixed(rpc_pb2.RPC(publish=[bad] * 1000).SerializeToString())
    apart = encode_varint_prefixed(rpc_pb2.RPC(publish=[bad]).SerializeToString()) * 1000
    forgetful = Limits(offence_half_life_s=1e-6)  # else the fourth of them gets it cut off
    async with networks(1, limits=forgetful) as (victim,), stranger() as attacker:
        await attacker.dial(victim)
        stream = await attacker.open(victim, GOSSIP)
        await stream.write(together + apart)
        at_once, before = 0, victim.counters["copies_received"]
        with trio.fail_after(10):
            while (now := victim.counters["copies_received"]) < 2000:
                at_once, before = max(at_once, now - before), now
                await trio.lowlevel.checkpoint()
    assert at_once <= 2 * COPIES_AT_ONCE  # one turn may end and the next begin between two of ours
