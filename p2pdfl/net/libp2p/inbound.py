"""Who may connect when many want to.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped every inbound connection holds a slot from its first packet on, so as many silent ones as there are slots
keep everybody else out; and a full node refuses the newcomer, whoever it is.  Here handshakes have a bound of their
own, and at either bound what makes room is the oldest of the address that has the most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import TypeVar

import trio
from libp2p.abc import IMuxedConn, INetConn, IRawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.resource_manager import group

T = TypeVar("T")


def repair(swarm: Swarm, is_protected: Callable[[ID], bool], limits: Limits, counters: Counter[str]) -> None:
    upgrade = swarm.upgrade_inbound_raw_conn
    handshakes: dict[trio.CancelScope, str] = {}
    # Handshakes hold a slot of the library too, and one that was cancelled holds it for a moment longer.
    swarm._inbound_limiter.total_tokens = limits.connections_max + 2 * limits.handshakes_max

    async def shake_hands(raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        if len(handshakes) >= limits.handshakes_max:
            oldest = _oldest_of_most(handshakes, handshakes.__getitem__)
            del handshakes[oldest]
            oldest.cancel()
            counters["refused: handshake, for a newer one"] += 1
        with trio.CancelScope() as scope:
            handshakes[scope] = place_of(raw_conn.get_remote_address())
            try:
                return await upgrade(raw_conn, maddr)
            finally:
                handshakes.pop(scope, None)
        raise SwarmException("took too long while others wait")

    async def upgrade_and_stay(raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        muxed = await shake_hands(raw_conn, maddr)
        if len(swarm.get_connections()) > limits.connections_max:
            counters["refused: connection, for a newer one"] += 1
            swarm.manager.run_task(swarm._close_connection_async, _dispensable(swarm, is_protected))
        # The task that accepted a connection holds its slot until the connection ends.  As shipped it holds it until
        # the Swarm ends, so a node accepts connections_max connections in its whole life.
        for connection in list(swarm.connections.get(muxed.peer_id, ())):
            if connection.muxed_conn is muxed:
                # not the connection's own event, which comes before the goodbye
                await muxed.event_closed.wait()  # type: ignore[attr-defined]
        raise SwarmException("inbound connection ended")  # the caller closes the socket and returns the slot

    swarm.upgrade_inbound_raw_conn = upgrade_and_stay  # type: ignore[method-assign]
    _forget_who_left_early(swarm)


def _forget_who_left_early(swarm: Swarm) -> None:
    """As shipped, a connection that ends while it is being added stays in the table for ever."""
    add = swarm.add_conn

    async def add_and_look(muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        connection = await add(muxed_conn, direction)
        if connection.is_closed:
            swarm.remove_conn(connection)
            raise SwarmException("connection ended while it was added")
        return connection

    swarm.add_conn = add_and_look  # type: ignore[method-assign]


def _dispensable(swarm: Swarm, is_protected: Callable[[ID], bool]) -> INetConn:
    everybody = sorted(swarm.get_connections(), key=lambda connection: connection._created_at)  # type: ignore[attr-defined]
    strangers = [one for one in everybody if not is_protected(one.muxed_conn.peer_id)]
    return _oldest_of_most(strangers or everybody, lambda one: place_of(one.muxed_conn.get_remote_address()))  # type: ignore[attr-defined]


def _oldest_of_most(oldest_first: Collection[T], address_of: Callable[[T], str]) -> T:
    counts = Counter(address_of(one) for one in oldest_first)
    return max(oldest_first, key=lambda one: counts[address_of(one)])


def place_of(remote: tuple[str, int] | None) -> str:
    """What one attacker is assumed to own; "" if it is not known."""
    return group(remote[0]) if remote is not None else ""
