"""What an operator may name, and what it is told about what it may not."""

from __future__ import annotations

import pytest
import trio
from multiaddr import Multiaddr

from p2pdfl.net import addresses

PEER = "12D3KooWBWrrD5VD6JxcU4rTxn2jUQQga6MW9G1NBubUtMAjYrxE"
RELAY = "12D3KooWSMDFN5DeFADosuV7UEwjHWQv1ioLEUqgzjGjxYQzxFX6"


@pytest.mark.parametrize(
    "text", ["/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/9000", "/ip6/::/tcp/9000", "/ip6/::1/tcp/0"]
)
def test_listen(text: str) -> None:
    assert str(addresses.listen_address(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1:9000", "is not a multiaddr"),
        ("/ip4/256.0.0.1/tcp/1", "is not a multiaddr"),
        ("/ip4/127.0.0.1/tcp/65536", "is not a multiaddr"),
        ("", "is not a"),
        ("/ip4/127.0.0.1", "is not an address with a TCP port"),
        ("/ip4/127.0.0.1/udp/9000/quic-v1", "is not an address with a TCP port"),
        ("/ip4/127.0.0.1/tcp/9000/ws", "is not an address with a TCP port"),
        (f"/ip4/127.0.0.1/tcp/9000/p2p/{PEER}", "is not an address with a TCP port"),
        ("/dns4/localhost/tcp/9000", "give the name to --announce"),
    ],
)
def test_listen__refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.listen_address(text)


@pytest.mark.parametrize(
    "text", ["/ip4/203.0.113.7/tcp/9000", "/ip6/2001:db8::7/tcp/1", "/dns/a.example/tcp/1", "/dns6/a.example/tcp/1"]
)
def test_announce(text: str) -> None:
    assert str(addresses.announced_address(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("peer.example.org", "is not a multiaddr"),
        ("/ip4/203.0.113.7/tcp/0", "announce a port"),
        ("/ip4/0.0.0.0/tcp/9000", "cannot be dialled"),
        ("/ip6/::/tcp/9000", "cannot be dialled"),
        (f"/ip4/203.0.113.7/tcp/9000/p2p/{PEER}", "leave it out"),
        ("/dnsaddr/peer.example.org", "not supported"),
        ("/ip4/203.0.113.7/udp/9000", "is not an address with a TCP port"),
    ],
)
def test_announce__refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.announced_address(text)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/203.0.113.7/tcp/9000/p2p/{PEER}",
        f"/dns4/peer.example.org/tcp/9000/p2p/{PEER}",
        f"/ip4/203.0.113.7/tcp/9000/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_bootstrap(text: str) -> None:
    info = addresses.bootstrap_peer(text)
    assert info.peer_id.to_base58() == PEER
    assert f"{info.addrs[0]}/p2p/{PEER}" == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/ip4/203.0.113.7/tcp/9000", "copy the address whole"),
        (f"/ip4/203.0.113.7/udp/9000/p2p/{PEER}", "is not a TCP address"),
        (f"/p2p/{PEER}", "is not a TCP address"),
        (f"/ip4/0.0.0.0/tcp/9000/p2p/{PEER}", "not where it is"),
        (f"/ip4/203.0.113.7/tcp/0/p2p/{PEER}", "not where it is"),
        (f"/dnsaddr/peer.example.org/p2p/{PEER}", "not supported"),
        (f"/ip4/203.0.113.7/tcp/9000/p2p-circuit/p2p/{PEER}", "is not a TCP address"),
        ("/ip4/203.0.113.7/tcp/9000/p2p/nonsense", "is not a"),
    ],
)
def test_bootstrap__refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.bootstrap_peer(text)


@pytest.mark.parametrize(
    ("seen", "ip"),
    [("::ffff:203.0.113.7", "203.0.113.7"), ("fe80::1%eth0", "fe80::1"), ("2001:DB8:0::7", "2001:db8::7")],
)
def test_one_address_has_one_form(seen: str, ip: str) -> None:
    assert addresses.plain_ip(seen) == ip
    assert addresses.ip_of(Multiaddr(f"/ip{6 if ':' in ip else 4}/{ip}/tcp/1")) == ip


@pytest.mark.net
async def test_a_name_is_what_the_machine_itself_takes_it_for() -> None:
    found = await addresses.resolve(Multiaddr(f"/dns4/localhost/tcp/9000/p2p/{PEER}"))
    assert [str(address) for address in found] == [f"/ip4/127.0.0.1/tcp/9000/p2p/{PEER}"]


@pytest.mark.net
async def test_names_are_looked_up_in_threads_of_their_own() -> None:
    """Else names that are never answered take those of the store and of training."""
    others = trio.to_thread.current_default_thread_limiter()
    for number in range(int(others.total_tokens)):
        others.acquire_on_behalf_of_nowait(number)
    with trio.fail_after(5):
        assert await addresses.resolve(Multiaddr("/dns4/localhost/tcp/9000"))


async def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(addresses.Unresolved, match=r"nowhere\.invalid: "):
        await addresses.resolve(Multiaddr("/dns4/nowhere.invalid/tcp/9000"))


async def test_a_name_that_python_cannot_look_up_has_no_address() -> None:
    """IDNA 2008, multiaddr's, takes a digit at the end of a right-to-left name; IDNA 2003, Python's, does not."""
    address = Multiaddr("/dns4/\u05d01.example/tcp/9000")
    assert addresses.is_dialable(address)
    with pytest.raises(addresses.Unresolved):
        await addresses.resolve(address)
