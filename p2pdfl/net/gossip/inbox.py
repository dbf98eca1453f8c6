"""Gossip that waits for the node: bounded in messages and bytes, and shared fairly among its authors (`Shares`).

An author may hold no more than would still be free beside it.  So one who floods gets half, two get a third each, and
there is always room for the next (Choudhury and Hahne 1998, dynamic queue length thresholds).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

Item = TypeVar("Item")
Author = TypeVar("Author", bound=Hashable)
PeerId = bytes
"""In base58 text."""


class Shares(Generic[Author]):
    """How much each author takes of a place that has bounds."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._messages: Counter[Author] = Counter()
        self._bytes: Counter[Author] = Counter()
        self.messages = 0
        self.bytes = 0

    def take(self, author: Author, size: int) -> bool:
        """Whether one more of its messages has room."""
        messages_left = self._messages_max - self.messages
        bytes_left = self._bytes_max - self.bytes
        if self._messages[author] >= messages_left or self._bytes[author] + size > bytes_left:
            return False
        self._change(author, 1, size)
        return True

    def give_back(self, author: Author, size: int) -> None:
        self._change(author, -1, -size)
        if not self._messages[author]:
            del self._messages[author], self._bytes[author]

    def _change(self, author: Author, messages: int, size: int) -> None:
        self._messages[author] += messages
        self._bytes[author] += size
        self.messages += messages
        self.bytes += size


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item]):
    item: Item
    author: PeerId
    size: int


class Inbox(Generic[Item]):
    """Iterate over it to take what comes."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._waiting: deque[_Waiting[Item]] = deque()
        self._shares = Shares[PeerId](messages_max=messages_max, bytes_max=bytes_max)
        self._arrived = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        return self._shares.bytes

    def put(self, item: Item, *, author: PeerId, size: int) -> bool:
        """Whether there was room.  Never waits: a node that is behind must not hold up the reading of sockets."""
        if not self._shares.take(author, size):
            return False
        self._waiting.append(_Waiting(item, author, size))
        self._arrived.set()
        return True

    def keep(self, authors: Collection[PeerId]) -> None:
        """Drops what waits of all others."""
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if one.author in authors:
                self._waiting.append(one)
            else:
                self._shares.give_back(one.author, one.size)

    async def receive(self) -> Item:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()
        return self._take()

    def receive_nowait(self) -> Item:
        """Raises trio.WouldBlock."""
        if not self._waiting:
            raise trio.WouldBlock
        return self._take()

    def __aiter__(self) -> Inbox[Item]:
        return self

    async def __anext__(self) -> Item:
        return await self.receive()

    def _take(self) -> Item:
        taken = self._waiting.popleft()
        self._shares.give_back(taken.author, taken.size)
        return taken.item
