"""Messages reach everybody, at about one copy each, also where links are missing and neighbours lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_varint_prefixed

from net.loopback import GOSSIP, TOPIC, Stranger, network, networks, peer_of, seed, stranger
from net.peers.test_address_book import peer
from p2pdfl.net import Limits, Network
from p2pdfl.net.gossip import message_cache
from p2pdfl.net.gossip.message_cache import SERVED_MAX
from p2pdfl.net.gossip.pubsub import RELAYS_MAX, WRITE_BYTES_MAX
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.rates import Rate

pytestmark = [pytest.mark.net, pytest.mark.slow]

Links = Iterable[tuple[int, int]]

LINE: Links = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
RING: Links = [*LINE, (0, 5)]
STAR: Links = [(0, other) for other in range(1, 6)]
ONE_LINK_EACH_WAY_IN: Links = [(0, 1), *combinations(range(1, 6), 2)]
TWO_CLIQUES_AND_ONE_LINK: Links = [*combinations(range(4), 2), *combinations(range(4, 8), 2), (3, 4)]
ALL_BUT_ONE: Links = [link for link in combinations(range(6), 2) if link != (0, 5)]


@asynccontextmanager
async def linked(links: Links, **limits: Any) -> AsyncIterator[list[Network]]:
    """Networks that have these connections and find no others: each dials its bootstraps only."""
    opened: list[Network] = []
    links = sorted(links)
    done = trio.Event()

    async def hold(number: int, *, task_status: Any) -> None:
        bootstrap = [opened[low].addresses[0] for low, high in links if high == number]
        async with network(f"peer {number}", bootstrap, limits=Limits(known_peers_max=0, **limits)) as one:
            task_status.started(one)
            await done.wait()

    async with trio.open_nursery() as nursery:
        for number in range(1 + max(high for _, high in links)):
            opened.append(await nursery.start(hold, number))
        with trio.fail_after(30):
            for number, one in enumerate(opened):
                await one.wait_connected(sum(number in link for link in links))
        try:
            yield opened
        finally:
            done.set()


async def everybody_hears_everybody(peers: list[Network], phase: int = 0) -> None:
    async def listen(peer: Network) -> None:
        heard: set[bytes] = set()
        while len(heard) < len(peers) - 1:
            message = await peer.incoming.receive()
            assert message.origin not in heard
            heard.add(message.origin)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(listen, peer)
                nursery.start_soon(peer.publish, b"%d" % phase)


def total(peers: list[Network], name: str) -> int:
    return sum(peer.counters[name] for peer in peers)


async def test_with_all_links_each_message_comes_about_once() -> None:
    async with networks(8) as peers:
        for phase in range(5):
            await everybody_hears_everybody(peers, phase)
        deliveries = 5 * 8 * 7
        assert total(peers, "messages_received") == deliveries
        assert total(peers, "copies_sent") <= 1.1 * deliveries


@pytest.mark.parametrize(
    "links",
    [LINE, RING, STAR, ONE_LINK_EACH_WAY_IN, TWO_CLIQUES_AND_ONE_LINK, ALL_BUT_ONE],
    ids=["line", "ring", "star", "one link each way in", "two cliques and one link", "all but one"],
)
async def test_with_links_missing_everybody_still_hears_everybody(links: Links) -> None:
    async with linked(links) as peers:
        for phase in range(3):
            await everybody_hears_everybody(peers, phase)
        assert {len(peer.connected()) for peer in peers} != {len(peers) - 1}, "no link was missing"


async def test_who_lacks_a_link_asks_once_and_is_sent_the_next_ones_unasked() -> None:
    async with linked(ALL_BUT_ONE) as peers:
        unreached = peers[5]
        for number in range(5):
            await peers[0].publish(b"%d" % number)
            with trio.fail_after(10):
                assert (await unreached.incoming.receive()).data == b"%d" % number
        assert total(peers, "messages_asked_for") == 1


async def test_who_hears_an_author_without_a_link_to_it_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the few that it passes the message to; without that rule nobody is told here."""
    monkeypatch.setattr(message_cache, "TOLD_PER_BEAT", 0)
    message = rpc(b"1")
    async with network("one") as one, AsyncExitStack() as stack:
        others = [await stack.enter_async_context(hostile(one, f"other {n}")) for n in range(RELAYS_MAX + 3)]
        await others[0].send(message)
        await until(lambda: sum(id_of(message) in other.sent for other in others) == RELAYS_MAX)
        await until(lambda: sum(id_of(message) in other.told for other in others) == len(others) - 1 - RELAYS_MAX)


