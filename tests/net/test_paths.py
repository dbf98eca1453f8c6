"""IPv6, both families at once, and names."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from net.peers.test_discovery import free_port
from p2pdfl.net import Limits, Network, open_network
from p2pdfl.net.libp2p.inbound import place_of
from p2pdfl.net.peers.reachability import ask

from .loopback import TOPIC, assert_works, network, networks, seed

pytestmark = [pytest.mark.net, pytest.mark.slow]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@needs_ipv6
async def test_a_network_on_ipv6_alone() -> None:
    async with networks(3, listen="/ip6/::1/tcp/0") as (one, other, _):
        assert all(address.startswith("/ip6/::1/tcp/") for address in one.addresses)
        await assert_works(one, other)


@needs_ipv6
async def test_where_a_peer_on_ipv6_comes_from_is_known() -> None:
    """As shipped, of its address nothing is."""
    async with networks(2, listen="/ip6/::1/tcp/0") as (one, other):
        assert one.remote_ips(other.peer_id) == other.remote_ips(one.peer_id) == {"::1"}
        found = await ask(one, [other.peer_id], limits=Limits())
        assert found.reached == tuple(address.rpartition("/p2p/")[0] for address in one.addresses)
        assert found.seen_as == ("::1",)


@needs_ipv6
async def test_a_relay_on_ipv6() -> None:
    """Two that listen nowhere."""
    async with (
        network("relay", listen="/ip6/::1/tcp/0", relay=True) as relay,
        opened("one", [], via=relay.addresses) as one,
        opened("other", [], via=relay.addresses) as other,
    ):
        with trio.fail_after(20):
            await one.wait_connected(2)
            await other.wait_connected(2)
        assert relay.counters["circuits relayed"] >= 1


def test_who_has_an_ipv6_network_has_one_place() -> None:
    """Else its many addresses, each with one connection, would be spared when room is made."""
    assert place_of(("2001:db8::1", 4001)) == place_of(("2001:db8::2", 4001)) != place_of(("2001:db8:0:1::1", 4001))
    assert place_of(None) == ""


@needs_ipv6
async def test_who_has_both_families_connects_those_who_have_one() -> None:
    """The one with both is the others' bootstrap; they cannot dial each other."""
    async with (
        opened("both", ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"]) as both,
        network("old", [of_family(both, "ip4")]) as old,
        network("new", [of_family(both, "ip6")], listen="/ip6/::1/tcp/0") as new,
    ):
        with trio.fail_after(10):
            await both.wait_connected(2)
        await assert_works(old, both)
        await assert_works(new, both)


@needs_ipv6
async def test_wildcards_of_both_families_share_a_port() -> None:
    port = free_port()
    async with (
        opened("wild", [f"/ip6/::/tcp/{port}", f"/ip4/0.0.0.0/tcp/{port}"]) as wild,
        network("old", [f"/ip4/127.0.0.1/tcp/{port}/p2p/{wild.peer_id.decode()}"]) as old,
        network("new", [f"/ip6/::1/tcp/{port}/p2p/{wild.peer_id.decode()}"]) as new,
    ):
        assert not any("/::/" in address or "/0.0.0.0/" in address for address in wild.addresses)
        assert sorted(wild.listening) == [f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"]
        with trio.fail_after(10):
            await wild.wait_connected(2)
        await assert_works(old, wild)
        await assert_works(new, wild)


@needs_ipv6
async def test_an_ipv6_wildcard_leaves_the_ipv4_port_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with network("someone", listen=f"/ip6/::/tcp/{taken.getsockname()[1]}"):
            pass


@pytest.mark.parametrize("kind", ["dns", "dns4"])
async def test_a_bootstrap_with_a_name(kind: str) -> None:
    async with network("first") as first:
        named = first.addresses[0].replace("/ip4/127.0.0.1/", f"/{kind}/localhost/")
        async with network("second", [named]) as second:
            with trio.fail_after(5):
                await second.wait_connected(1)


async def test_who_announces_a_name_is_found_by_others() -> None:
    """The second learns it from the first, and the third from the second."""
    port = free_port()
    async with (
        network("first") as first,
        network(
            "named", first.addresses, listen=f"/ip4/127.0.0.1/tcp/{port}", announce=[f"/dns4/localhost/tcp/{port}"]
        ) as named,
        network("third", first.addresses) as third,
    ):
        with trio.fail_after(10):
            await third.wait_connected(2)
        assert named.peer_id in third.connected()


def opened(name: str, listen: list[str], via: Sequence[str] = ()) -> AbstractAsyncContextManager[Network]:
    return open_network(key_seed=seed(name), listen=listen, bootstrap=[], topic=TOPIC, via=via)


def of_family(peer: Network, family: str) -> str:
    return next(address for address in peer.addresses if address.startswith(f"/{family}/"))
