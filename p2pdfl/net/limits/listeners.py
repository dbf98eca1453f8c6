"""Followers: peers that are no members and may listen all the same.

Off unless the operator grants places (`Limits.followers_max`): whoever comes gets one, and every message of the run is
copied to it, so strangers could spend what the members need.  A follower has its copies pushed by the peer that
granted the place, by nobody else; with more than `follower_outbound_messages_max` waiting, its copies are the ones
dropped; it asks one question at a time, with a pause between two; it is no author, and nothing counts it as reachable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import trio
from libp2p.peer.id import ID

from p2pdfl.net.limits.bounds import Limits


class Listeners:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._served_s: dict[ID, float] = {}
        """Who has a place -> when its last request began, on trio's clock."""

    def __iter__(self) -> Iterator[ID]:
        return iter(self._served_s)

    def __contains__(self, peer: ID) -> bool:
        return peer in self._served_s

    def update(self, present: Collection[ID]) -> None:
        """present: strangers that follow the topic now.  Who has a place keeps it until it goes."""
        for peer in self._served_s.keys() - set(present):
            del self._served_s[peer]
        for peer in present:
            if len(self._served_s) >= self._limits.followers_max:
                return
            self._served_s.setdefault(peer, -self._limits.follower_pause_s)

    async def wait_for_turn(self, peer: ID) -> None:
        """Before a request of `peer` is served.  Members do not wait."""
        if peer not in self._served_s:
            return
        await trio.sleep_until(self._served_s[peer] + self._limits.follower_pause_s)
        if peer in self._served_s:
            self._served_s[peer] = trio.current_time()