async def test_a_member_that_was_too_slow_for_the_authors_copy_gets_it_from_another() -> None:
    """The author's queue to it is full, as behind a slow link."""
    async with networks(3, limits=Limits(late_s=0.1)) as (author, other, slow):
        queue = author._gossip.peer_queues[peer_of(slow)]
        queue._queue.max_size, before = 0, queue._queue.max_size
        await author.publish(b"x")
        queue._queue.max_size = before
        assert author.counters["refused: peer too slow"] == 1
        with trio.fail_after(10):
            assert (await slow.incoming.receive()).data == b"x"
        assert other.counters["messages_asked_for"] == 1


async def test_a_broken_stream_is_opened_again_and_what_it_lost_comes_otherwise() -> None:
    """As shipped, who opens it again has forgotten that the other follows the topic, and is never told again."""
    async with networks(3, limits=Limits(late_s=0.1)) as peers:
        one, other, _ = peers
        await one._gossip.peers[peer_of(other)].reset()
        await everybody_hears_everybody(peers)
        with trio.fail_after(10):
            for peer in peers:
                await peer.wait_connected(2)
        await everybody_hears_everybody(peers)
        assert total(peers, "connections closed as deaf") == 0


async def test_a_peer_that_does_not_answer_at_first_is_asked_again() -> None:
    """As shipped, once is all: the two stay connected and silent."""
    opened = trio.Event()

    async def note(stream: INetStream) -> None:
        opened.set()
        await trio.sleep_forever()

    async with network("victim") as victim, stranger() as busy:
        assert await busy.dial(victim)
        await until(lambda: victim.counters["gossip streams failed"] > 0)
        busy.host.set_stream_handler(TProtocol(GOSSIP), note)
        with trio.fail_after(15):
            await opened.wait()


async def test_two_connections_at_once_have_one_gossip_stream() -> None:
    """As shipped two, of which one is forgotten and stays open."""
    opened: list[INetStream] = []

    async def note(stream: INetStream) -> None:
        opened.append(stream)
        await trio.sleep_forever()

    async with network("victim") as victim, stranger() as one:
        one.host.set_stream_handler(TProtocol(GOSSIP), note)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(adapter.swarm_of(one.host).dial_addr, victim._host.get_addrs()[0], peer_of(victim))
        await until(lambda: len(adapter.connections_of(victim._host)) == 2 and len(opened) > 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(opened) == 1


async def test_messages_that_wait_for_one_peer_are_written_together() -> None:
    async with networks(2) as (one, other):
        frames = [encode_varint_prefixed(rpc(b"%03d" % n).SerializeToString()) for n in range(20)]
        stream = one._gossip.peers[peer_of(other)]
        write, written = stream.write, []

        async def noted(data: bytes) -> None:
            written.append(data)
            await write(data)

        stream.write = noted  # type: ignore[method-assign]
        for frame in frames:
            assert one._gossip._push(peer_of(other), frame)
        with trio.fail_after(5):
            for _ in frames:
                await other.incoming.receive()
        (together,) = [data for data in written if frames[0] in data]
        assert together.endswith(b"".join(frames))  # a GRAFT may have waited before them


async def test_what_waits_for_one_peer_is_bounded_in_bytes() -> None:
    limits = Limits(message_bytes_max=1_000, outbound_bytes_max=10_000)
    async with networks(2, limits=limits) as (one, other):
        frame = bytes(1_000)
        pushed = [one._gossip._push(peer_of(other), frame) for _ in range(12)]
        assert pushed == [True] * 10 + [False] * 2
        assert one.counters["refused: peer too slow"] == 2


async def test_what_waits_for_one_peer_is_written_a_frame_or_so_at_a_time() -> None:
    """Each write is a copy, and until it is done all of it counts as waiting."""
    async with networks(2) as (one, other):
        stream = one._gossip.peers[peer_of(other)]
        write, written = stream.write, []

        async def noted(data: bytes) -> None:
            written.append(len(data))
            await write(data)

        stream.write = noted  # type: ignore[method-assign]
        frame = encode_varint_prefixed(rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(10_000))]).SerializeToString())
        for _ in range(20):
            assert one._gossip._push(peer_of(other), frame)
        await until(lambda: sum(written) >= 20 * len(frame))
        assert max(written) < WRITE_BYTES_MAX + len(frame)


