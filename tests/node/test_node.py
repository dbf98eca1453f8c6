"""Real nodes: libp2p on loopback, the embedded chain, the real learner on a task of a second or two."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from net.loopback import network

from node.nodes import Member, Town, keys_of, learner, measured, member, place, town
from p2pdfl.base import params
from p2pdfl.base.codec import body_digest, decode, encode
from p2pdfl.base.types import Ballot, Certificate, Close, Digest, Envelope, Kind, Packet
from p2pdfl.base.workers import Threads
from p2pdfl.learning.learner import State
from p2pdfl.net import Limits, Network, Refused
from p2pdfl.net.blobs.service import PROTOCOL as BLOB_PROTOCOL
from p2pdfl.node.compute import Compute
from p2pdfl.node.node import Node, NodeResult
from p2pdfl.node.resync import RESYNC_PROTOCOL, Resync, Turn
from p2pdfl.node.store import Store, StoreError
from p2pdfl.protocol.events import CertificateReceived, Event, PacketReceived, Resynced, Tick
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest

pytestmark = [pytest.mark.net, pytest.mark.slow]

NAMES = ("ada", "bob", "cyd")
GARBAGE_PEER_ID = b"\xff\x00 no peer id"


def anchored(here: Town, epoch: int) -> Digest | None:
    client = here.at.client("anyone")
    try:
        return client.anchored_head(epoch)
    finally:
        client.close()


def assert_one_history(results: list[NodeResult], rounds: int) -> None:
    assert [result.rounds for result in results] == [rounds] * len(results)
    assert all(result.heads == results[0].heads for result in results)
    assert len({result.state for result in results}) == 1


async def test_three_members_end_with_one_history_which_is_anchored(tmp_path: Path) -> None:
    async with town(tmp_path, measured(members_min=3)) as here:
        await here.found(*NAMES)
        await here.begin(*NAMES)
        results = await here.done(*NAMES)
        assert_one_history(results, rounds=5)
        assert anchored(here, 0) == results[0].heads[4]
        for name in NAMES:
            told = here.members[name].events("round")
            assert [fields["round"] for fields in told] == list(range(5))
            assert [fields["head"] for fields in told] == [results[0].heads[round].hex() for round in range(5)]
            assert (tmp_path / name / "model.safetensors").exists()


async def test_hostile_bytes_of_a_member_end_nobody(tmp_path: Path) -> None:
    """The fourth member floods gossip and answers no question, or with junk; a fifth registers no readable peer id.
    Nobody minds: every offence is forgotten at once."""
    forgetful = Limits(offence_half_life_s=1e-6)
    async with town(tmp_path, measured(members_min=3, commit_ms=1500), limits=forgetful) as here:
        await here.found(*NAMES, "eve")
        await trio.to_thread.run_sync(here.at.register, "garbled", GARBAGE_PEER_ID)
        eve = here.networks["eve"]
        questions = serve_junk(eve)
        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood, eve)
            await here.begin(*NAMES)
            assert_one_history(await here.done(*NAMES), rounds=5)
            flooding.cancel_scope.cancel()
        assert questions["asked"] > 3
        # of the replies, the long one; the question left standing still stands, as the run is shorter than its patience
        refused = sum((one.event_log.refused for one in here.members.values()), Counter())
        assert refused["reply is malformed"] + refused["certificate: no quorum of signatures"] > 0
        for name in NAMES:
            refused = here.members[name].event_log.refused
            assert {"packet is malformed", "gossip of no known kind", "update is too long"} <= refused.keys()


async def test_a_member_whose_messages_are_junk_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    async with town(tmp_path, measured(members_min=3)) as here:
        await here.found(*NAMES, "eve")
        eve = here.networks["eve"]
        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood, eve)
            await here.begin(*NAMES)
            assert_one_history(await here.done(*NAMES), rounds=5)
            flooding.cancel_scope.cancel()
        for name in NAMES:
            counters = here.networks[name].counters
            assert counters["offence: packet is malformed"] + counters["offence: gossip of no known kind"] >= 4
            assert counters["peers refused"] >= 1
            assert counters["connections cut"] >= 1


def serve_junk(eve: Network) -> Counter[str]:
    """The second question of three stays open."""
    questions: Counter[str] = Counter()
    junk_packet = Packet(
        envelope=Envelope(task=bytes(32), epoch=0, round=0, view=0, kind=1, body=bytes(32)),
        signature=bytes(64),
        payload=b"junk",
    )
    junk_certificate = Certificate(
        epoch=0, round=0, view=0, kind=4, head=bytes(32), ballots=(Ballot(member=0, signature=bytes(64)),)
    )
    long_reply = ResyncReply(
        packets=(junk_packet,) * params.RESYNC_REPLY_MESSAGES_MAX,
        certificates=(junk_certificate,) * params.RESYNC_REPLY_CERTIFICATES_MAX,
    )

    async def answer(peer: bytes, question: bytes) -> bytes:
        questions["asked"] += 1
        match questions["asked"] % 3:
            case 0:
                return b"junk"
            case 1:
                return encode(long_reply)
            case _:
                await trio.sleep_forever()
                raise AssertionError

    eve.serve(RESYNC_PROTOCOL, answer, request_bytes_max=1 << 20)
    eve.serve(BLOB_PROTOCOL, answer, request_bytes_max=64)
    return questions


async def flood(eve: Network) -> None:
    samples = [b"", b"\x00", b"\x01", b"\x02", b"\x03", b"\x03" + bytes(31), b"\x03" + bytes(32), b"\xff" * 1000]
    samples += [b"\x01" + bytes([byte]) * 60 for byte in range(0, 256, 16)]
    samples += [b"\x02" + bytes([byte]) * size for byte in (0, 255) for size in (1, 60_000, params.PAYLOAD_BYTES_MAX)]
    while True:
        for sample in samples:
            await eve.publish(sample)
            await trio.sleep(0.002)  # as fast as loopback takes it


async def test_time_goes_on_although_messages_never_end(tmp_path: Path) -> None:
    """A message that the machine refuses moves nothing, so a deadline that is due comes before the next one."""
    with place(tmp_path, measured(members_min=1)) as at:
        at.register("ada", b"ada's peer id")
        at.start("ada")
        async with network("alone") as alone:
            with member(at, "ada", alone) as one:
                inbox, one.node._events = trio.open_memory_channel[Event](1)
                inbox.send_nowait(Tick())
                one.run.start(now_ms=-one.event_log.now_ms - 100_000)
                assert isinstance(await one.node._next_event(), Tick)
                assert one.node._events.statistics().current_buffer_used == 1


async def test_messages_are_taken_although_deadlines_never_end(tmp_path: Path) -> None:
    """As on a disk so slow that a deadline's effects outlast the next one: no message would be taken any more."""
    with place(tmp_path, measured(members_min=1)) as at:
        at.register("ada", b"ada's peer id")
        at.start("ada")
        async with network("alone") as alone:
            with member(at, "ada", alone) as one:
                inbox, one.node._events = trio.open_memory_channel[Event](2)
                messages = [Resynced(round=1), Resynced(round=2)]
                for message in messages:
                    inbox.send_nowait(message)
                one.run.start(now_ms=-one.event_log.now_ms - 100_000)
                events = [await one.node._next_event() for _ in range(5)]
                assert events == [Tick(), *messages, Tick(), Tick()]


