"""Gossip that waits for the node: bounded in messages and bytes, and shared fairly among its authors.

An author may hold no more than would still be free beside it.  So one who floods gets half, two get a third each, and
there is always room for the next (Choudhury and Hahne 1998, dynamic queue length thresholds).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item]):
    item: Item
    author: bytes
    size: int


class Inbox(Generic[Item]):
    """Iterate over it to take what comes."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._waiting: deque[_Waiting[Item]] = deque()
        self._messages: Counter[bytes] = Counter()
        self._bytes: Counter[bytes] = Counter()
        self._arrived = trio.Event()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Item, *, author: bytes, size: int) -> bool:
        """Whether there was room.  Never waits: a node that is behind must not hold up the reading of sockets."""
        messages_left = self._messages_max - len(self._waiting)
        bytes_left = self._bytes_max - self.bytes
        if self._messages[author] >= messages_left or self._bytes[author] + size > bytes_left:
            return False
        self._waiting.append(_Waiting(item, author, size))
        self._messages[author] += 1
        self._bytes[author] += size
        self.bytes += size
        self._arrived.set()
        return True

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
        self.bytes -= taken.size
        for counter, amount in ((self._messages, 1), (self._bytes, taken.size)):
            counter[taken.author] -= amount
        if not self._messages[taken.author]:
            del self._messages[taken.author], self._bytes[taken.author]
        return taken.item
