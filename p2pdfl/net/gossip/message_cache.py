"""Ids of messages instead of messages: what is told to whom, and whom a missing message is asked from.

An author's push reaches everybody it has a link to.  For the others each receiver announces what it heard (GossipSub's
IHAVE), and who lacks a message asks for it (IWANT).  `Held` is the one side, `Wanted` the other.  Neither knows a
clock or a network: time comes as an argument, and what to send goes back as a result.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from p2pdfl.base.types import Entropy
from p2pdfl.net.gossip.inbox import Shares
from p2pdfl.net.limits.bounds import Limits

MessageId = bytes
"""The author's peer id, then 8 bytes of sequence number: GossipSub's default."""
SEQNO_BYTES = 8

TOLD_PER_BEAT = 2
BEATS = 3
"""Each id goes to TOLD_PER_BEAT others in each of BEATS beats.  A member that the author does not reach is so told by
6 of the others on average, and by nobody with probability e^-6, whichever neighbour drops or lies."""
SERVED_MAX = 2
"""How often one peer is sent one message that it asks for."""


def draw(peers: Collection[ID], count: int, entropy: Entropy) -> Iterator[ID]:
    """count of them, or all, in random order."""
    left = sorted(peers, key=ID.to_bytes)
    for _ in range(min(count, len(left))):
        yield left.pop(int.from_bytes(entropy(4), "big") % len(left))


class NotServed(Exception):
    """Why a message that was asked for is not sent: the sender's fault."""


@dataclass(kw_only=True)
class _Message:
    message: rpc_pb2.Message
    author: ID
    size: int
    since_s: float
    beats: int = BEATS
    asked_for: bool = False
    knowing: set[ID] = field(default_factory=set)
    """Those who have it or were told."""
    told: Counter[ID] = field(default_factory=Counter)
    """Whom we told, each with 1 + how often it was sent."""


class MessageCache:
    """Recent messages: announced for a while, sent to who asks.

    An author has its share of the room (`inbox`), so that who floods leaves the others' there to be asked for.
    """

    def __init__(self, *, entropy: Entropy, limits: Limits) -> None:
        self._messages: OrderedDict[MessageId, _Message] = OrderedDict()
        self._shares = Shares[ID](messages_max=limits.recent_messages_max, bytes_max=limits.recent_bytes_max)
        self._deck: list[ID] = []
        self._entropy = entropy
        self._limits = limits

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message_id: MessageId, message: rpc_pb2.Message, *, knowing: Collection[ID], now_s: float) -> bool:
        """Whether there was room.  knowing: its author, and those who sent it or were sent it."""
        author, size = ID(message.from_id), message.ByteSize()
        if not self._shares.take(author, size):
            return False
        self._messages[message_id] = _Message(
            message=message, author=author, size=size, since_s=now_s, knowing=set(knowing)
        )
        return True

    def forget_old(self, now_s: float) -> None:
        while self._messages:
            oldest = next(iter(self._messages.values()))
            if now_s - oldest.since_s < self._limits.recent_s:
                return
            self._drop_oldest()

    def keep(self, authors: Collection[ID]) -> None:
        """Drops all others' messages."""
        for message_id, held in list(self._messages.items()):
            if held.author not in authors:
                del self._messages[message_id]
                self._shares.give_back(held.author, held.size)

    def is_known_to(self, message_id: MessageId, peer: ID) -> None:
        held = self._messages.get(message_id)
        if held is not None:
            held.knowing.add(peer)

    def announce(self, peers: set[ID], *, to_all: bool, now_s: float) -> dict[ID, list[MessageId]]:
        """One beat: whom to tell which ids.

        to_all: a link is known to be missing, so all are told; also of a message that somebody lacked.
        """
        drawn = self._deal(peers)
        out: dict[ID, list[MessageId]] = defaultdict(list)
        for message_id, held in self._messages.items():
            everyone = to_all or held.asked_for
            # Who asks late must still be served.
            if (held.beats == 0 and not everyone) or now_s - held.since_s > self._limits.recent_s / 2:
                continue
            held.beats = max(0, held.beats - 1)
            for peer in (peers if everyone else drawn) - held.knowing:
                held.knowing.add(peer)
                held.told[peer] = 1
                out[peer].append(message_id)
        return out

    def serve(self, message_id: MessageId, peer: ID) -> rpc_pb2.Message | None:
        """What a peer asked for; None if it is forgotten.  Raises NotServed."""
        held = self._messages.get(message_id)
        if held is None:
            return None
        if held.told[peer] == 0:
            raise NotServed("asked for what was not announced to it")
        if held.told[peer] > SERVED_MAX:
            raise NotServed("asked for the same message again")
        held.told[peer] += 1
        held.asked_for = True
        return held.message

    def _deal(self, peers: set[ID]) -> set[ID]:
        """From a deck that we shuffled: nobody can arrange who is told, and the next beats tell others."""
        self._deck = [peer for peer in self._deck if peer in peers]
        if len(self._deck) < TOLD_PER_BEAT:
            self._deck += draw(peers.difference(self._deck), len(peers), self._entropy)
        dealt, self._deck = self._deck[:TOLD_PER_BEAT], self._deck[TOLD_PER_BEAT:]
        return set(dealt)

    def _drop_oldest(self) -> None:
        _, oldest = self._messages.popitem(last=False)
        self._shares.give_back(oldest.author, oldest.size)