async def test_an_answer_shows_nothing_that_the_disk_does_not_have_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given away before a crash it would be signed again, perhaps otherwise."""
    put, writing, may_write = Store.put_envelope, trio.Event(), threading.Event()

    def put_late(store: Store, packet: Packet) -> Packet:
        trio.from_thread.run_sync(writing.set)
        may_write.wait()
        return put(store, packet)

    monkeypatch.setattr(Store, "put_envelope", put_late)
    shown: list[Packet] = []
    missing: list[Packet] = []

    async def ask(node: Node, task: Digest) -> None:
        question = encode(ResyncRequest(task=task, round=0, have=()))
        reply = decode(ResyncReply, await node._resync.answer(b"somebody", question), bytes_max=1 << 20)
        stored = node.store.envelopes(0)
        shown.extend(reply.packets)
        missing.extend(packet for packet in reply.packets if packet not in stored)

    async with town(tmp_path, measured(members_min=1)) as here, trio.open_nursery() as nursery:
        try:
            await here.found("ada")
            await here.begin("ada")
            await writing.wait()
            nursery.start_soon(ask, here.members["ada"].node, here.at.task.task_id())
            await trio.testing.wait_all_tasks_blocked(0.05)
        finally:
            may_write.set()
    assert shown
    assert not missing


async def test_a_signature_that_the_disk_refused_is_shown_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is signed anew after a restart."""
    writing, may_fail = trio.Event(), threading.Event()

    def refuse(store: Store, packet: Packet) -> Packet:
        trio.from_thread.run_sync(writing.set)
        may_fail.wait()
        raise StoreError("database or disk is full")

    monkeypatch.setattr(Store, "put_envelope", refuse)

    async def live(one: Member) -> None:
        with pytest.RaisesGroup(StoreError, flatten_subgroups=True):
            await one.live()

    async def ask(one: Member, task: Digest) -> None:
        with pytest.raises(Refused):
            await one.node._resync.answer(b"somebody", encode(ResyncRequest(task=task, round=0, have=())))

    with place(tmp_path, measured(members_min=1)) as at:
        at.register("ada", b"ada's peer id")
        at.start("ada")
        async with network("alone") as alone:
            with member(at, "ada", alone) as one:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(live, one)
                    await writing.wait()
                    nursery.start_soon(ask, one, at.task.task_id())
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    may_fail.set()


