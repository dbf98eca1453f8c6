"""Gossip on one topic: an author sends to every member it is connected to, receivers pass it on sparingly.

On the wire this is GossipSub v1.1 (the author's part is its flood publishing), so other implementations can join.  Of
its mesh only GRAFT and PRUNE are answered; who gets a copy is decided here, because copies are what a small network
spends its CPU on, about 1 ms each:

1. The author sends to every member it is connected to.
2. For each message the members stand on a ring, ordered by a hash of the message and their id.  Who hears it straight
   from its author passes it to the next on the ring.  So everyone gets two copies, and whoever the author cannot reach
   gets one from its predecessor, which no one can choose.
3. Who hears it from someone else first, and so may be in a part of the network that the author does not reach, passes
   it to the next three.

What still gets lost, the protocol's resync brings back: gossip is a hint (DESIGN 3).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX, signature_validator

from p2pdfl.net import adapter
from p2pdfl.net.limits import Limits

RELAYS_FROM_AUTHOR = 1
RELAYS_FROM_RELAY = 3
RPC_OVERHEAD_BYTES = 4096
"""What an RPC has besides one message's data: ids, signature, the sender's signed address record."""
PEER_ID_BYTES_MAX = 64
FRAME_READ_BYTES = 64 << 10
PREFIX_BYTES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    origin: bytes
    """The author's peer id, in base58 text; it signed the message."""
    data: bytes


