"""The addresses that an operator may name: where to listen, what others should dial, whom to start from.

/ip4/<IPv4>/tcp/<port>    /ip6/<IPv6>/tcp/<port>
/dns/<name>/tcp/<port>    /dns4, /dns6: its IPv4 or IPv6 addresses only      (not for listening)
<address>/p2p/<peer id>                                                      (bootstrap, as peers print it)
<address of a relay>/p2p/<relay's peer id>/p2p-circuit/p2p/<peer id>         (bootstrap, behind a relay)
"""

from __future__ import annotations

import ipaddress
import socket
from functools import partial

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2pdfl.base import workers

IP = ("ip4", "ip6")
NAMED = ("dns", "dns4", "dns6")
CIRCUIT = "/p2p-circuit"
RESOLVED_MAX = 8
"""Addresses of one name that are dialled."""
LOOKUPS_AT_ONCE = 8
"""In threads of their own: training and the store must not wait for a stranger's name servers."""
FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class Unresolved(OSError):
    """A name without an address, as far as this machine can find out."""


def listen_address(text: str) -> Multiaddr:
    """Raises ValueError with words for a person; so do the others."""
    address, protocols = _parsed(text, example="/ip4/0.0.0.0/tcp/9000 or /ip6/::/tcp/9000")
    if protocols[:1] == ["dns"] or protocols[:1] == ["dns4"] or protocols[:1] == ["dns6"]:
        raise ValueError(
            f"{text!r} names a host: listen on an IP address of this machine, as /ip4/0.0.0.0/tcp/9000, and give the "
            "name to --announce"
        )
    if protocols not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise ValueError(f"{text!r} is not an address with a TCP port, as /ip4/0.0.0.0/tcp/9000 or /ip6/::/tcp/9000")
    return address


def announced_address(text: str) -> Multiaddr:
    example = "/ip4/203.0.113.7/tcp/9000 or /dns4/peer.example.org/tcp/9000"
    address, protocols = _parsed(text, example=example)
    _refuse_dnsaddr(text, protocols)
    if "p2p" in protocols:
        raise ValueError(f"{text!r} has a /p2p/ part: leave it out, this peer's own id is added")
    if len(protocols) != 2 or protocols[0] not in (*IP, *NAMED) or protocols[1] != "tcp":
        raise ValueError(f"{text!r} is not an address with a TCP port, as {example}")
    if is_wildcard(address):
        raise ValueError(f"{text!r} cannot be dialled: announce an address of this machine, or of its router")
    if port_of(address) == 0:
        raise ValueError(f"{text!r} cannot be dialled: announce a port, the one that leads to this peer's --listen")
    return address


def bootstrap_peer(text: str) -> PeerInfo:
    example = "/ip4/203.0.113.7/tcp/9000/p2p/12D3KooW..."
    address, protocols = _parsed(text, example=example)
    _refuse_dnsaddr(text, protocols)
    if protocols[-1:] != ["p2p"]:
        raise ValueError(
            f"{text!r} does not end in /p2p/<peer id>: copy the address whole, as the other peer prints it"
        )
    direct = protocols[:3] if CIRCUIT[1:] in protocols else protocols
    circuit = protocols[3:] if CIRCUIT[1:] in protocols else ["p2p-circuit", "p2p"]
    if (
        len(direct) != 3
        or direct[0] not in (*IP, *NAMED)
        or direct[1:] != ["tcp", "p2p"]
        or circuit != ["p2p-circuit", "p2p"]
    ):
        raise ValueError(f"{text!r} is not a TCP address with a peer id, as {example}")
    if is_wildcard(address) or port_of(address) == 0:
        raise ValueError(f"{text!r} cannot be dialled: it says where a peer listens, not where it is")
    peer = str(address).rpartition("/p2p/")[2]
    try:
        return PeerInfo(ID.from_base58(peer), [Multiaddr(str(address).removesuffix(f"/p2p/{peer}"))])
    except ValueError as error:
        raise ValueError(f"{text!r} does not end in a peer id: {error}") from error


def relay_peer(text: str) -> PeerInfo:
    """A relay that this peer is to be reached through."""
    info = bootstrap_peer(text)
    if CIRCUIT in text:
        raise ValueError(f"{text!r} is behind a relay itself: name one that is reached directly")
    return info


def relay_of(text: str) -> str | None:
    """Whom an address leads through."""
    relay, circuit, _ = text.partition(CIRCUIT)
    return relay if circuit else None


def is_dialable(address: Multiaddr) -> bool:
    """Whether it has a form that this project dials.  Of what a peer names as its addresses anything may be true: that
    they are no multiaddrs (their bytes are not looked at before they become text), that their text says something
    else, that they are for other transports."""
    try:
        protocols = [protocol.name for protocol in address.protocols()]
        if Multiaddr(str(address)).to_bytes() != address.to_bytes():
            return False
    except Exception:  # noqa: BLE001 - multiaddr raises a dozen kinds
        return False
    if len(protocols) < 2 or protocols[0] not in (*IP, *NAMED) or protocols[1] != "tcp":
        return False
    relayed = ["p2p", "p2p-circuit"]
    return protocols[2:] in ([], ["p2p"], relayed, [*relayed, "p2p"])


def is_wildcard(address: Multiaddr) -> bool:
    return str(address).startswith(("/ip4/0.0.0.0/", "/ip6/::/"))


def is_circuit(address: Multiaddr) -> bool:
    return CIRCUIT in str(address)


def port_of(address: Multiaddr) -> int:
    return int(str(address.value_for_protocol("tcp")))


def ip_of(address: Multiaddr) -> str | None:
    """In the shortest form, None for a name."""
    kind, value = str(address).split("/")[1:3]
    return str(ipaddress.ip_address(value)) if kind in IP else None


def plain_ip(host: str) -> str:
    """What a socket calls its other end, comparable with `ip_of`: an IPv4 address is one also on an IPv6 socket."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("lookups")


def _lookups() -> trio.CapacityLimiter:
    """ATTACK: a name whose servers never answer holds its thread for a minute, whoever gave up waiting."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(trio.CapacityLimiter(LOOKUPS_AT_ONCE))
        return _limiter.get()


async def resolve(address: Multiaddr) -> list[Multiaddr]:
    """The address with its name replaced by each IP address that the machine's own resolver, with its hosts file, has
    for it.  Raises Unresolved."""
    _, kind, name, *rest = str(address).split("/")
    if kind not in NAMED:
        return [address]
    look_up = partial(socket.getaddrinfo, name, None, family=FAMILIES[kind], type=socket.SOCK_STREAM)
    try:
        found = await workers.run(look_up, limiter=_lookups())
    except (OSError, UnicodeError) as error:  # Python encodes names by IDNA 2003, which not all have a form in
        raise Unresolved(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))[:RESOLVED_MAX]
    tail = "/".join(rest)
    return [Multiaddr(f"/ip{6 if ':' in host else 4}/{host.partition('%')[0]}/{tail}") for host in hosts]


def _parsed(text: str, *, example: str) -> tuple[Multiaddr, list[str]]:
    try:  # multiaddr raises a dozen kinds
        address = Multiaddr(text)
        return address, [protocol.name for protocol in address.protocols()]
    except Exception as error:
        raise ValueError(f"{text!r} is not a multiaddr, as {example}: {error}") from error


def _refuse_dnsaddr(text: str, protocols: list[str]) -> None:
    if protocols[:1] == ["dnsaddr"]:
        raise ValueError(
            f"{text!r}: /dnsaddr is not supported; name the host with /dns4 or /dns6 and its /tcp/ port, or give the "
            "addresses that its TXT records list"
        )