async def test_what_waited_for_a_peer_that_was_lost_does_not_count_when_it_comes_again() -> None:
    limits = Limits(message_bytes_max=1_000, outbound_bytes_max=10_000)
    async with networks(2, limits=limits) as (one, other):
        for _ in range(10):
            assert one._gossip._push(peer_of(other), bytes(1_000))
        [connection] = adapter.connections_of(one._host)
        await adapter.abort(connection)
        await until(lambda: not one.connected())
        with trio.fail_after(10):
            await one.wait_connected(1)
        assert one._gossip._push(peer_of(other), bytes(1_000))


async def test_everybody_who_follows_is_in_the_mesh_and_nobody_is_pruned() -> None:
    """As other implementations keep it, a dozen are, and who is one too many is told to leave."""
    async with network("one") as one:
        gossip, peers = one._gossip, {peer(number) for number in range(40)}
        gossip.peer_topics[TOPIC] = set(peers)
        gossip.mesh.peer_protocol.update(dict.fromkeys(peers, TProtocol(GOSSIP)))
        grafted, pruned = gossip.mesh.mesh_heartbeat()
        assert grafted.keys() == gossip.mesh.mesh[TOPIC] == peers
        for _ in range(3):
            assert not pruned
            grafted, pruned = gossip.mesh.mesh_heartbeat()
            assert not grafted


async def test_a_beat_of_the_mesh_does_not_put_off_the_next() -> None:
    """As shipped by half a minute, where most have no more neighbours than the degree."""
    async with networks(2) as (one, _):
        mesh = one._gossip.mesh
        mesh.last_health_update = 0  # it is due
        beats = noted_grafts(one)
        await until(lambda: len(beats) >= 2)


async def test_who_left_the_mesh_is_not_grafted_for_having_another_address() -> None:
    """As shipped at each beat, although it asked to be left alone for a while."""
    async with network("one") as one:
        gossip, mesh = one._gossip, one._gossip.mesh
        *members, left = peers = [peer(number) for number in range(4)]
        gossip.peer_topics[TOPIC] = set(peers)
        mesh.peer_protocol.update(dict.fromkeys(peers, TProtocol(GOSSIP)))
        mesh.mesh[TOPIC] = set(members)
        assert mesh.scorer is not None
        mesh.scorer.ip_by_peer.update(dict.fromkeys(members, "192.0.2.1") | {left: "192.0.2.2"})
        mesh._add_back_off(left, TOPIC, False, 60)
        beats = noted_grafts(one)
        await until(lambda: len(beats) >= 1)
        assert left not in beats[0]


def noted_grafts(one: Network) -> list[set[ID]]:
    """Whom each beat of its mesh grafts, from now on."""
    mesh, beats = one._gossip.mesh, []
    emit = mesh._emit_control_msgs

    async def noted(grafted: dict[ID, list[str]], *others: Any) -> None:
        beats.append(set(grafted))
        await emit(grafted, *others)

    mesh._emit_control_msgs = noted  # type: ignore[method-assign, assignment]
    return beats


# --- hostile neighbours --------------------------------------------------------------------------------------------


class Hostile:
    """A member that follows the topic, keeps what it is told, and sends what a test makes it send."""

    def __init__(self, host: Stranger, stream: INetStream) -> None:
        self.id = host.id
        self.told: Counter[bytes] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.sent: Counter[bytes] = Counter()
        self._stream = stream

    def was_asked(self, count: int) -> bool:
        return len(self.asked) == count

    async def send(self, rpc: rpc_pb2.RPC) -> None:
        await self._stream.write(encode_varint_prefixed(rpc.SerializeToString()))

    async def announce(self, *ids: bytes) -> None:
        rpc = rpc_pb2.RPC()
        rpc.control.ihave.add(topicID=TOPIC, messageIDs=ids)
        await self.send(rpc)

    async def ask(self, *ids: bytes) -> None:
        rpc = rpc_pb2.RPC()
        rpc.control.iwant.add(messageIDs=ids)
        await self.send(rpc)

    async def listen(self, stream: INetStream) -> None:
        unread = bytearray()
        while data := await adapter.read_some(stream, 1 << 16):
            unread += data
            while (frame := take_frame(unread)) is not None:
                rpc = rpc_pb2.RPC.FromString(frame)
                self.told.update(mid for ihave in rpc.control.ihave for mid in ihave.messageIDs)
                self.asked.update(mid for iwant in rpc.control.iwant for mid in iwant.messageIDs)
                self.sent.update(message.from_id + message.seqno for message in rpc.publish)


