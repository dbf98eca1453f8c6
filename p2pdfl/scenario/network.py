"""Peers on a network of their own: each in a namespace, behind a link with a rate, losses and a delay.

The rate holds for each peer's link, in either direction (tc tbf).  The loss is drawn for each packet that a peer
receives (nftables).  The delay is that of each packet, one way: a ping takes twice as long.  It is netem's where the
kernel has that; where it has not, every packet goes through a process (`relay`).  Loopback is spared, and with it the
chain, which each peer reaches there: the conditions are those between peers.

    netem                                         relay
    peer's namespace: eth0  tbf, nft              peer's namespace: eth0, a TUN device  tbf, nft
         | veth                                        |
    switch's namespace: port, netem and tbf       relay: delay, rate towards the receiver
         | bridge with all other ports                 | descriptors of all other devices

All of it belongs to one process, and is gone when that has ended and the peers have.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from p2pdfl.scenario import namespaces
from p2pdfl.scenario.namespaces import CommandFailed, Unavailable
from p2pdfl.scenario.processes import ProcessFailed, live_as_long_as_the_runner, receive, stop
from p2pdfl.scenario.relay import DelayQueue, relay
from p2pdfl.scenario.spec import Conditions

PORT = 9000
"""Where every peer listens, on its own address."""
DEVICE = "eth0"
START_S = 60.0
ANSWER_S = 15.0

BACKLOG_S = 0.2
"""How long a packet may wait for a link at its rate before it is lost: a home router's buffer, about one round trip."""
BURST_BYTES_MIN = 16 << 10
BURST_S = 0.004
"""What tbf lets through at once: a timer tick's worth at 250 Hz."""
LOSS_DENOMINATOR = 100_000
QUEUE_PACKETS = 1_000
NETEM_PACKETS = 20_000
RELAY_PRIORITY = -10
"""Ahead of the peers, so that delays are those of the path and not of a busy machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer lives."""

    namespace: str
    address: str

    @property
    def listen(self) -> str:
        return f"/ip4/{self.address}/tcp/{PORT}"


_Order = tuple[str, list[str]]
"""What to do, and with whose places."""


@dataclass(frozen=True, slots=True)
class _Built:
    how: str
    places: dict[str, Place]
    serve: Callable[[Connection], None]
    """Until the connection ends."""


def missing(conditions: Conditions, *, is_cut: bool = False) -> str | None:
    """What this machine lacks for such a network, as far as it is seen without building it.  is_cut: by partitions."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = [("ip", "iproute2"), ("tc", "iproute2")]
    if conditions.loss_percent or is_cut:
        tools.append(("nft", "nftables"))
    lacking = [f"{tool} (package {package})" for tool, package in tools if shutil.which(tool) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


class NetworkProcess:
    """Builds the network, and holds it until it is stopped.  Use from one thread."""

    def __init__(self, names: Sequence[str], conditions: Conditions) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        arguments = (theirs, tuple(names), conditions)
        self._process = context.Process(name="network", target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.how = ""
        self.places: dict[str, Place] = {}

    def wait_until_built(self) -> None:
        """Raises Unavailable, ProcessFailed."""
        answer = receive(self._ours, "the network", START_S)
        if isinstance(answer, Unavailable):
            raise answer
        assert isinstance(answer, tuple)
        self.how, self.places = answer

    def unplug(self, name: str) -> None:
        """Takes the peer's interface down.  Raises ProcessFailed."""
        self._set(name, "down")

    def plug_in(self, name: str) -> None:
        self._set(name, "up")

    def cut(self, names: Collection[str]) -> None:
        """These and all others hear nothing of each other until `heal`.  Raises ProcessFailed."""
        self._order(("cut", sorted(names)), "cutting the network")

    def heal(self) -> None:
        self._order(("heal", []), "healing the network")

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self._ours.close()
        stop([self._process])

    def _set(self, name: str, state: str) -> None:
        self._order((state, [name]), f"setting {name}'s interface {state}")

    def _order(self, order: _Order, what: str) -> None:
        try:
            self._ours.send(order)
        except OSError:
            raise ProcessFailed("the network: its process has ended") from None
        receive(self._ours, what, ANSWER_S)


def _serve(control: Connection, names: Sequence[str], conditions: Conditions) -> None:
    live_as_long_as_the_runner()
    try:
        built = _build(names, conditions)
    except Unavailable as error:
        control.send(("ok", error))
        return
    except Exception:  # noqa: BLE001  the parent has to hear of whatever it was
        control.send(("failed", traceback.format_exc()))
        return
    control.send(("ok", (built.how, built.places)))
    built.serve(control)


def _build(names: Sequence[str], conditions: Conditions) -> _Built:
    reason = missing(conditions)
    if reason is not None:
        raise Unavailable(reason)
    places = {
        name: Place(namespaces.path_of(namespaces.create()), f"10.77.0.{number}")
        for number, name in enumerate(names, 1)
    }
    if conditions.delay_ms and not _has_netem():
        return _build_with_relay(places, conditions)
    return _build_with_bridge(places, conditions)