@dataclass(kw_only=True)
class _Want:
    ask_at_s: float
    announcers: list[ID]
    """Those not asked yet."""
    asked: ID | None = None


class IWantTracker:
    """Messages that others announced and that have not come.  Each is asked from one announcer at a time."""

    def __init__(self, *, limits: Limits) -> None:
        self._wants: OrderedDict[MessageId, _Want] = OrderedDict()
        self._waiting: Counter[ID] = Counter()
        """How many wants name this peer."""
        self._broken: Counter[ID] = Counter()
        """Beats in which a peer had not sent what it announced, since broken_since."""
        self._broken_since_s = 0.0
        self._limits = limits

    def __len__(self) -> int:
        return len(self._wants)

    def announced(self, message_id: MessageId, by: ID, *, patience_s: float, now_s: float) -> str | None:
        """Somebody has a message that we lack.  patience_s: how long it may still come by itself.

        Returns why the announcement is not taken.
        """
        if self._broken[by] >= self._limits.broken_promises_max:
            return "announcement of who does not deliver"
        if self._waiting[by] >= self._limits.wanted_per_peer_max:
            return "too many announcements of a peer"
        want = self._wants.get(message_id)
        if want is None:
            if len(self._wants) >= self._limits.wanted_messages_max:
                return "too many announcements"
            want = self._wants[message_id] = _Want(ask_at_s=now_s + patience_s, announcers=[])
        if by != want.asked and by not in want.announcers and len(want.announcers) < self._limits.announcers_max:
            want.announcers.append(by)
            self._waiting[by] += 1
        return None

    def keep(self, authors: Collection[ID]) -> None:
        """Wants no messages of others."""
        for message_id in list(self._wants):
            if ID(message_id[:-SEQNO_BYTES]) not in authors:
                self.came(message_id)

    def came(self, message_id: MessageId) -> None:
        want = self._wants.pop(message_id, None)
        if want is not None:
            self._release(*want.announcers, *([want.asked] if want.asked else ()))

    def ask(
        self, linked: Set[ID], now_s: float, *, only: Collection[MessageId] | None = None
    ) -> tuple[dict[ID, list[MessageId]], Sequence[ID]]:
        """Whom to ask for what now, and who did not send what it had announced, once per message.

        Who has gone is not asked, and not blamed.  only: of these messages; else of all.
        """
        if now_s - self._broken_since_s > self._limits.broken_promises_s:
            self._broken.clear()
            self._broken_since_s = now_s
        asks: dict[ID, list[MessageId]] = defaultdict(list)
        broken: list[ID] = []
        for message_id in list(self._wants) if only is None else only:
            want = self._wants.get(message_id)
            if want is None or (want.ask_at_s > now_s and (want.asked is None or want.asked in linked)):
                continue
            if want.asked is not None:
                if want.asked in linked:
                    broken.append(want.asked)
                self._release(want.asked)
                want.asked = None
            self._release(*(peer for peer in want.announcers if peer not in linked))
            want.announcers = [peer for peer in want.announcers if peer in linked]
            if not want.announcers:
                del self._wants[message_id]
                continue
            # Who has broken fewer promises first, else in the order in which they announced it.
            want.asked = min(want.announcers, key=self._broken.__getitem__)
            want.announcers.remove(want.asked)
            want.ask_at_s = now_s + self._limits.promise_s
            asks[want.asked].append(message_id)
        for peer in set(broken):
            self._broken[peer] += 1
        return asks, broken

    def _release(self, *peers: ID) -> None:
        for peer in peers:
            self._waiting[peer] -= 1
            if self._waiting[peer] <= 0:
                del self._waiting[peer]
