"""Gossip on one topic: an author sends to every member it is connected to, the others announce what they heard.

On the wire this is GossipSub v1.1 (the author's part is its flood publishing), so other implementations can join.  Of
its mesh only GRAFT and PRUNE are answered; who gets a copy is decided here, because copies are what a small network
spends its CPU on:

1. The author sends to every member it is connected to.  Where no link is missing, that is all that is ever sent.
2. Everybody announces the ids of what it heard to a few others, drawn at random, in the next beats (IHAVE).  Who lacks
   one asks for it (IWANT): at once if it has no link to the author, else when it has not come for a while.
3. Who is asked for an author's message passes that author's next ones to the asker without being asked, for a minute.
4. Who hears a message of an author that it has no link to, and so is in a part of the network that the author does
   not reach, passes it to three others, and for a minute announces all that it holds to everybody.

What still gets lost, the protocol's resync brings back: gossip is a hint (DESIGN 3).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IMuxedConn, INetStream
from libp2p.crypto.keys import PublicKey
from libp2p.host.basic_host import BasicHost
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.utils.varint import encode_varint_prefixed

from p2pdfl.base.types import Entropy
from p2pdfl.net.gossip.inbox import Inbox
from p2pdfl.net.gossip.message_cache import SEQNO_BYTES, IWantTracker, MessageCache, MessageId, NotServed, draw
from p2pdfl.net.gossip.missing_links import MissingLinks
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import PEER_ID_BYTES_MAX, Limits
from p2pdfl.net.limits.listeners import Listeners
from p2pdfl.net.limits.resource_manager import ResourceManager

RELAYS_MAX = 3
IDS_PER_RPC_MAX = 512
"""24 KB."""
WRITE_BYTES_MAX = 64 << 10
"""What waits for one peer is written together up to here: one Yamux frame, one Noise message, one system call."""
RPC_OVERHEAD_BYTES = 4096
"""What an RPC has besides one message's data: ids, signature, the sender's signed address record."""
COPIES_AT_ONCE = 16
"""What is read at once holds hundreds of small messages; others get a turn after so many, 2 ms."""
AUTHORS_REMEMBERED_MAX = 1024
"""Keys and names worked out once; twice as many as members."""
FRAME_READ_BYTES = 64 << 10
PREFIX_BYTES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    origin: bytes
    """The author's peer id, in base58 text; it signed the message."""
    data: bytes


