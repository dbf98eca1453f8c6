"""Behind real routers: network namespaces, each with a masquerading one in front (nftables).  Needs root.

open        203.0.113.1                                      reached by all
left        10.0.1.2, behind a router 203.0.113.2            reaches out only
right       10.0.2.2, behind a router 203.0.113.3            reaches out only
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROUTER = """
table ip nat {
  chain leaving {
    type nat hook postrouting priority 100;
    oifname "eth0" masquerade
  }
  chain arriving {
    type nat hook prerouting priority -100;
    FORWARDED
  }
}
table ip filter {
  chain passing {
    type filter hook forward priority 0; policy accept;
    iifname "eth0" ct state established,related accept
    iifname "eth0" ct status dnat accept
    iifname "eth0" drop
  }
  chain arriving {
    type filter hook input priority 0; policy accept;
    iifname "eth0" ct state established,related accept
    iifname "eth0" drop
  }
}
"""


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if missing := [tool for tool in ("ip", "nft") if shutil.which(tool) is None]:
        return f"needs {' and '.join(missing)}"
    probe = f"pnat{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return "this kernel gives no network namespaces"
    usable = subprocess.run(
        ["ip", "netns", "exec", probe, "nft", "-f", "-"],
        input=ROUTER.replace("FORWARDED", ""),
        text=True,
        capture_output=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return "this kernel has no NAT" if usable.returncode else None


REASON = why_not()
pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]


class Internet:
    def __init__(self) -> None:
        self._prefix = f"p{os.getpid() % 100_000}"
        self._spaces: list[str] = []

    def build(self) -> None:
        for name in ("road", "open", "router1", "router2", "left", "right"):
            self._ip("netns", "add", self.space(name))
            self._spaces.append(self.space(name))
            self._in(name, "link", "set", "lo", "up")
        self._in("road", "link", "add", "road", "type", "bridge")
        self._in("road", "link", "set", "road", "up")
        for name, address in (("open", 1), ("router1", 2), ("router2", 3)):
            self._join("road", name, "eth0")
            self._in("road", "link", "set", f"to-{name}", "master", "road")
            self._in(name, "addr", "add", f"203.0.113.{address}/24", "dev", "eth0")
        for router, name, number in (("router1", "left", 1), ("router2", "right", 2)):
            self._join(router, name, "eth0")
            self._in(router, "addr", "add", f"10.0.{number}.1/24", "dev", f"to-{name}")
            self._in(name, "addr", "add", f"10.0.{number}.2/24", "dev", "eth0")
            self._in(name, "route", "add", "default", "via", f"10.0.{number}.1")
            forward = subprocess.run(
                ["ip", "netns", "exec", self.space(router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
                check=False,
            )
            assert forward.returncode == 0
            self.route(router)

    def route(self, router: str, forwarded: str = "") -> None:
        rules = "flush ruleset\n" + ROUTER.replace("FORWARDED", forwarded)
        subprocess.run(
            ["ip", "netns", "exec", self.space(router), "nft", "-f", "-"], input=rules, text=True, check=True
        )

    def clear(self) -> None:
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], check=False)

    def space(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _join(self, upper: str, lower: str, device: str) -> None:
        """A cable: `to-<lower>` in one, `device` in the other."""
        cable = [f"to-{lower}", "netns", self.space(upper)]
        self._ip("link", "add", *cable, "type", "veth", "peer", "name", device, "netns", self.space(lower))
        self._in(upper, "link", "set", f"to-{lower}", "up")
        self._in(lower, "link", "set", device, "up")

    def _in(self, name: str, *arguments: str) -> None:
        self._ip("-n", self.space(name), *arguments)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    built = Internet()
    try:
        built.build()
        yield built
    finally:
        built.clear()


class NatPeer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        first = self.until("peer_id")
        self.peer_id: str = first["peer_id"]
        self.addresses: list[str] = first["addresses"]

    def until(self, key: str, value: object = None) -> dict[str, Any]:
        """The next that it says with this key and, for a list, this member."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            if key in said and (value is None or value in said[key]):
                return said
        raise AssertionError(f"it ended before it said {key} {value}")


@contextmanager
def peer(internet: Internet, name: str, *arguments: str) -> Iterator[NatPeer]:
    program = str(Path(__file__).with_name("nat_peer.py"))
    # -P: else its own folder comes first, in which libp2p is a folder of tests
    command = ["ip", "netns", "exec", internet.space(name), sys.executable, "-P", program]
    process = subprocess.Popen(
        ["timeout", "60", *command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield NatPeer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


OPEN = ["--listen", "/ip4/203.0.113.1/tcp/9000"]


def test_a_peer_behind_a_router_is_told_so_and_what_to_do(internet: Internet) -> None:
    with (
        peer(internet, "open", *OPEN) as bootstrap,
        peer(internet, "left", "--listen", "/ip4/0.0.0.0/tcp/9000", "--bootstrap", bootstrap.addresses[0]) as left,
    ):
        told = left.until("reached")
        assert told["reached"] == []
        assert told["seen_as"] == ["203.0.113.2"]
        assert "--announce /ip4/203.0.113.2/tcp/<that port>" in " ".join(told["words"])
        assert bootstrap.until("reached")["reached"] == ["/ip4/203.0.113.1/tcp/9000"]


def test_an_announced_port_that_the_router_drops_and_one_that_it_forwards(internet: Internet) -> None:
    announced = "/ip4/203.0.113.2/tcp/9100"
    behind = ["--listen", "/ip4/0.0.0.0/tcp/9000", "--announce", announced]
    with peer(internet, "open", *OPEN) as bootstrap:
        with peer(internet, "left", *behind, "--bootstrap", bootstrap.addresses[0]) as left:
            told = left.until("reached")
            assert told["failed"] == [f"{announced}: timed out"]
            assert "firewall" in " ".join(told["words"])
        internet.route("router1", 'iifname "eth0" tcp dport 9100 dnat to 10.0.1.2:9000')
        try:
            with (
                peer(internet, "left", *behind, "--bootstrap", bootstrap.addresses[0]) as left,
                peer(internet, "right", "--listen", "/ip4/0.0.0.0/tcp/9000", "--bootstrap", left.addresses[0]) as right,
            ):
                assert left.until("reached")["reached"] == [announced]
                right.until("connected", left.peer_id)
        finally:
            internet.route("router1")


def test_two_behind_routers_meet_through_one_that_relays(internet: Internet) -> None:
    with peer(internet, "open", *OPEN, "--relay") as relay:
        hidden = ["--listen", "/ip4/0.0.0.0/tcp/9000", "--via", relay.addresses[0]]
        with peer(internet, "left", *hidden) as left, peer(internet, "right", *hidden) as right:
            left.until("connected", right.peer_id)
            right.until("connected", left.peer_id)


def test_two_behind_routers_do_not_meet_without_it(internet: Internet) -> None:
    """So that the test above shows what it says: each learns of the other and fails to dial it."""
    with peer(internet, "open", *OPEN) as bootstrap:
        hidden = ["--listen", "/ip4/0.0.0.0/tcp/9000", "--bootstrap", bootstrap.addresses[0]]
        with peer(internet, "left", *hidden) as left, peer(internet, "right", *hidden) as right:
            for one in (left, right):
                assert one.until("reached")["reached"] == []
                assert one.until("dials_failed")["still"] == [bootstrap.peer_id]
