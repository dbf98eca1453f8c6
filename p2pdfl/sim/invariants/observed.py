"""What the invariants see of a world, whichever world it is: peers by index, what they do, and how they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Packet, Round
from p2pdfl.protocol.events import Closed, Notice, SubmitAnchor, SubmitEquivocation, SubmitVerdict


class PeerState(Protocol):
    """How one peer stands now: what its process and its disk would say."""

    @property
    def is_up(self) -> bool: ...
    @property
    def is_finished(self) -> bool:
        """Whether it has closed the last round."""
        ...

    @property
    def is_muted(self) -> bool:
        """Whether it follows and signs nothing, since it may have signed what it does not know of."""
        ...

    @property
    def round(self) -> Round:
        """The one that is open."""
        ...

    @property
    def members(self) -> Sequence[Address]:
        """Of the epoch that it is in."""
        ...

    @property
    def first_round(self) -> Round:
        """Of those that it has to close: it joined from a checkpoint of the rounds before."""
        ...

    @property
    def heads(self) -> Mapping[Round, Digest]:
        """Of the rounds that it has closed, as its disk has them."""
        ...

    @property
    def banned(self) -> Mapping[Address, str]:
        """Why."""
        ...


class Observed(Protocol):
    """A world."""

    @property
    def task(self) -> Task: ...
    @property
    def now_ms(self) -> int: ...
    @property
    def addresses(self) -> Sequence[Address]:
        """Of all peers, by index."""
        ...

    def state(self, index: int) -> PeerState: ...


class Watcher(Protocol):
    """Told of everything that peers do, while they do it."""

    def on_sent(self, index: int, packet: Packet) -> None: ...
    def on_closed(self, index: int, closed: Closed) -> None: ...
    def on_submitted(self, index: int, duty: SubmitAnchor | SubmitVerdict | SubmitEquivocation) -> None: ...
    def on_anchored(self, anchor: SubmitAnchor) -> None: ...
    def on_notice(self, index: int, notice: Notice) -> None: ...
    def on_broken(self, index: int, error: Exception) -> None: ...
