"""Real namespaces with real links; every packet stays inside them."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from p2pdfl import cli
from p2pdfl.chain.devchain import devchain
from p2pdfl.chain.rpc import HttpRpc
from p2pdfl.scenario import namespaces, network, runner
from p2pdfl.scenario.namespaces import Unavailable
from p2pdfl.scenario.network import NetworkProcess
from p2pdfl.scenario.spec import Conditions
from scenario.test_runner import ENTRY, wait_for_end

REASON = network.missing(Conditions(rate_mbit=1, loss_percent=1, delay_ms=1))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.scenario,
    pytest.mark.skipif(REASON is not None, reason=f"needs a network of its own: {REASON}"),
]

ANSWER_S = 10.0
"""For what arrives in milliseconds."""


@contextmanager
def networked(count: int = 2, **conditions: float) -> Iterator[NetworkProcess]:
    process = NetworkProcess([f"peer{index}" for index in range(count)], Conditions(**conditions))
    try:
        try:
            process.wait_until_built()
        except Unavailable as error:
            pytest.skip(str(error))
        yield process
    finally:
        process.stop()


def socket_of(process: NetworkProcess, name: str) -> socket.socket:
    place = process.places[name]
    with namespaces.inside(place.namespace):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    opened.bind((place.address, 5000))
    opened.settimeout(ANSWER_S)
    _opened.append(opened)
    return opened


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def sockets_are_closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def send(process: NetworkProcess, data: bytes, sender: socket.socket, receiver: str) -> None:
    sender.sendto(data, (process.places[receiver].address, 5000))


@pytest.mark.parametrize("delay_ms", [0, 1], ids=["bridge", "delay"])
def test_every_peer_reaches_every_other_and_nothing_else(delay_ms: int) -> None:
    with networked(3, delay_ms=delay_ms) as process:
        sockets = {name: socket_of(process, name) for name in process.places}
        for sender, opened in sockets.items():
            for receiver, other in sockets.items():
                if sender != receiver:
                    send(process, sender.encode(), opened, receiver)
                    assert other.recvfrom(100) == (sender.encode(), (process.places[sender].address, 5000))
        with pytest.raises(OSError, match="unreachable"):
            sockets["peer0"].sendto(b"out", ("192.0.2.1", 9))


def test_a_packet_takes_the_delay_each_way() -> None:
    with networked(delay_ms=100) as process:
        here, there = socket_of(process, "peer0"), socket_of(process, "peer1")
        began_s = time.monotonic()
        send(process, b"ping", here, "peer1")
        there.recv(100)
        assert time.monotonic() - began_s >= 0.1
        send(process, b"pong", there, "peer0")
        here.recv(100)
        assert time.monotonic() - began_s >= 0.2


@pytest.mark.parametrize("delay_ms", [0, 1], ids=["bridge", "delay"])
def test_a_link_carries_no_more_than_its_rate(delay_ms: int) -> None:
    with networked(rate_mbit=2, delay_ms=delay_ms) as process:
        here, there = socket_of(process, "peer0"), socket_of(process, "peer1")
        began_s = time.monotonic()
        # 60 kB at 250 kB/s, of which 16 kB pass at once
        for _ in range(50):
            send(process, bytes(1200), here, "peer1")
        for _ in range(50):
            there.recv(2000)
        assert time.monotonic() - began_s >= 0.15


@pytest.mark.parametrize("delay_ms", [0, 1], ids=["bridge", "delay"])
def test_some_packets_are_lost_and_some_are_not(delay_ms: int) -> None:
    """Half of them: that all 200 come, or none, happens once in 10^60 runs."""
    with networked(loss_percent=50, delay_ms=delay_ms) as process:
        here, there = socket_of(process, "peer0"), socket_of(process, "peer1")
        for number in range(200):
            send(process, bytes([number]), here, "peer1")
        seen = {there.recv(100)[0]}
        there.settimeout(1.0)
        try:
            while True:
                seen.add(there.recv(100)[0])
        except TimeoutError:
            pass
        assert 0 < len(seen) < 200


@pytest.mark.parametrize("delay_ms", [0, 1], ids=["bridge", "delay"])
def test_a_cable_is_pulled_and_put_back(delay_ms: int) -> None:
    with networked(delay_ms=delay_ms) as process:
        here, there = socket_of(process, "peer0"), socket_of(process, "peer1")
        process.unplug("peer1")
        with pytest.raises(OSError, match="unreachable"):
            send(process, b"from the unplugged", there, "peer0")
        process.plug_in("peer1")
        send(process, b"again", there, "peer0")
        assert here.recv(100) == b"again"
        send(process, b"and back", here, "peer1")
        assert there.recv(100) == b"and back"


@pytest.mark.parametrize("delay_ms", [0, 1], ids=["bridge", "delay"])
def test_a_network_that_is_cut_carries_nothing_across_until_it_is_healed(delay_ms: int) -> None:
    with networked(4, delay_ms=delay_ms) as process:
        sockets = {name: socket_of(process, name) for name in process.places}
        process.cut(["peer2", "peer3"])
        for sender, receiver in (("peer0", "peer2"), ("peer3", "peer1")):
            send(process, b"across", sockets[sender], receiver)
        for sender, receiver in (("peer0", "peer1"), ("peer3", "peer2")):
            send(process, b"beside", sockets[sender], receiver)
            assert sockets[receiver].recv(100) == b"beside"
        process.heal()
        for sender, receiver in (("peer0", "peer2"), ("peer3", "peer1")):
            send(process, b"healed", sockets[sender], receiver)
            assert sockets[receiver].recv(100) == b"healed"


def test_the_chain_is_reached_at_the_same_url_inside_a_namespace() -> None:
    inside = namespaces.path_of(namespaces.create())
    namespaces.run(inside, ["ip", "link", "set", "lo", "up"])
    with devchain(block_s=0) as chain, namespaces.inside(inside), closing(HttpRpc(chain.url)) as rpc:
        assert not rpc.is_connected()
        chain.listen_here_too()
        assert rpc.is_connected()


def test_the_network_is_gone_with_its_process() -> None:
    with networked(rate_mbit=2, loss_percent=1, delay_ms=1) as process:
        paths = [Path(place.namespace) for place in process.places.values()]
        assert all(path.exists() for path in paths)
    assert not any(path.exists() for path in paths)


def test_the_callers_own_network_is_left_as_it_is() -> None:
    def devices() -> str:
        return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout

    before = devices()
    with networked(rate_mbit=2, loss_percent=1, delay_ms=1):
        assert devices() == before
    assert devices() == before


def test_a_run_in_a_network_starts_each_peer_in_its_namespace(tmp_path: Path) -> None:
    path = tmp_path / "stall.toml"
    path.write_text('name = "stall"\npeers = 2\nstall_s = 1.0\n[task]\ntraining_rounds = 3\n[network]\ndelay_ms = 1\n')
    summary = runner.run(path, tmp_path / "runs", peer_entry=ENTRY, console=Console(file=io.StringIO()))
    assert summary.conditions == Conditions(delay_ms=1)
    peers = [tmp_path / "runs/stall/peers" / name for name in ("peer0", "peer1")]
    for number, peer in enumerate(peers, 1):
        assert f"--listen\n/ip4/10.77.0.{number}/tcp/9000" in (peer / "arguments").read_text()
    spaces = {(peer / "network_namespace").read_text() for peer in peers}
    assert len(spaces) == 2
    assert os.readlink(namespaces.OWN) not in spaces
    assert all(wait_for_end(int((peer / "pid").read_text()), 0) for peer in peers)


def test_without_root_the_run_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["scenario", "bad_path", "--out", str(tmp_path)]) == cli.EXIT_SKIPPED
    assert "need root" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
