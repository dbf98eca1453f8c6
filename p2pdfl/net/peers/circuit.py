"""Connections through a relay, on the wire Circuit Relay v2, in three roles.

`CircuitTransport`   dials <relay>/p2p-circuit/p2p/<peer>; everybody can
`Relaying`           passes bytes between a peer that dials and one that reserved; who was started with --relay
`Behind`             keeps reservations, so that others can dial through those relays; who was started with --via

The two ends talk Noise with each other through the relay: it sees who talks to whom and how much, not what.

Why not the library's own relay (0.8.1): it reserves under whatever peer id is asked for, so that one stranger takes all
places; the end of one circuit to a peer cuts that peer's other circuits; and an idle circuit never ends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from weakref import WeakValueDictionary

import trio
from libp2p.abc import IHost, IListener, INetStream, IRawConnection, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import THandler, TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pdfl.net.addresses import CIRCUIT, bootstrap_peer, is_circuit
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.limits.rates import PASS_ON, Buckets

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
PUMP_BYTES = 64 << 10
RETRY_S = 5.0
"""Between attempts at a reservation."""

OK = circuit_pb2.Status.OK
REFUSALS = {
    circuit_pb2.Status.RESERVATION_REFUSED: "the relay has no place left",
    circuit_pb2.Status.RESOURCE_LIMIT_EXCEEDED: "the relay passes on for too many already",
    circuit_pb2.Status.PERMISSION_DENIED: "the relay serves members only",
    circuit_pb2.Status.CONNECTION_FAILED: "the peer does not answer the relay",
    circuit_pb2.Status.NO_RESERVATION: "the peer is not at that relay",
}


class CircuitRefused(Exception):
    """The relay said no, or nothing that makes sense."""


class CircuitTransport(ITransport):
    host: IHost
    """Set once there is one."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        there, _, target = str(maddr).partition(f"{CIRCUIT}/p2p/")
        try:
            relay = bootstrap_peer(there)
            assert isinstance(self.host, BasicHost)
            # to connect to it is discovery's business; and an address must not send us to just any relay
            if not adapter.is_connected(self.host, relay.peer_id):
                raise CircuitRefused("not connected to the relay")
            stream = await adapter.open_stream(self.host, relay.peer_id, HOP)
            try:
                peer = circuit_pb2.PeerId(id=ID.from_base58(target).to_bytes())
                await _ask(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.CONNECT, peer=peer))
            except BaseException:
                await adapter.reset_quietly(stream)
                raise
        except Exception as error:
            raise OpenConnectionError(f"cannot connect to {maddr}: {error}") from error
        return RawConnection(stream, True, ConnectionType.RELAYED, [maddr])

    def can_dial(self, maddr: Multiaddr) -> bool:
        return is_circuit(maddr)

    def can_listen(self, maddr: Multiaddr) -> bool:
        return False

    def protocols(self) -> list[str]:
        return [CIRCUIT[1:]]

    def create_listener(self, handler_function: THandler) -> IListener:
        raise NotImplementedError("a peer behind a relay listens by `Behind`")