@asynccontextmanager
async def hostile(victim: Network, name: str = "stranger") -> AsyncIterator[Hostile]:
    listeners: dict[str, Callable[[INetStream], Any]] = {}

    async def listen(stream: INetStream) -> None:
        while "it" not in listeners:
            await trio.lowlevel.checkpoint()
        await listeners["it"](stream)

    async with stranger(name) as host:
        host.host.set_stream_handler(TProtocol(GOSSIP), listen)
        assert await host.dial(victim)
        one = Hostile(host, await host.open(victim, GOSSIP))
        listeners["it"] = one.listen
        await one.send(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)]))
        with trio.fail_after(5):
            while one.id not in victim._gossip.reachable():
                await victim._gossip.changed.wait()
        yield one


def take_frame(unread: bytearray) -> bytes | None:
    length = shift = start = 0
    for byte in unread:
        length |= (byte & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if byte < 0x80:
            break
    else:
        return None
    if len(unread) < start + length:
        return None
    frame = bytes(unread[start : start + length])
    del unread[: start + length]
    return frame


def rpc(seqno: bytes, author: str = "author") -> rpc_pb2.RPC:
    """One message that the author signed."""
    key = create_new_key_pair(seed(author))
    made = rpc_pb2.Message(
        data=b"x", topicIDs=[TOPIC], from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=seqno.rjust(8)
    )
    made.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString())
    return rpc_pb2.RPC(publish=[made])


def id_of(rpc: rpc_pb2.RPC) -> bytes:
    (message,) = rpc.publish
    return bytes(message.from_id + message.seqno)