@pytest.mark.parametrize("is_known", [False, True])
async def test_what_a_vote_rests_on_is_taken_up_after_a_restart_with_nobody_to_ask(
    tmp_path: Path, is_known: bool
) -> None:
    """Else a head that may be closed somewhere could be lost: its voters wait for it, and no other follows it.
    is_known: nothing but the notarization is missing, since its packets came again by gossip."""
    payload = Close(head=bytes(32))
    envelope = Envelope(task=bytes(32), epoch=0, round=0, view=0, kind=int(Kind.CLOSE), body=body_digest(payload))
    packet = Packet(envelope=envelope, signature=bytes(64), payload=encode(payload))
    ballot = Ballot(member=0, signature=bytes(64))
    notarization = Certificate(epoch=0, round=0, view=0, kind=int(Kind.NOTARIZE), head=bytes(32), ballots=(ballot,))
    with place(tmp_path, measured(members_min=1)) as at:
        at.register("ada", b"ada's peer id")
        at.start("ada")
        async with network("alone") as alone:
            with member(at, "ada", alone) as one:
                one.node.store.put_notarized(notarization, [] if is_known else [packet])
            with member(at, "ada", alone) as one:
                inbox, events = trio.open_memory_channel[Event](2)
                one.run.start(now_ms=one.event_log.now_ms)
                async with trio.open_nursery() as nursery:
                    Resync(
                        machine=one.run,
                        turn=Turn(),
                        store=one.node.store,
                        network=alone,
                        workers=Threads(),
                        event_log=one.event_log,
                        nursery=nursery,
                        report=inbox.send,
                        open_round=lambda: 0,
                        rng=random.Random(0),
                    ).ask(0)
                if not is_known:
                    assert events.receive_nowait() == PacketReceived(packet=packet, source=None, is_own=False)
                assert events.receive_nowait() == CertificateReceived(certificate=notarization)


async def test_a_member_restarted_in_the_middle_comes_to_the_same_end(tmp_path: Path) -> None:
    """Three of three are a quorum: the others wait for it."""
    async with town(tmp_path, measured(members_min=3)) as here:
        await here.found(*NAMES)
        await here.begin(*NAMES)
        await here.members["cyd"].until_closed(1)
        await here.stop("cyd")
        stored = here.members["cyd"]
        await here.open("cyd")
        await here.begin("cyd")
        assert_one_history(await here.done(*NAMES), rounds=5)
        before = [fields["head"] for fields in stored.events("round")]
        assert [fields["head"] for fields in here.members["cyd"].events("round")][: len(before)] == before