class Relaying:
    """Serves reservations and circuits, to those who are admitted and connected directly."""

    def __init__(
        self,
        host: Callable[[], BasicHost],
        is_admitted: Callable[[ID], bool],
        *,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        """host: the one at the moment, it may be replaced."""
        self._host = host
        self._is_admitted = is_admitted
        self._limits = limits
        self._counters = counters
        self._reserved: dict[ID, float] = {}
        """Peer -> until when, on trio's clock."""
        self._served: Counter[ID] = Counter()
        """Streams open of each peer."""
        self._circuits: Counter[ID] = Counter()
        """How many a peer is an end of."""
        self._pairs: Counter[tuple[ID, ID]] = Counter()
        """How many one peer has opened to another."""
        self._opened = Buckets[ID](limits.relay_connects, names_max=limits.tracked_peers_max)
        # Many who each keep below their rate must not make a flooder of the relay, at the one whom all call.
        self._called = Buckets[ID](limits.streams.times(PASS_ON), names_max=limits.tracked_peers_max)
        self._calls: WeakValueDictionary[ID, trio.CapacityLimiter] = WeakValueDictionary()

    async def serve(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        # ATTACK: streams that ask for nothing
        if self._served[peer] >= self._limits.relay_circuits_per_peer_max + self._limits.relay_asks_per_peer_max:
            self._counters["refused: too many relay requests of a peer"] += 1
            return await adapter.reset_quietly(stream)
        self._served[peer] += 1
        try:
            await self._serve(stream, peer)
        finally:
            self._served[peer] -= 1
            if not self._served[peer]:
                del self._served[peer]

    async def _serve(self, stream: INetStream, peer: ID) -> None:
        try:
            with trio.fail_after(self._limits.relay_ask_s):
                message = await read_delimited_msg(stream, circuit_pb2.HopMessage)
            if not self._is_admitted(peer) or not adapter.remote_ips(self._host(), peer):
                return await self._refuse(stream, circuit_pb2.Status.PERMISSION_DENIED)
            if message.type == circuit_pb2.HopMessage.RESERVE:
                # ATTACK: a reservation is for who asks, whatever peer the message names
                return await self._reserve(stream, peer)
            if message.type == circuit_pb2.HopMessage.CONNECT:
                return await self._connect(stream, peer, ID(message.peer.id))
            await self._refuse(stream, circuit_pb2.Status.UNEXPECTED_MESSAGE)
        except Exception:  # noqa: BLE001 - what the library makes of a hostile message costs its sender the stream
            self._counters["refused: relay request"] += 1
            await adapter.reset_quietly(stream)

    async def _reserve(self, stream: INetStream, peer: ID) -> None:
        now = trio.current_time()
        self._reserved = {
            other: until for other, until in self._reserved.items() if until > now and self._is_admitted(other)
        }
        if peer not in self._reserved and len(self._reserved) >= self._limits.relay_reservations_max:
            return await self._refuse(stream, circuit_pb2.Status.RESERVATION_REFUSED)
        self._reserved[peer] = now + self._limits.relay_reservation_s
        reply = circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.STATUS,
            status=OK,
            reservation=circuit_pb2.Reservation(
                # the protocol's own unit is the wall clock; nothing here depends on it
                expire=time.time_ns() // 10**9 + int(self._limits.relay_reservation_s)
            ),
            limit=self._limit(),
        )
        await self._answer(stream, reply)
        return None

    async def _connect(self, stream: INetStream, peer: ID, target: ID) -> None:
        host = self._host()
        if self._reserved.get(target, 0.0) < trio.current_time() or not adapter.is_connected(host, target):
            return await self._refuse(stream, circuit_pb2.Status.NO_RESERVATION)
        if not self._may_connect(peer, target):
            return await self._refuse(stream, circuit_pb2.Status.RESOURCE_LIMIT_EXCEEDED)
        self._circuits.update((peer, target))
        self._pairs[peer, target] += 1
        try:
            onward = await self._call(host, peer, target)
            if onward is None:
                return await self._refuse(stream, circuit_pb2.Status.CONNECTION_FAILED)
            try:
                reply = circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.STATUS, status=OK, limit=self._limit())
                await self._answer(stream, reply)
                self._counters["circuits relayed"] += 1
                await self._pass_on(stream, onward)
            finally:
                await adapter.reset_quietly(onward)
                await adapter.reset_quietly(stream)
        finally:
            self._circuits.subtract((peer, target))
            self._circuits = +self._circuits
            self._pairs[peer, target] -= 1
            self._pairs = +self._pairs
        return None

    def _may_connect(self, peer: ID, target: ID) -> bool:
        limits, now_s = self._limits, trio.current_time()
        return (
            self._circuits.total() < 2 * limits.relay_circuits_max
            and max(self._circuits[peer], self._circuits[target]) < limits.relay_circuits_per_peer_max
            # ATTACK: one who takes all circuits to a peer, so that nobody else gets one
            and self._pairs[peer, target] < limits.connections_per_peer_max
            and self._opened.take(peer, 1, now_s)
            and self._called.take(target, 1, now_s)
        )

    async def _call(self, host: BasicHost, peer: ID, target: ID) -> INetStream | None:
        """A stream to the target, which agrees to hear the peer on it.  Calls beyond half of what it lets one peer
        negotiate at once wait: the rest is for the relay's own."""
        at_once = self._calls.setdefault(
            target, trio.CapacityLimiter(max(1, self._limits.negotiations_per_peer_max // 2))
        )
        try:
            with trio.fail_after(self._limits.relay_ask_s):
                async with at_once:
                    return await self._agreed(host, peer, target)
        except Exception:  # noqa: BLE001 - the library's many ways to say that the target does not answer
            return None

    async def _agreed(self, host: BasicHost, peer: ID, target: ID) -> INetStream:
        onward = await adapter.open_stream(host, target, STOP)
        try:
            call = circuit_pb2.StopMessage(
                type=circuit_pb2.StopMessage.CONNECT,
                peer=circuit_pb2.PeerId(id=peer.to_bytes()),
                limit=self._limit(),
            )
            await write_delimited_msg(onward, call)
            answer = await read_delimited_msg(onward, circuit_pb2.StopMessage)
            if answer.type == circuit_pb2.StopMessage.STATUS and answer.status == OK:
                return onward
            raise CircuitRefused
        except BaseException:
            await adapter.reset_quietly(onward)
            raise

    async def _pass_on(self, one: INetStream, other: INetStream) -> None:
        """Until an end closes, the time is over or the bytes are used up."""
        left = self._limits.relay_circuit_bytes_max

        async def pump(source: INetStream, sink: INetStream) -> None:
            nonlocal left
            try:
                while data := await adapter.read_some(source, PUMP_BYTES):
                    left -= len(data)
                    if left < 0:
                        break
                    self._counters["bytes_relayed"] += len(data)
                    await sink.write(data)
            finally:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(self._limits.relay_circuit_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, one, other)
                nursery.start_soon(pump, other, one)

    def _limit(self) -> circuit_pb2.Limit:
        return circuit_pb2.Limit(duration=int(self._limits.relay_circuit_s), data=self._limits.relay_circuit_bytes_max)

    async def _refuse(self, stream: INetStream, status: circuit_pb2.Status.ValueType) -> None:
        self._counters["refused: relay request"] += 1
        await self._answer(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.STATUS, status=status))

    async def _answer(self, stream: INetStream, reply: circuit_pb2.HopMessage) -> None:
        with trio.fail_after(self._limits.relay_ask_s):
            await write_delimited_msg(stream, reply)
            if reply.status != OK or reply.HasField("reservation"):
                await stream.close()


class Behind:
    """Accepts circuits from the relays that this peer chose, and from no other."""

    def __init__(self, host: Callable[[], BasicHost], relays: Collection[str], *, limits: Limits) -> None:
        self._host = host
        self._relays = {info.peer_id: info.addrs for info in map(bootstrap_peer, relays)}
        self._limits = limits
        self._accepted = 0
        self.held: set[ID] = set()
        """Relays at which there is a reservation."""

    async def accept(self, stream: INetStream) -> None:
        relay = stream.muxed_conn.peer_id
        self._accepted += 1
        try:
            if relay not in self._relays or self._accepted > self._limits.relay_circuits_max:
                return
            with trio.fail_after(self._limits.relay_ask_s):
                call = await read_delimited_msg(stream, circuit_pb2.StopMessage)
                if call.type != circuit_pb2.StopMessage.CONNECT:
                    return
                answer = circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.STATUS, status=OK)
                await write_delimited_msg(stream, answer)
            # who it is, the handshake tells; what the relay says of it is a label
            address = Multiaddr(f"/p2p/{relay}{CIRCUIT}/p2p/{ID(call.peer.id)}")
            swarm = adapter.swarm_of(self._host())
            assert isinstance(swarm, Swarm)
            raw = RawConnection(stream, False, ConnectionType.RELAYED, [address])
            await swarm.upgrade_inbound_raw_conn(raw, address)  # returns when the connection has ended
        except Exception:  # noqa: BLE001 - whatever the other end makes the handshake raise, its circuit ends
            return
        finally:
            self._accepted -= 1
            await adapter.reset_quietly(stream)

    async def keep_reserved(self) -> None:
        async with trio.open_nursery() as nursery:
            for relay in self._relays:
                nursery.start_soon(self._keep_at, relay)

    async def _keep_at(self, relay: ID) -> None:
        """Discovery keeps the connection, and the relay forgets nobody who comes back in time."""
        while True:
            pause_s = RETRY_S
            connection = self._connection_to(relay)
            if connection is not None:
                try:
                    with trio.fail_after(self._limits.relay_ask_s):
                        stream = await adapter.open_stream(self._host(), relay, HOP)
                        try:
                            await _ask(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE))
                        finally:
                            await adapter.reset_quietly(stream)
                    self.held.add(relay)
                    pause_s = self._limits.relay_reservation_s / 2
                except Exception:  # noqa: BLE001 - refused, unreachable or nonsense: it is asked again
                    self.held.discard(relay)
            due = trio.current_time() + pause_s
            while trio.current_time() < due and (connection is None or self._connection_to(relay) is connection):
                if connection is None and self._connection_to(relay) is not None:
                    break
                await trio.sleep(0.25)

    def _connection_to(self, relay: ID) -> object | None:
        connections = adapter.swarm_of(self._host()).connections.get(relay, ())
        return next((connection for connection in connections if not connection.is_closed), None)


async def _ask(stream: INetStream, message: circuit_pb2.HopMessage) -> None:
    """Raises CircuitRefused unless the relay agrees."""
    await write_delimited_msg(stream, message)
    answer = await read_delimited_msg(stream, circuit_pb2.HopMessage)
    if answer.type != circuit_pb2.HopMessage.STATUS or answer.status != OK:
        raise CircuitRefused(REFUSALS.get(answer.status, "the relay refuses"))
