"""Which links are missing, as far as this peer can tell, and whom it stands in for them."""

from __future__ import annotations

from collections import OrderedDict

from libp2p.peer.id import ID

from p2pdfl.net.limits.bounds import Limits


class MissingLinks:
    def __init__(self, *, limits: Limits) -> None:
        self._askers: dict[ID, OrderedDict[ID, float]] = {}
        """Author -> who asked for its messages, and when last."""
        self._heard_s: dict[ID, float] = {}
        """Author without a link to us -> when we last heard a message of it."""
        self._limits = limits

    def asked(self, asker: ID, author: ID, now_s: float) -> None:
        """It lacked the author's message, so it will lack the next one.

        Bounded per author: who asks without need gets one more copy, and costs no more than that.
        """
        askers = self._askers.setdefault(author, OrderedDict())
        if asker in askers or len(self._current(askers, now_s)) < self._limits.askers_per_author_max:
            askers[asker] = now_s

    def askers_of(self, author: ID, now_s: float) -> set[ID]:
        current = self._current(self._askers.get(author, OrderedDict()), now_s)
        if not current:
            self._askers.pop(author, None)
        return current

    def heard_from_afar(self, author: ID, now_s: float) -> None:
        self._heard_s[author] = now_s

    def is_any_missing(self, linked: set[ID], now_s: float) -> bool:
        """An author is alive, and we have no link to it."""
        self._heard_s = {a: at for a, at in self._heard_s.items() if now_s - at < self._limits.gap_s}
        return not self._heard_s.keys() <= linked

    def _current(self, askers: OrderedDict[ID, float], now_s: float) -> set[ID]:
        for asker in [asker for asker, at in askers.items() if now_s - at >= self._limits.gap_s]:
            del askers[asker]
        return set(askers)
