"""What a peer counts, for Prometheus: text over HTTP, asked for, never pushed.

Nothing is counted twice: a scrape reads the counters that the network and the event log keep anyway.  Served from the
peer's own trio loop, by a server that does no more than this needs: a scrape takes a millisecond, and whoever connects
gets one answer and one deadline.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from p2pdfl.node.event_log import EventLog, Value

REQUEST_BYTES_MAX = 16 << 10
ANSWER_S = 5.0
"""From a scrape's connection to the end of its answer."""
SCRAPES_AT_ONCE_MAX = 8
LABELS_MAX = 256
"""Values of one label; a reason beyond them counts as "other".  Reasons are fixed strings, so there are some 60."""

LABELLED = {"refused": "reason", "offence": "reason", "contained": "place"}
"""Counters named `<kind>: <what>`: a metric each, with this label."""

ALWAYS = (
    "bytes_sent",
    "bytes_received",
    "messages_sent",
    "messages_received",
    "copies_sent",
    "copies_received",
    "requests_sent",
    "requests_served",
    "peers_refused",
    "addresses_refused",
)
"""Shown as 0 before they happen; a rate over what is not there is no rate."""

PHASES = ("train", "commit", "reveal", "propose", "close")


class Metrics(Collector):
    def __init__(
        self,
        *,
        info: Mapping[str, str],
        counters: Counter[str],
        gauges: Callable[[], Mapping[str, int]],
        event_log: EventLog,
    ) -> None:
        """counters, gauges: the network's."""
        self._info = dict(info)
        self._counters = counters
        self._gauges = gauges
        self._event_log = event_log
        self._now: dict[str, int] = {}
        self._phase = ""
        self._timer_level = 0
        self._last_round: dict[str, float] = {}

    def hear(self, event: str, fields: Mapping[str, Value]) -> None:
        """The event log's lines: what round, view and phase this peer is in, and how the last round went."""
        if event == "phase":
            self._phase = str(fields["phase"])
            self._now = {name: int(str(fields[name])) for name in ("round", "view")}
        elif event == "timers":
            self._timer_level = int(str(fields["level"]))
        elif event == "round":
            numbers = {name: fields[name] for name in ("accuracy", "seconds", "updates", "commits")}
            # a peer that catches up measures no accuracy
            self._last_round = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("p2pdfl_peer", "Who this is.", value=self._info)
        yield from self._collect_network()
        for name, value in self._now.items():
            yield GaugeMetricFamily(f"p2pdfl_{name}", f"The {name} that this peer is in.", value=value)
        if self._phase:
            phase = GaugeMetricFamily("p2pdfl_phase", "1 for the phase that this peer is in.", labels=["phase"])
            for name in PHASES:
                phase.add_metric([name], float(name == self._phase))
            yield phase
        yield GaugeMetricFamily(
            "p2pdfl_timer_level",
            "Doublings of the first leader's timer: 0 on a network as fast as the task expects.",
            value=self._timer_level,
        )
        for name, number in self._last_round.items():
            yield GaugeMetricFamily(f"p2pdfl_last_round_{name}", f"Of the last closed round: {name}.", value=number)
        yield _labelled(
            "p2pdfl_protocol_refused", "Messages that the protocol did not take.", "reason", self._event_log.refused
        )
        seconds: dict[str, float] = {str(activity): count for activity, count in self._event_log.seconds.items()}
        yield _labelled("p2pdfl_seconds", "Time spent, by activity.", "activity", seconds)

    def _collect_network(self) -> Iterator[Metric]:
        plain = dict.fromkeys(ALWAYS, 0)
        kinds: dict[str, dict[str, int]] = {kind: {} for kind in LABELLED}
        for name, count in self._counters.items():
            kind, separator, what = name.partition(": ")
            if separator and kind in kinds:
                kinds[kind][what] = count
            else:
                plain[re.sub(r"\W", "_", name)] = count
        for kind, label in LABELLED.items():
            yield _labelled(f"p2pdfl_network_{kind}", f"Of the network, {kind}.", label, kinds[kind])
        for name in sorted(plain)[:LABELS_MAX]:
            yield CounterMetricFamily(f"p2pdfl_network_{name}", f"Of the network: {name}.", value=plain[name])
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"p2pdfl_network_{name}", f"Of the network, now: {name}.", value=value)


def _labelled(name: str, text: str, label: str, counts: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    shown = sorted(counts)[:LABELS_MAX]
    for value in shown:
        family.add_metric([value], counts[value])
    other = sum(counts[value] for value in counts.keys() - set(shown))
    if other:
        family.add_metric(["other"], other)
    return family


@asynccontextmanager
async def served(metrics: Metrics, host: str, port: int) -> AsyncIterator[int]:
    """Serves /metrics until the block ends; yields the port.  Raises OSError with the address if it can't listen."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error.strerror or error}") from error
    slots = trio.CapacityLimiter(SCRAPES_AT_ONCE_MAX)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                slots.acquire_nowait()
            except trio.WouldBlock:
                return
            try:
                with trio.move_on_after(ANSWER_S):
                    request = await _request_line(stream)
                    await stream.send_all(_response(request, registry))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # whoever asked has left
            finally:
                slots.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        try:
            yield int(listeners[0].socket.getsockname()[1])
        finally:
            nursery.cancel_scope.cancel()


async def _request_line(stream: trio.SocketStream) -> bytes:
    """Reads the head whole: who is answered and closed upon before may lose the answer."""
    head = bytearray()
    while b"\r\n\r\n" not in head and len(head) <= REQUEST_BYTES_MAX:
        data = await stream.receive_some()
        if not data:
            break
        head += data
    return bytes(head.partition(b"\r\n")[0])


def _response(request: bytes, registry: CollectorRegistry) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method != b"GET" or not rest:
        return _http("405 Method Not Allowed", "text/plain", b"GET /metrics\n")
    if path not in (b"/metrics", b"/"):
        return _http("404 Not Found", "text/plain", b"/metrics\n")
    return _http("200 OK", CONTENT_TYPE_LATEST, generate_latest(registry))


def _http(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
