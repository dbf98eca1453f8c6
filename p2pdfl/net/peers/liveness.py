"""Who is still there: own pings, and an end to connections that have fallen silent.

TCP alone notices a stopped process never and a pulled cable after a quarter of an hour; Yamux as shipped pings every
30 s and draws no conclusion.  So, a few times a second, for every connection:

1. Whatever arrived since the last look, at the socket or, through a relay, as frames, is a sign of life.  A large
   transfer needs no pings, and cannot delay one until its peer looks dead.
2. After ping_s of silence a Yamux ping is sent.  It is a sign of life for the other side, so of two idle peers mostly
   one pings.
3. After silent_s of silence the connection is closed, without a word: who is stopped does not read one.

Silence is counted in looks, not by the clock, and a look that comes late is none: who was itself stopped, or has not
the CPU it needs, must first read what has arrived meanwhile, and is no judge of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio
from libp2p.abc import INetConn
from libp2p.host.basic_host import BasicHost

from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import Limits


@dataclass
class _Silence:
    heard: int
    ping_after: int
    """Looks."""
    looks: int = 0
    pinged: bool = False


class Liveness:
    def __init__(
        self, host: BasicHost, *, jitter: Callable[[float], float], limits: Limits, counters: Counter[str]
    ) -> None:
        self._host = host
        self._jitter = jitter
        self._limits = limits
        self._counters = counters
        self._silences: dict[INetConn, _Silence] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                due = trio.current_time() + self._limits.look_s
                await trio.sleep_until(due)
                if trio.current_time() < due + self._limits.look_s:
                    self.look(nursery)

    def look(self, nursery: trio.Nursery) -> None:
        """Pings and closes in the nursery; never waits."""
        before, self._silences = self._silences, {}
        for connection in adapter.connections_of(self._host):
            heard = adapter.heard_on(connection)
            silence = before.get(connection)
            if silence is None or silence.heard != heard:
                silence = _Silence(heard, self._looks(self._jitter(self._limits.ping_s)))
            else:
                silence.looks += 1
            self._silences[connection] = silence
            if silence.looks == self._looks(self._limits.silent_s):
                self._counters["connections closed as silent"] += 1
                nursery.start_soon(adapter.abort, connection)
            elif silence.looks >= silence.ping_after and not silence.pinged:
                silence.pinged = True
                self._counters["pings_sent"] += 1
                nursery.start_soon(adapter.ping, connection)

    def _looks(self, seconds: float) -> int:
        return max(1, round(seconds / self._limits.look_s))
