"""The path between peers where the kernel has no netem: IP packets are read from each peer's TUN device, kept for the
delay, and written to the device of the peer that they are for.

delay_s   one way, the same for every packet
rate      of the receiver's link; a packet waits behind the others for that peer, and is lost if too many do.
          The sender's link is the kernel's affair (tbf), and so are random losses (nftables).
"""

from __future__ import annotations

import heapq
import ipaddress
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PACKET_BYTES_MAX = 1 << 16
READS_PER_TURN_MAX = 64
"""Packets taken from one device before the others have their turn."""
PACKETS_MAX = 1 << 15
"""On their way at once, all together: 50 MB."""

IP_VERSION_4 = 4
IP_HEADER_BYTES = 20


@dataclass(slots=True, kw_only=True)
class DelayQueue:
    """Packets on their way, in the order in which they arrive."""

    delay_s: float
    bytes_per_s: float | None = None
    """Of each receiver's link; None: unlimited."""
    backlog_s: float = 0.0
    """A packet that would wait longer than this for its receiver's link is lost."""
    packets_max: int = PACKETS_MAX
    lost: Counter[str] = field(default_factory=Counter)
    _heap: list[tuple[float, int, str, bytes]] = field(default_factory=list)
    _sent: int = 0
    _busy_until_s: dict[str, float] = field(default_factory=dict)

    def send(self, packet: bytes, receiver: str, now_s: float) -> None:
        """now_s never goes back."""
        if len(self._heap) >= self.packets_max:
            self.lost["too many on their way"] += 1
            return
        arrives_s = now_s + self.delay_s
        if self.bytes_per_s is not None:
            starts_s = max(arrives_s, self._busy_until_s.get(receiver, 0.0))
            if starts_s - arrives_s > self.backlog_s:
                self.lost["receiver's link is full"] += 1
                return
            arrives_s = starts_s + len(packet) / self.bytes_per_s
            self._busy_until_s[receiver] = arrives_s
        # the count keeps those of one moment in order, and receivers and packets from being compared
        self._sent += 1
        heapq.heappush(self._heap, (arrives_s, self._sent, receiver, packet))

    def arrived(self, now_s: float) -> list[tuple[str, bytes]]:
        """Receiver and packet, taken out."""
        packets = []
        while self._heap and self._heap[0][0] <= now_s:
            _, _, receiver, packet = heapq.heappop(self._heap)
            packets.append((receiver, packet))
        return packets

    @property
    def next_s(self) -> float | None:
        """When the next packet arrives."""
        return self._heap[0][0] if self._heap else None


def destination(packet: bytes) -> str | None:
    """None for what is no IPv4 packet, such as a kernel's IPv6 router solicitation."""
    if len(packet) < IP_HEADER_BYTES or packet[0] >> 4 != IP_VERSION_4:
        return None
    return str(ipaddress.IPv4Address(packet[16:20]))


def relay(devices: Mapping[str, int], queue: DelayQueue, *, control: int, on_control: Callable[[], bool]) -> None:
    """Between devices by address, until on_control, called whenever control can be read, returns False."""
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    for device in devices.values():
        poll.register(device, select.EPOLLIN)
    while True:
        now_s = time.monotonic()
        timeout_s = -1 if queue.next_s is None else max(0.0, queue.next_s - now_s)
        ready = [descriptor for descriptor, _ in poll.poll(timeout_s)]
        if control in ready and not on_control():
            return
        for descriptor in ready:
            if descriptor != control:
                _take(descriptor, devices, queue)
        for receiver, packet in queue.arrived(time.monotonic()):
            try:
                os.write(devices[receiver], packet)
            except OSError:
                # the device is down: its cable is unplugged
                queue.lost["receiver is down"] += 1


def _take(device: int, devices: Mapping[str, int], queue: DelayQueue) -> None:
    for _ in range(READS_PER_TURN_MAX):
        try:
            packet = os.read(device, PACKET_BYTES_MAX)
        except OSError:
            # none left, or the device has gone down in between
            return
        receiver = destination(packet)
        if receiver is not None and receiver in devices:
            queue.send(packet, receiver, time.monotonic())
