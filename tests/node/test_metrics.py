"""What Prometheus gets to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from p2pdfl.node.event_log import EventLog
from p2pdfl.node.metrics import LABELS_MAX, REQUEST_BYTES_MAX, SCRAPES_AT_ONCE_MAX, Metrics, served

pytestmark = [pytest.mark.net]

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


class Scene:
    def __init__(self, event_log: EventLog) -> None:
        self.event_log = event_log
        self.counters: Counter[str] = Counter()
        self.gauges = {"peers": 3}
        self.metrics = Metrics(
            info={"name": "ada"}, counters=self.counters, gauges=lambda: self.gauges, event_log=event_log
        )
        self.port = 0

    async def ask(self, request: bytes = GET) -> bytes:
        with trio.fail_after(5):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(request)
                answer = b""
                with suppress(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        answer += data
                return answer

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        head, _, body = (await self.ask()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    with EventLog(tmp_path / "events.jsonl") as event_log:
        made = Scene(event_log)
        async with served(made.metrics, "127.0.0.1", 0) as made.port:
            yield made


def key(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_counters_gauges_and_the_protocol_are_all_there(scene: Scene) -> None:
    scene.counters.update({"bytes_sent": 7, "dials failed": 2, "refused: inbox full": 3, "contained: task": 1})
    scene.counters["offence: malformed gossip"] = 4
    scene.event_log.refused["seen before"] = 5
    scene.metrics.hear("phase", {"round": 6, "view": 1, "phase": "reveal"})
    scene.metrics.hear("timers", {"round": 6, "level": 2, "view_ms": 4000})
    scene.metrics.hear("round", {"accuracy": 0.5, "seconds": 1.5, "updates": 4, "commits": 8, "head": "00"})
    seen = await scene.samples()
    assert (
        seen.items()
        >= {
            key("p2pdfl_peer_info", name="ada"): 1,
            key("p2pdfl_network_bytes_sent_total"): 7,
            key("p2pdfl_network_dials_failed_total"): 2,
            key("p2pdfl_network_refused_total", reason="inbox full"): 3,
            key("p2pdfl_network_offence_total", reason="malformed gossip"): 4,
            key("p2pdfl_network_contained_total", place="task"): 1,
            key("p2pdfl_network_peers"): 3,
            key("p2pdfl_protocol_refused_total", reason="seen before"): 5,
            key("p2pdfl_round"): 6,
            key("p2pdfl_view"): 1,
            key("p2pdfl_timer_level"): 2,
            key("p2pdfl_phase", phase="reveal"): 1,
            key("p2pdfl_phase", phase="train"): 0,
            key("p2pdfl_last_round_accuracy"): 0.5,
            key("p2pdfl_seconds_total", activity="train"): 0,
        }.items()
    )


async def test_a_scrape_sees_what_has_changed_since(scene: Scene) -> None:
    for count in (1, 2):
        scene.counters["bytes_sent"] = count
        assert (await scene.samples())[key("p2pdfl_network_bytes_sent_total")] == count


async def test_a_label_has_only_so_many_values_and_the_rest_is_summed_up(scene: Scene) -> None:
    for number in range(LABELS_MAX + 5):
        scene.event_log.refused[f"reason {number:04}"] = 1
    seen = await scene.samples()
    refused = {labels for name, labels in seen if name == "p2pdfl_protocol_refused_total"}
    assert len(refused) == LABELS_MAX + 1
    assert seen[key("p2pdfl_protocol_refused_total", reason="other")] == 5


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /else HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"\xff\xfe\r\n\r\n", b"405"),
    ],
)
async def test_what_else_is_asked(scene: Scene, request_bytes: bytes, status: bytes) -> None:
    assert (await scene.ask(request_bytes)).split(b" ")[1] == status


async def test_a_request_without_end_gets_an_answer_and_costs_only_so_much(scene: Scene) -> None:
    assert (await scene.ask(b"GET /metrics HTTP/1.1\r\n" + b"x" * REQUEST_BYTES_MAX)).startswith(b"HTTP/1.1 200")


async def test_who_holds_connections_open_keeps_others_out_only_until_the_deadline(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pdfl.node.metrics.ANSWER_S", 0.1)
    held = [await trio.open_tcp_stream("127.0.0.1", scene.port) for _ in range(2 * SCRAPES_AT_ONCE_MAX)]
    with trio.fail_after(5):
        while not (await scene.ask()).startswith(b"HTTP/1.1 200"):
            pass
    for stream in held:
        await stream.aclose()


async def test_a_port_in_use_is_an_error_with_the_address(scene: Scene) -> None:
    with pytest.raises(OSError, match=rf"cannot serve metrics on 127\.0\.0\.1:{scene.port}: "):
        async with served(scene.metrics, "127.0.0.1", scene.port):
            pass


async def test_it_ends_with_its_block_though_somebody_is_connected(tmp_path: Path) -> None:
    @asynccontextmanager
    async def ended(made: Scene) -> AsyncIterator[Any]:
        with trio.fail_after(2):
            async with served(made.metrics, "127.0.0.1", 0) as port:
                yield port

    with EventLog(tmp_path / "events.jsonl") as event_log:
        async with ended(Scene(event_log)) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.aclose()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