class Gossip(Pubsub):
    """py-libp2p's Pubsub for its peers' coming and going; what is read, believed and passed on is decided here."""

    def __init__(
        self,
        host: BasicHost,
        topic: str,
        followers: Listeners,
        resource_manager: ResourceManager,
        *,
        entropy: Entropy,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
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
        self._followers = followers
        self._resource_manager = resource_manager
        self._limits = limits
        self._counters = counters
        self._admitted: frozenset[ID] | None = None
        self._entropy = entropy
        self._seen: OrderedDict[MessageId, None] = OrderedDict()
        self._held = MessageCache(entropy=entropy, limits=limits)
        self._wanted = IWantTracker(limits=limits)
        self._missing_links = MissingLinks(limits=limits)
        self._something_to_do = trio.Event()
        self._ids_taken: Counter[ID] = Counter()
        """Ids announced or asked for, per peer, since the last beat."""
        self._outbound_bytes: Counter[ID] = Counter()
        self._opening: set[ID] = set()
        self._streams: Counter[ID] = Counter()
        self.incoming = Inbox[Incoming](messages_max=limits.incoming_messages_max, bytes_max=limits.incoming_bytes_max)

    def carry_on(self, before: Gossip) -> None:
        """What must outlive a restart of the library: the inbox, messages seen and held, who is admitted."""
        self._admitted, self._seen, self._held = before._admitted, before._seen, before._held
        self.incoming = before.incoming
        self._something_to_do.set()

    # --- what the node asks for ------------------------------------------------------------------------------------

    def admit(self, peers: Collection[ID]) -> None:
        self._admitted = frozenset(peers)
        # Before the first call anybody's messages were taken.
        self.incoming.keep({_text_of(peer.to_bytes()) for peer in peers})
        self._held.keep(self._admitted | {self.my_id})
        self._wanted.keep(self._admitted)
        self.announce_change()

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
        message_id = _message_id(message)
        self._remember(message_id)
        self._counters["messages_sent"] += 1
        peers = self.reachable()
        for peer in peers:
            self._resource_manager.sends_own(peer, len(data))
        self._send_copies(message, peers)
        self._hold(message_id, message, peers)
        self._show_followers(message)
        await trio.lowlevel.checkpoint()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """As shipped, an RPC that does not parse ends the node, and every message in one starts a task."""
        peer = stream.muxed_conn.peer_id
        if self._streams[peer] >= self._limits.gossip_streams_per_peer_max:
            self._refuse("too many gossip streams", peer)
            return await adapter.reset_quietly(stream)
        self._streams[peer] += 1
        try:
            frames = _Frames(stream, self.max_inbound_rpc_size)
            while (frame := await frames.next()) is not None:
                await self._receive_rpc(peer, frame)
        except (DecodeError, _BadFrame):
            self._refuse("malformed gossip", peer)
            self._handle_dead_peer(peer)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
                self._forget_all_subscriptions(peer)
                self.announce_change()
            await adapter.reset_quietly(stream)

    async def _receive_rpc(self, peer: ID, frame: bytes) -> None:
        if not self._resource_manager.takes_gossip_bytes(peer, len(frame)):
            return self._refuse("gossip over the rate", peer)
        rpc = rpc_pb2.RPC()
        rpc.ParseFromString(frame)
        if not self._resource_manager.takes_gossip_messages(peer, max(1, len(rpc.publish) + len(rpc.subscriptions))):
            return self._refuse("gossip over the rate", peer)
        if rpc.HasField("senderRecord") and not maybe_consume_signed_record(rpc, self.host, peer):
            return self._refuse("bad address record")
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            await self._receive_subscriptions(peer, rpc.subscriptions)
        for message in rpc.publish:
            self._receive(peer, message)
            if self._counters["copies_received"] % COPIES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer)
            self._receive_announcements(peer, rpc.control)
        return None

    async def _receive_subscriptions(self, peer: ID, subscriptions: Iterable[rpc_pb2.RPC.SubOpts]) -> None:
        """Only the last word: each change costs three tasks of the library, a look at all peers, and all who wait."""
        last = next((said for said in reversed(list(subscriptions)) if said.topicid == self.topic), None)
        if last is not None and last.subscribe != (peer in self.peer_topics.get(self.topic, ())):
            self.handle_subscription(peer, last)
            self.announce_change()
            await trio.lowlevel.checkpoint()  # what is read at once holds a thousand

    def _receive(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        """Cheap checks first; the signature, 0.1 ms, last."""
        self._counters["copies_received"] += 1
        if list(message.topicIDs) != [self.topic]:
            return self._refuse("other topic", forwarder)
        if not 0 < len(message.from_id) <= PEER_ID_BYTES_MAX or len(message.seqno) != SEQNO_BYTES:
            return self._refuse("malformed gossip", forwarder)
        if len(message.data) > self._limits.message_bytes_max:
            return self._refuse("message too long", forwarder)
        message_id = _message_id(message)
        if message_id in self._seen:
            return self._held.is_known_to(message_id, forwarder)
        author = ID(message.from_id)
        if author == self.my_id:
            return self._refuse("own message returned")
        if not self.is_admitted(author):
            return self._refuse("author not admitted")
        if self._resource_manager.is_refused(author):
            return self._refuse("author is refused")
        if author == forwarder and not self._resource_manager.takes_own_message(author):
            return self._refuse("own gossip over the rate", author)
        if not _is_signed(message):
            return self._refuse("bad gossip signature", forwarder)
        self._wanted.came(message_id)
        if author != forwarder and not self._resource_manager.takes_relayed_message(author):
            # Nobody's fault, and not remembered: the author's own copy may still come.
            return self._refuse("author over the rate")
        self._remember(message_id)
        self._counters["messages_received"] += 1
        self._deliver(Incoming(origin=_text_of(message.from_id), data=message.data))
        now_s = trio.current_time()
        relays = self._missing_links.askers_of(author, now_s)
        if relays or forwarder != author:
            linked = self.reachable()
            others = linked - {author, forwarder}
            relays &= others
            if author not in linked:
                self._missing_links.heard_from_afar(author, now_s)
                relays |= set(draw(others - relays, RELAYS_MAX - len(relays), self._entropy))
            self._pass_on(message, relays)
        self._hold(message_id, message, {author, forwarder, *relays})
        self._show_followers(message)
        return None

    def _deliver(self, message: Incoming) -> None:
        """Never waits: a node that is behind must not hold up the library's reading tasks."""
        if not self.incoming.put(message, author=message.origin, size=len(message.data)):
            self._refuse("inbox full")

    # --- announcing ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self.manager.run_daemon_task(self._keep_announcing)
        await super().run()

    async def _keep_announcing(self) -> None:
        while True:
            await self._something_to_do.wait()
            await trio.sleep(self._limits.beat_s * (0.5 + int.from_bytes(self._entropy(4), "big") / 2**32))
            self._beat()

    def _beat(self) -> None:
        now_s = trio.current_time()
        self._ids_taken.clear()
        self._held.forget_old(now_s)
        peers = self.reachable()
        link_is_missing = self._missing_links.is_any_missing(peers, now_s)
        for peer, ids in self._held.announce(peers, to_all=link_is_missing, now_s=now_s).items():
            for at in range(0, len(ids), IDS_PER_RPC_MAX):
                rpc = rpc_pb2.RPC()
                rpc.control.ihave.add(topicID=self.topic, messageIDs=ids[at : at + IDS_PER_RPC_MAX])
                self._push(peer, _frame(rpc))
        self._ask(peers, now_s)
        if not self._held and not self._wanted:
            self._something_to_do = trio.Event()

    def _receive_announcements(self, peer: ID, control: rpc_pb2.ControlMessage) -> None:
        if not control.ihave and not control.iwant:
            return None
        if not self.is_admitted(peer):
            return self._refuse("stranger's announcement")
        self._something_to_do.set()
        announced = (mid for ihave in control.ihave if ihave.topicID == self.topic for mid in ihave.messageIDs)
        self._receive_ihave(peer, announced)
        self._receive_iwant(peer, (mid for iwant in control.iwant for mid in iwant.messageIDs))
        return None

    def _receive_ihave(self, peer: ID, message_ids: Iterable[MessageId]) -> None:
        now_s = trio.current_time()
        linked = self.reachable()
        missing: list[MessageId] = []
        for message_id in message_ids:
            if self._ids_taken[peer] >= self._limits.ids_per_beat_max:
                self._refuse("too many ids")
                break
            self._ids_taken[peer] += 1
            if message_id in self._seen:
                self._held.is_known_to(message_id, peer)
                continue
            author = ID(message_id[:-SEQNO_BYTES])
            if not 0 < len(author.to_bytes()) <= PEER_ID_BYTES_MAX:
                self._refuse("malformed gossip", peer)
                break
            if author == self.my_id:  # from before a restart
                continue
            if not self.is_admitted(author):
                self._refuse("announcement of an author not admitted")
                continue
            patience_s = self._limits.late_s if author in linked else 0.0
            refused = self._wanted.announced(message_id, peer, patience_s=patience_s, now_s=now_s)
            if refused is not None:
                self._refuse(refused)
                break
            missing.append(message_id)
        # Of these only: whoever announces much in small pieces must not have us look through everything each time.
        self._ask(linked, now_s, only=missing)

    def _ask(self, linked: set[ID], now_s: float, *, only: Collection[MessageId] | None = None) -> None:
        asks, broken = self._wanted.ask(linked, now_s, only=only)
        for _ in broken:
            self._refuse("announced and not sent")
        for peer, ids in asks.items():
            for at in range(0, len(ids), IDS_PER_RPC_MAX):
                rpc = rpc_pb2.RPC()
                rpc.control.iwant.add(messageIDs=ids[at : at + IDS_PER_RPC_MAX])
                self._push(peer, _frame(rpc))

    def _receive_iwant(self, peer: ID, message_ids: Iterable[MessageId]) -> None:
        now_s = trio.current_time()
        for message_id in message_ids:
            if self._ids_taken[peer] >= self._limits.ids_per_beat_max:
                return self._refuse("too many ids")
            self._ids_taken[peer] += 1
            try:
                message = self._held.serve(message_id, peer)
            except NotServed as reason:
                self._refuse(str(reason))
                continue
            if message is not None:
                self._counters["messages_asked_for"] += 1
                self._missing_links.asked(peer, ID(message.from_id), now_s)
                self._pass_on(message, [peer])
        return None

    # --- sending ---------------------------------------------------------------------------------------------------

    def _pass_on(self, message: rpc_pb2.Message, peers: Collection[ID]) -> None:
        within = [peer for peer in peers if self._resource_manager.may_pass_on(peer, len(message.data))]
        self._counters["refused: more to pass on than a peer takes"] += len(peers) - len(within)
        self._send_copies(message, within)

    def _send_copies(self, message: rpc_pb2.Message, peers: Collection[ID]) -> None:
        frame = _frame(rpc_pb2.RPC(publish=[message])) if peers else b""
        for peer in peers:
            if self._push(peer, frame):
                self._counters["copies_sent"] += 1

    def _push(self, peer: ID, frame: bytes) -> bool:
        queue: Any = self.peer_queues.get(peer)  # made for RPCs; it does not look at them
        fits = self._outbound_bytes[peer] + len(frame) <= self._limits.outbound_bytes_max
        if queue is None or not fits or not queue.push(frame):
            self._refuse("peer too slow")
            return False
        self._outbound_bytes[peer] += len(frame)
        return True

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: Any) -> None:
        """As shipped each message is serialised anew for every peer, and written alone."""
        while (item := await queue.pop()) is not None:
            batch = bytearray(_frame(item))
            while len(queue) and len(batch) < WRITE_BYTES_MAX:
                batch += _frame(await queue.pop())
            try:
                await stream.write(bytes(batch))
            except StreamError:
                return self._handle_dead_peer(peer_id)
            if self.peer_queues.get(peer_id) is queue:
                self._outbound_bytes[peer_id] = max(0, self._outbound_bytes[peer_id] - len(batch))
        return None

    def _show_followers(self, message: rpc_pb2.Message) -> None:
        followers = list(self._followers)
        frame = _frame(rpc_pb2.RPC(publish=[message])) if followers else b""
        for peer in followers:
            queue = self.peer_queues.get(peer)
            room = self._limits.follower_outbound_messages_max
            sent = queue is not None and len(queue) < room and self._push(peer, frame)
            self._counters["copies_to_followers" if sent else "refused: follower too slow"] += 1

    # --- peers' coming and going -----------------------------------------------------------------------------------

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """As shipped, two connections at once open two streams and forget one; the queue's limit cannot be set.

        And a failure of the negotiation (a busy machine is enough) is never tried again while the connection lasts: the
        two stay connected and silent.  Of 32 peers on two cores a few pairs always were.
        """
        if peer_id in self._opening:
            return
        self._opening.add(peer_id)
        try:
            await super()._handle_new_peer(peer_id)
        except SwarmException:
            raise
        except Exception as error:
            # As shipped only SwarmException is tried again, so one slow or broken negotiation leaves the peer without
            # gossip for as long as it is connected: with 32 peers joining at once that was one connection in ten.
            self._counters["gossip streams failed"] += 1
            raise SwarmException("no gossip stream") from error
        finally:
            self._opening.discard(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = self._limits.outbound_messages_max
        self.announce_change()

    def _handle_dead_peer(self, peer_id: ID) -> None:
        super()._handle_dead_peer(peer_id)
        if peer_id not in self.peer_queues:
            del self._outbound_bytes[peer_id]
        # As shipped, what a peer grafted and pruned that we never had a stream to stays for ever.
        self.mesh.remove_peer(peer_id)
        self.announce_change()

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        """What a peer follows it says once, on its stream to us; so that is known until that stream ends.

        As shipped it is forgotten when our stream to it breaks, and when it has said hello on a new connection before
        the old one is seen to end: connected, it is never used again.
        """
        if not self._streams[peer_id]:
            super()._forget_all_subscriptions(peer_id)

    def connection_ended(self, peer: ID, connection: IMuxedConn) -> None:
        """As shipped, our stream to a peer that has another connection stays on the one that ended."""
        stream = self.peers.get(peer)
        if stream is not None and stream.muxed_conn is connection:
            self._handle_dead_peer(peer)

    def announce_change(self) -> None:
        following = self.peer_topics.get(self.topic, set())
        self._followers.update([peer for peer in self.peers if peer in following and not self.is_admitted(peer)])
        self.changed.set()
        self.changed = trio.Event()

    def _hold(self, message_id: MessageId, message: rpc_pb2.Message, knowing: Collection[ID]) -> None:
        if not self._held.put(message_id, message, knowing=knowing, now_s=trio.current_time()):
            self._refuse("too much of one author to announce")
        self._something_to_do.set()

    def _remember(self, message_id: MessageId) -> None:
        self._seen[message_id] = None
        if len(self._seen) > self._limits.seen_messages_max:
            self._seen.popitem(last=False)

    def _refuse(self, reason: str, peer: ID | None = None) -> None:
        """peer: whose fault it may be; `peer_score` knows."""
        self._counters[f"refused: {reason}"] += 1
        if peer is not None:
            self._resource_manager.blame(peer, reason)


class Mesh(GossipSub):
    """Keeps the mesh that other implementations expect, with everybody in it.

    It never prunes: above degree_high, as shipped, everybody prunes the same peers and the network falls into cliques.
    Of control messages it takes GRAFT and PRUNE for the one topic (IHAVE and IWANT are Gossip's); peer exchange would
    dial whom a stranger names.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=256,
            degree_low=256,
            degree_high=1024,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._topic = topic

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


def _message_id(message: rpc_pb2.Message) -> MessageId:
    return bytes(message.from_id + message.seqno)


def _frame(item: rpc_pb2.RPC | bytes) -> bytes:
    """Our own frames are serialised once for all peers; the library queues RPCs."""
    return item if isinstance(item, bytes) else encode_varint_prefixed(item.SerializeToString())


@lru_cache(AUTHORS_REMEMBERED_MAX)
def _text_of(peer_id: bytes) -> bytes:
    return ID(peer_id).to_base58().encode()


@lru_cache(AUTHORS_REMEMBERED_MAX)
def _key_in(peer_id: bytes) -> PublicKey | None:
    """An ed25519 peer id is its key, and other kinds are not taken."""
    author = ID(peer_id)
    key = author.extract_public_key()
    return key if key is not None and ID.from_pubkey(key) == author else None


def _is_signed(message: rpc_pb2.Message) -> bool:
    try:
        key = _key_in(message.from_id)
        if key is None:
            return False
        signed = rpc_pb2.Message(
            data=message.data, topicIDs=message.topicIDs, from_id=message.from_id, seqno=message.seqno
        )
        return key.verify(PUBSUB_SIGNING_PREFIX.encode() + signed.SerializeToString(), message.signature)
    except Exception:  # noqa: BLE001 - the library's key parsers raise at will on hostile keys
        return False