async def test_a_chain_that_stops_stops_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "CHAIN_FINISH_S", 1.0)
    async with town(tmp_path, measured(members_min=3)) as here:
        await here.found(*NAMES)
        await here.begin(*NAMES)
        await trio.to_thread.run_sync(here.at.chain.close)
        assert_one_history(await here.done(*NAMES), rounds=5)
        for one in here.members.values():
            told = {"what": "finishing", "error": "1 transactions owed; a restart tries again"}
            assert told in one.events("chain_error")


async def test_a_chain_that_hangs_holds_up_no_round_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "CHAIN_FINISH_S", 1.0)
    monkeypatch.setattr(params, "CHAIN_WATCH_S", 0.0)
    async with town(tmp_path, measured(members_min=3, training_rounds=20, epoch_rounds=3)) as here:
        await here.found(*NAMES)
        await here.begin(*NAMES)
        with here.at.chain._using_evm:  # it takes questions, and answers none
            assert_one_history(await here.done(*NAMES), rounds=23)
            with trio.fail_after(5):
                await here.stop(*NAMES)


class Differing(Compute):
    """As on a machine whose arithmetic is another."""

    def aggregate(self, parent: State, updates: Sequence[bytes]) -> State:
        state = super().aggregate(parent, updates)
        return State(parameters=state.parameters * (1 + 2**-52), momentum=state.momentum)


async def test_a_machine_that_computes_another_state_stops_itself_and_nobody_else(tmp_path: Path) -> None:
    async with town(tmp_path, measured(members_min=3, commit_ms=1500, view_ms=1000)) as here:
        await here.found(*NAMES, "odd")
        await here.begin(*NAMES)
        await here.begin("odd", computes=Differing)
        assert_one_history(await here.done(*NAMES), rounds=5)
        await here.members["odd"].done.wait()
        assert "round 0: a quorum certified state" in str(here.members["odd"].diverged)


async def test_bodies_too_long_for_gossip_are_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "UPDATE_INLINE_BYTES_MAX", 100)
    async with town(tmp_path, measured(members_min=3, training_rounds=4, audit_fraction=0)) as here:
        await here.found(*NAMES)
        await here.begin(*NAMES)
        assert_one_history(await here.done(*NAMES), rounds=7)
        for one in here.members.values():
            assert [fields["updates"] for fields in one.events("round")] == [3, 3, 3, 3, 0, 0, 0]
            sizes = [fields["update_bytes"] for fields in one.events("round")]
            assert sizes == [3 * learner(here.at.task).update_bytes_max] * 4 + [0] * 3
            assert one.node.network.counters["requests_served"] >= 4


async def test_who_registers_late_is_a_member_of_the_next_epoch_and_makes_up_its_quorum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four: once cyd has left, no round closes without the late member's COMMIT and votes."""
    # rounds are faster here than the chain: enough of them to hear of the registration before the list is chosen
    monkeypatch.setattr(params, "CHAIN_WATCH_S", 0.0)
    task = measured(members_min=3, training_rounds=13, epoch_rounds=8, commit_ms=1500, view_ms=1000)
    async with town(tmp_path, task) as here:
        await here.found(*NAMES)
        await here.open("late")
        await trio.to_thread.run_sync(here.at.register, "late", here.networks["late"].peer_id)
        await here.begin(*NAMES, "late")
        await here.members["cyd"].until_closed(8)
        await here.stop("cyd")
        results = await here.done("ada", "bob", "late")
        assert_one_history(results, rounds=16)
        told = here.members["late"].events("members")
        address = "0x" + keys_of("late").address.hex()
        assert [address in fields["addresses"] for fields in told] == [False, True]
        assert (anchored(here, 0), anchored(here, 1)) == (results[0].heads[7], results[0].heads[15])