class Gossip(Pubsub):
    """py-libp2p's Pubsub for its peers' coming and going; what is read, believed and passed on is decided here."""

    def __init__(self, host: BasicHost, topic: str, *, limits: Limits, counters: Counter[str]) -> None:
        self.mesh = Mesh(topic)
        super().__init__(
            host,
            self.mesh,
            strict_signing=True,
            max_inbound_rpc_size=limits.message_bytes_max + RPC_OVERHEAD_BYTES,
            max_subscriptions_per_rpc=64,
            allowed_topics={topic},
        )
        # As shipped the id of a restarted node's message may repeat: the counter starts at the whole second.
        self.counter = time.time_ns()
        # As shipped this is a thread per node, and its size has no bound.
        self.seen_messages.stop()
        self.topic = topic
        self.changed = trio.Event()
        """Set, and replaced, whenever `reachable` may have changed."""
        self._limits = limits
        self._counters = counters
        self._admitted: frozenset[ID] | None = None
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._opening: set[ID] = set()
        self._streams: Counter[ID] = Counter()
        self._inbox, self.incoming = trio.open_memory_channel[Incoming](limits.incoming_messages_max)
        self._inbox_sizes: deque[int] = deque()
        self._inbox_bytes = 0

    # --- what the node asks for ------------------------------------------------------------------------------------

    def admit(self, peers: Collection[ID]) -> None:
        self._admitted = frozenset(peers)
        self._announce_change()

    def is_admitted(self, peer: ID) -> bool:
        return self._admitted is None or peer in self._admitted

    def reachable(self) -> set[ID]:
        """Admitted peers that follow the topic and that we have a stream to."""
        return {peer for peer in self.peer_topics.get(self.topic, ()) if peer in self.peers and self.is_admitted(peer)}

    async def send(self, data: bytes) -> None:
        """Raises ValueError if data is longer than message_bytes_max."""
        if len(data) > self._limits.message_bytes_max:
            raise ValueError(f"{len(data)} bytes in one message, at most {self._limits.message_bytes_max}")
        message = rpc_pb2.Message(
            data=data, topicIDs=[self.topic], from_id=self.my_id.to_bytes(), seqno=self._next_seqno()
        )
        assert self.sign_key is not None
        message.signature = self.sign_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        self._remember(_message_id(message))
        self._counters["messages_sent"] += 1
        self._send_copies(message, self.reachable())
        await trio.lowlevel.checkpoint()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """As shipped, an RPC that does not parse ends the node, and every message in one starts a task."""
        peer = stream.muxed_conn.peer_id
        if self._streams[peer] >= self._limits.gossip_streams_per_peer_max:
            self._refuse("too many gossip streams")
            return await adapter.reset_quietly(stream)
        self._streams[peer] += 1
        try:
            frames = _Frames(stream, self.max_inbound_rpc_size)
            while (frame := await frames.next()) is not None:
                await self._receive_rpc(peer, frame)
        except (DecodeError, _BadFrame):
            self._refuse("malformed gossip")
            self._handle_dead_peer(peer)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
            await adapter.reset_quietly(stream)

    async def _receive_rpc(self, peer: ID, frame: bytes) -> None:
        rpc = rpc_pb2.RPC()
        rpc.ParseFromString(frame)
        if rpc.HasField("senderRecord") and not maybe_consume_signed_record(rpc, self.host, peer):
            self._refuse("bad address record")
            return
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer)
        for message in rpc.publish:
            self._receive(peer, message)

    def _receive(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        """Cheap checks first; the signature, 0.1 ms, last."""
        self._counters["copies_received"] += 1
        if list(message.topicIDs) != [self.topic]:
            return self._refuse("other topic")
        if not 0 < len(message.from_id) <= PEER_ID_BYTES_MAX or len(message.seqno) != 8:
            return self._refuse("malformed gossip")
        if len(message.data) > self._limits.message_bytes_max:
            return self._refuse("message too long")
        message_id = _message_id(message)
        if message_id in self._seen:
            return None
        author = ID(message.from_id)
        if author == self.my_id:
            return self._refuse("own message returned")
        if not self.is_admitted(author):
            return self._refuse("author not admitted")
        if not _is_signed(message):
            return self._refuse("bad gossip signature")
        self._remember(message_id)
        self._counters["messages_received"] += 1
        self._deliver(Incoming(origin=author.to_base58().encode(), data=message.data))
        relays = RELAYS_FROM_AUTHOR if forwarder == author else RELAYS_FROM_RELAY
        self._send_copies(message, self._next_on_ring(message_id, relays, skip={author, forwarder}))
        return None

    def _deliver(self, message: Incoming) -> None:
        """Never waits: a node that is behind must not hold up the library's reading tasks."""
        while len(self._inbox_sizes) > self._inbox.statistics().current_buffer_used:
            self._inbox_bytes -= self._inbox_sizes.popleft()
        if self._inbox_bytes + len(message.data) > self._limits.incoming_bytes_max:
            return self._refuse("inbox full")
        try:
            self._inbox.send_nowait(message)
        except trio.WouldBlock:
            return self._refuse("inbox full")
        except trio.BrokenResourceError:
            return self._refuse("inbox closed")
        self._inbox_sizes.append(len(message.data))
        self._inbox_bytes += len(message.data)
        return None

    # --- sending ---------------------------------------------------------------------------------------------------

    def _next_on_ring(self, message_id: bytes, count: int, *, skip: set[ID]) -> list[ID]:
        def place(peer: ID) -> bytes:
            return sha256(message_id + peer.to_bytes()).digest()

        here = place(self.my_id)
        others = self.reachable() - skip
        # Places after ours in order, then the ring's beginning.
        return sorted(others, key=lambda peer: ((at := place(peer)) < here, at))[:count]

    def _send_copies(self, message: rpc_pb2.Message, peers: Collection[ID]) -> None:
        rpc = rpc_pb2.RPC(publish=[message])
        for peer in peers:
            queue = self.peer_queues.get(peer)
            if queue is not None and queue.push(rpc):
                self._counters["copies_sent"] += 1
            else:
                self._refuse("peer too slow")

    # --- peers' coming and going -----------------------------------------------------------------------------------

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """As shipped, two connections at once open two streams and forget one; the queue's limits cannot be set."""
        if peer_id in self._opening:
            return
        self._opening.add(peer_id)
        try:
            await super()._handle_new_peer(peer_id)
        finally:
            self._opening.discard(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue.max_message_size = self.max_inbound_rpc_size
            queue._queue.max_size = self._limits.outbound_messages_max
        self._announce_change()

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        super().handle_subscription(origin_id, sub_message)
        self._announce_change()

    def _handle_dead_peer(self, peer_id: ID) -> None:
        super()._handle_dead_peer(peer_id)
        # As shipped, what a peer grafted and pruned that we never had a stream to stays for ever.
        self.mesh.remove_peer(peer_id)
        self._announce_change()

    def _announce_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _remember(self, message_id: bytes) -> None:
        self._seen[message_id] = None
        if len(self._seen) > self._limits.seen_messages_max:
            self._seen.popitem(last=False)

    def _refuse(self, reason: str) -> None:
        self._counters[f"refused: {reason}"] += 1


class Mesh(GossipSub):
    """Keeps the mesh that other implementations expect, with everybody in it.

    It never prunes: above degree_high, as shipped, everybody prunes the same peers and the network falls into cliques.
    Of control messages it takes GRAFT and PRUNE for the one topic: answering IWANT would amplify, IHAVE would fetch
    what the resync brings anyway, and peer exchange dials whom a stranger names.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=256,
            degree_low=256,
            degree_high=1024,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._topic = topic

    def get_protocols(self) -> list[TProtocol]:
        return [PROTOCOL_ID_V11]

    def remove_peer(self, peer_id: ID) -> None:
        super().remove_peer(peer_id)
        # As shipped, who pruned us is remembered for ever.
        backing_off = self.back_off.get(self._topic, {})
        backing_off.pop(peer_id, None)
        if not backing_off:
            self.back_off.pop(self._topic, None)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        for graft in rpc.control.graft[:1]:
            if graft.topicID == self._topic:
                await self.handle_graft(graft, sender_peer_id)
        for prune in rpc.control.prune[:1]:
            if prune.topicID == self._topic:
                await self.handle_prune(rpc_pb2.ControlPrune(topicID=self._topic), sender_peer_id)


class _BadFrame(Exception):
    pass


class _Frames:
    """Length-prefixed frames of a stream.  Reads in large pieces: as shipped, a prefix costs a read per byte."""

    def __init__(self, stream: INetStream, bytes_max: int) -> None:
        self._stream = stream
        self._bytes_max = bytes_max
        self._unread = bytearray()

    async def next(self) -> bytes | None:
        """None at the stream's end, whatever ended it.  Raises _BadFrame."""
        while (frame := self._take()) is None:
            data = await adapter.read_some(self._stream, FRAME_READ_BYTES)
            if not data:
                return None
            self._unread += data
        return frame

    def _take(self) -> bytes | None:
        length = start = 0
        for byte in self._unread[:PREFIX_BYTES_MAX]:
            length |= (byte & 0x7F) << 7 * start
            start += 1
            if byte < 0x80:
                break
        else:
            if start == PREFIX_BYTES_MAX:
                raise _BadFrame
            return None
        if length > self._bytes_max:
            raise _BadFrame
        end = start + length
        if len(self._unread) < end:
            return None
        frame = bytes(self._unread[start:end])
        del self._unread[:end]
        return frame


def _message_id(message: rpc_pb2.Message) -> bytes:
    return bytes(message.from_id + message.seqno)


def _is_signed(message: rpc_pb2.Message) -> bool:
    try:
        return signature_validator(message)
    except Exception:  # noqa: BLE001 - the library's key parsers raise at will on hostile keys
        return False