def _has_netem() -> bool:
    scratch = namespaces.create()
    try:
        namespaces.run(
            namespaces.path_of(scratch), ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        )
    except CommandFailed:
        return False
    finally:
        os.close(scratch)
    return True


def _build_with_relay(places: dict[str, Place], conditions: Conditions) -> _Built:
    devices = {}
    for place in places.values():
        devices[place.address] = namespaces.open_tun(place.namespace, DEVICE)
        _set_up(place, conditions)
    queue = DelayQueue(delay_s=conditions.delay_ms / 1000, bytes_per_s=_bytes_per_s(conditions), backlog_s=BACKLOG_S)

    def serve(control: Connection) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, RELAY_PRIORITY)
        relay(devices, queue, control=control.fileno(), on_control=lambda: _obey(control, places))

    return _Built("a relay in user space (no netem here)", places, serve)


def _build_with_bridge(places: dict[str, Place], conditions: Conditions) -> _Built:
    switch = namespaces.path_of(namespaces.create())
    bridge = ["link add bridge0 type bridge", "link set bridge0 up"]
    for number, place in enumerate(places.values()):
        bridge.append(f"link add port{number} type veth peer name {DEVICE} netns {place.namespace}")
        bridge.append(f"link set port{number} master bridge0 up")
    namespaces.run(switch, ["ip", "-batch", "-"], "\n".join(bridge))
    for place in places.values():
        _set_up(place, conditions)
    shaping = [line for number in range(len(places)) for line in _towards_a_peer(f"port{number}", conditions)]
    if shaping:
        namespaces.run(switch, ["tc", "-batch", "-"], "\n".join(shaping))

    def serve(control: Connection) -> None:
        while _obey(control, places):
            pass

    return _Built("a bridge with netem" if conditions.delay_ms else "a bridge", places, serve)


def _set_up(place: Place, conditions: Conditions) -> None:
    """The peer's own end, whatever its device is."""
    lines = [
        "link set lo up",
        f"address add {place.address}/24 dev {DEVICE}",
        f"link set {DEVICE} txqueuelen {QUEUE_PACKETS} up",
    ]
    namespaces.run(place.namespace, ["ip", "-batch", "-"], "\n".join(lines))
    if conditions.rate_mbit is not None:
        namespaces.run(
            place.namespace, ["tc", "-batch", "-"], f"qdisc add dev {DEVICE} root {_token_bucket(conditions.rate_mbit)}"
        )
    if conditions.loss_percent:
        # On the way in: what is dropped on the way out, the sender's TCP hears of, and it is no loss to it.
        share = round(conditions.loss_percent / 100 * LOSS_DENOMINATOR)
        rule = f'iifname "{DEVICE}" numgen random mod {LOSS_DENOMINATOR} < {share} drop'
        chain = f"type filter hook input priority 0\n{rule}\n"
        namespaces.run(place.namespace, ["nft", "-f", "-"], f"table ip scenario {{\nchain arriving {{\n{chain}}}\n}}\n")


def _towards_a_peer(port: str, conditions: Conditions) -> list[str]:
    lines, parent = [], "root"
    if conditions.delay_ms:
        lines.append(f"qdisc add dev {port} root handle 1: netem delay {conditions.delay_ms}ms limit {NETEM_PACKETS}")
        parent = "parent 1:1"
    if conditions.rate_mbit is not None:
        lines.append(f"qdisc add dev {port} {parent} {_token_bucket(conditions.rate_mbit)}")
    return lines


def _token_bucket(rate_mbit: float) -> str:
    burst_bytes = max(BURST_BYTES_MIN, round(rate_mbit * 1e6 / 8 * BURST_S))
    return f"tbf rate {round(rate_mbit * 1e6)}bit burst {burst_bytes} latency {round(BACKLOG_S * 1000)}ms"


def _bytes_per_s(conditions: Conditions) -> float | None:
    return None if conditions.rate_mbit is None else conditions.rate_mbit * 1e6 / 8


def _obey(control: Connection, places: dict[str, Place]) -> bool:
    """One order.  False when the runner is gone."""
    try:
        order, names = control.recv()
    except (EOFError, OSError):
        return False
    try:
        match order:
            case "cut":
                _cut(places, names)
            case "heal":
                for place in places.values():
                    namespaces.run(place.namespace, ["nft", "delete table ip partition"])
            case _:
                for name in names:
                    namespaces.run(places[name].namespace, ["ip", "link", "set", DEVICE, order])
    except CommandFailed as error:
        control.send(("failed", str(error)))
    else:
        control.send(("ok", None))
    return True


def _cut(places: dict[str, Place], names: Collection[str]) -> None:
    """Each side's packets are lost on their way into the other, as on a line that is dead in between."""
    for name, place in places.items():
        others = ", ".join(other.address for key, other in places.items() if (key in names) != (name in names))
        chain = f"type filter hook input priority -1\nip saddr {{ {others} }} drop\n"
        table = f"table ip partition {{\nchain arriving {{\n{chain}}}\n}}\n"
        namespaces.run(place.namespace, ["nft", "-f", "-"], table)