def invented(count: int) -> list[bytes]:
    author = ID.from_pubkey(create_new_key_pair(seed("author")).public_key).to_bytes()
    return [author + number.to_bytes(8, "big") for number in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_announcements_of_invented_ids_are_bounded_and_counted() -> None:
    limits = Limits(promise_s=0.2, beat_s=0.1, wanted_per_peer_max=100, broken_promises_max=2)
    async with networks(2, limits=limits) as (victim, friend), hostile(victim) as liar:
        await liar.announce(*invented(5_000))
        await until(lambda: victim.counters["refused: too many announcements of a peer"] > 0)
        assert len(victim._gossip._wanted) <= 100
        assert max(liar.asked.values(), default=1) == 1
        await until(lambda: victim.counters["refused: announced and not sent"] == 100)
        assert len(victim._gossip._wanted) == 0
        await liar.announce(*invented(1))
        await until(lambda: victim.counters["refused: announced and not sent"] == 101)
        await liar.announce(*invented(1))
        await until(lambda: victim.counters["refused: announcement of who does not deliver"] > 0)
        await everybody_hears_everybody([victim, friend])


async def test_who_passes_on_what_is_over_its_authors_rate_has_delivered() -> None:
    """It did as it was asked; the author, whom it cannot stop, is another."""
    limits = Limits(promise_s=0.2, beat_s=0.1, own_messages=Rate(per_s=0.001, burst=1))
    async with networks(2, limits=limits) as (victim, friend), hostile(victim) as carrier:
        taken, surplus = rpc(b"1"), rpc(b"2")
        await carrier.send(taken)
        await until(lambda: victim.counters["messages_received"] == 1)
        await carrier.announce(id_of(surplus))
        await until(lambda: carrier.asked[id_of(surplus)] == 1)
        await carrier.send(surplus)
        await until(lambda: victim.counters["refused: author over the rate"] == 1)
        assert len(victim._gossip._wanted) == 0
        assert victim.counters["refused: announced and not sent"] == 0
        await everybody_hears_everybody([victim, friend])


async def test_what_strangers_sent_before_the_members_were_known_goes() -> None:
    async with networks(2) as (victim, friend), hostile(victim) as stranger_:
        await stranger_.send(rpc(b"1", "stranger"))
        await stranger_.announce(*invented(5))
        await friend.publish(b"honest")
        await until(lambda: victim.counters["messages_received"] == 2 and len(victim._gossip._wanted) == 5)
        victim.admit([victim.peer_id, friend.peer_id])
        assert victim.incoming.receive_nowait().origin == friend.peer_id
        assert len(victim.incoming) == 0
        assert victim.incoming.bytes == 0
        assert len(victim._gossip._held) == 1
        assert len(victim._gossip._wanted) == 0
        assert not victim._gossip._wanted._waiting
        await everybody_hears_everybody([victim, friend])


async def test_two_who_flood_leave_room_for_what_others_said() -> None:
    """Who lacks it asks for it when they are done."""
    limits = Limits(recent_messages_max=32, late_s=0.1, beat_s=0.1)
    async with networks(2, limits=limits) as (victim, friend), hostile(victim) as flooder:
        await friend.publish(b"honest")
        await until(lambda: len(flooder.told) == 1)
        (honest,) = flooder.told
        for number in range(100):
            await flooder.send(rpc(b"%d" % number, "one"))
            await flooder.send(rpc(b"%d" % number, "other"))
        await until(lambda: victim.counters["messages_received"] == 201)
        await flooder.ask(honest)
        await until(lambda: flooder.sent[honest] == 1)
        assert victim.counters["refused: too much of one author to announce"] > 100


async def test_more_ids_in_a_beat_than_members_can_have_messages() -> None:
    async with networks(2, limits=Limits(ids_per_beat_max=50)) as (victim, friend), hostile(victim) as liar:
        await liar.ask(*invented(5_000))
        await until(lambda: victim.counters["refused: too many ids"] == 1)
        await until(lambda: not victim._gossip._ids_taken)
        await liar.announce(*invented(5_000))
        await until(lambda: victim.counters["refused: too many ids"] == 2)
        assert len(victim._gossip._wanted) <= 50
        await everybody_hears_everybody([victim, friend])


@pytest.mark.parametrize("message_id", [b"", b"short", bytes(8), bytes(10_000)])
async def test_announced_ids_that_name_no_author(message_id: bytes) -> None:
    async with networks(2) as (victim, friend), hostile(victim) as liar:
        await liar.announce(message_id)
        await until(lambda: victim.counters["refused: malformed gossip"] == 1)
        assert len(victim._gossip._wanted) == 0
        await everybody_hears_everybody([victim, friend])


async def test_announcements_about_who_is_not_admitted_and_from_who_is_not() -> None:
    async with networks(2) as (victim, friend), hostile(victim) as liar:
        victim.admit([friend.peer_id, liar.id.to_base58().encode()])
        await liar.announce(*invented(3))
        await until(lambda: victim.counters["refused: announcement of an author not admitted"] == 3)
        victim.admit([friend.peer_id])
        await liar.announce(*invented(3))
        await liar.ask(*invented(3))
        await until(lambda: victim.counters["refused: stranger's announcement"] == 2)
        await everybody_hears_everybody([victim, friend])


async def test_who_asks_for_the_same_message_again_and_again_is_sent_it_twice() -> None:
    async with networks(2) as (victim, friend), hostile(victim) as greedy:
        await friend.publish(b"x")
        await until(lambda: len(greedy.told) == 1)
        (message_id,) = greedy.told
        for _ in range(5):
            await greedy.ask(*[message_id] * 5)
        await until(lambda: victim.counters["refused: asked for the same message again"] == 25 - SERVED_MAX)
        assert victim.counters["messages_asked_for"] == SERVED_MAX
        await until(lambda: greedy.sent[message_id] == SERVED_MAX)
        await everybody_hears_everybody([victim, friend])


async def test_who_asks_for_what_it_was_not_told_of_is_sent_nothing() -> None:
    async with networks(2) as (victim, _), hostile(victim) as greedy:
        await victim.publish(b"x")
        await until(lambda: len(greedy.sent) == 1)
        await greedy.ask(*greedy.sent, *invented(10))
        await until(lambda: victim.counters["refused: asked for what was not announced to it"] == 1)
        assert victim.counters["messages_asked_for"] == 0


async def test_an_announcer_that_never_sends_does_not_keep_a_message_away() -> None:
    """It is first to announce; the honest neighbour, who alone has a link to the author, is asked next."""
    limits = Limits(promise_s=0.3, beat_s=0.1)
    message = rpc(b"1")
    async with networks(2, limits=limits) as (victim, friend), hostile(victim) as liar:
        await liar.announce(id_of(message))
        await until(lambda: liar.asked[id_of(message)] == 1)
        async with hostile(friend, "author") as author:
            await author.send(message)
            with trio.fail_after(10):
                assert (await victim.incoming.receive()).origin == author.id.to_base58().encode()
        assert victim.counters["refused: announced and not sent"] == 1
        assert friend.counters["messages_asked_for"] == 1


async def test_what_hostile_neighbours_announced_is_forgotten() -> None:
    limits = Limits(promise_s=0.2, beat_s=0.1, recent_s=4.0)
    async with networks(2, limits=limits) as (victim, friend):
        for number in range(3):
            async with hostile(victim, f"liar {number}") as liar:
                await liar.announce(*invented(100))
                await until(partial(liar.was_asked, 100))
                await until(lambda: len(victim._gossip._wanted) == 0)
        await everybody_hears_everybody([victim, friend])
        await until(lambda: len(victim._gossip._held) == 0)
        assert not victim._gossip._wanted._waiting
        assert +victim._gossip._outbound_bytes == Counter()
