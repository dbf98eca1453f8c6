"""What the network says: who answers at the bootstrap addresses, whom they know, who of the members can be dialled."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from p2pdfl.doctor.finding import Finding, failed, ok, warning
from p2pdfl.net.addresses import bootstrap_peer, ip_of, is_circuit, plain_ip, relay_of
from p2pdfl.net.host import Network, is_peer_id
from p2pdfl.net.peers.probe import Failure, Probe, probe
from p2pdfl.net.peers.reachability import ADDRESSES_MAX, DIAL_BACK_PROTOCOL, Reachability
from p2pdfl.node.resync import RESYNC_PROTOCOL

GOSSIP_PROTOCOL = "/meshsub/1.1.0"
PROBES_AT_ONCE_MAX = 8
ADVICE = {
    Failure.NO_NAME: "check the name's spelling, and whether this machine can look names up",
    Failure.REFUSED: "no peer listens there: is it running, and is that still its port?",
    Failure.TIMED_OUT: "a firewall drops it, or the machine is off: open the port there, and out of here",
    Failure.NO_ROUTE: "this machine has no way there: check its network, and IPv6 if the address is one",
    Failure.NO_PEER: "another program has that port: check the address with the peer's operator",
}


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    finding: Finding
    usable: bool


async def bootstrap(text: str, own_id: bytes | None, *, timeout_s: float) -> Bootstrap:
    subject = f"bootstrap {text}"
    try:
        info = bootstrap_peer(text)
    except ValueError as error:
        finding = failed(subject, str(error), "copy the address as the other peer prints it when it starts")
        return Bootstrap(finding=finding, usable=False)
    address, expected = info.addrs[0], info.peer_id.to_base58().encode()
    if is_circuit(address):
        expected = bootstrap_peer(str(address).partition("/p2p-circuit")[0]).peer_id.to_base58().encode()
    seen = await probe(address, timeout_s=timeout_s)
    if seen.failure != Failure.NONE:
        return Bootstrap(finding=failed(subject, seen.failure.words, ADVICE[seen.failure]), usable=False)
    if seen.peer_id != expected:
        finding = failed(
            subject,
            f"another peer answers there: {seen.peer_id.decode()}",
            "copy the address that it prints now: it has another key than when this one was printed, or another peer "
            "has taken its place",
        )
        return Bootstrap(finding=finding, usable=False)
    if expected == own_id:
        finding = warning(subject, "that is this peer itself", "name another peer; the first of all needs none")
        return Bootstrap(finding=finding, usable=False)
    return Bootstrap(finding=ok(subject, "answers, with the right key"), usable=True)


async def speaking(network: Network, peer: bytes, *, of_task: bool) -> Finding:
    """Whether a connected peer is one of this task."""
    subject = f"peer {peer.decode()}"
    spoken = [
        protocol
        for protocol in (GOSSIP_PROTOCOL, RESYNC_PROTOCOL, DIAL_BACK_PROTOCOL)
        if await network.speaks(peer, protocol)
    ]
    if GOSSIP_PROTOCOL not in spoken:
        return failed(subject, "is a libp2p peer, but none of p2pdfl", "name a peer of the task")
    if of_task and peer not in network.connected():
        return failed(
            subject, "does not follow this task", "compare the task files: one field that differs is another task"
        )
    text = "speaks p2pdfl and follows this task" if of_task else "speaks p2pdfl"
    return ok(subject, text if RESYNC_PROTOCOL in spoken else f"{text}; its rounds have not begun")


async def members(network: Network, ids: Sequence[bytes], own_id: bytes | None, *, timeout_s: float) -> list[Finding]:
    """Who of `ids` can be dialled from here."""
    known = network.known()
    others = [peer for peer in ids if peer != own_id]
    reached: list[bytes] = []
    missed: list[Finding] = []
    slots = trio.CapacityLimiter(PROBES_AT_ONCE_MAX)

    async def try_one(peer: bytes) -> None:
        async with slots:
            finding = await _member(network, peer, known.get(peer, ()), timeout_s=timeout_s)
        if finding is None:
            reached.append(peer)
        else:
            missed.append(finding)

    async with trio.open_nursery() as nursery:
        for peer in others:
            nursery.start_soon(try_one, peer)
    missed.sort(key=lambda finding: finding.subject)
    if not others:
        return [warning("members", "no other is known", "wait for others to register, or name a --bootstrap")]
    summary = f"{len(reached)} of {len(others)} others can be dialled from here"
    if not missed:
        return [ok("members", summary)]
    if reached:
        return [warning("members", summary, "one is enough to begin with; the others' reasons follow"), *missed]
    return [failed("members", summary, "see the reasons that follow"), *missed]


async def _member(network: Network, peer: bytes, addresses: Sequence[str], *, timeout_s: float) -> Finding | None:
    """None if it answers."""
    if not is_peer_id(peer):
        subject = f"member {peer!r}"
        return warning(subject, "what it registered as its peer id is none", "nobody can dial it; leave it")
    subject = f"member {peer.decode()}"
    own_part = f"/p2p/{peer.decode()}"
    direct = [Multiaddr(text.removesuffix(own_part)) for text in addresses if "/p2p-circuit" not in text]
    relays = [relay for text in addresses if (relay := relay_of(text))]
    if relays and not direct:
        with trio.move_on_after(timeout_s):
            while peer not in network.connected():  # noqa: ASYNC110  the network dials it by itself
                await trio.sleep(0.1)
            return None
        return warning(
            subject, f"only through the relay {relays[0]}, which does not lead to it now", "see whether that one runs"
        )
    if not direct:
        return warning(
            subject, "no address known", "it is not running, or has met none of those asked, or only dials itself"
        )
    tried: list[tuple[Multiaddr, Probe]] = []
    for address in direct[:ADDRESSES_MAX]:
        seen = await probe(address, timeout_s=timeout_s)
        if seen.failure == Failure.NONE and seen.peer_id == peer:
            return None
        tried.append((address, seen))
    # the most telling: an address that others can have at all before one of the member's own machine or router
    address, seen = min(tried, key=lambda entry: (_is_inside(entry[0]), entry[1].failure))
    if seen.failure == Failure.NONE:
        return warning(subject, f"{address}: another peer answers, {seen.peer_id.decode()}", "it has moved: wait")
    advice = ADVICE[seen.failure]
    if _is_inside(address):
        advice = "that address is good only where it is: its operator should --announce one that others can dial"
    return warning(subject, f"{address}: {seen.failure.words}", advice)


def reachability(found: Reachability, *, is_now: bool) -> list[Finding]:
    when = "" if is_now else "when the peer last asked: "
    if found.reached:
        return [ok("reachable", when + found.words()[0])]
    *said, advice = [line for line in found.words() if not line.startswith("meanwhile")]
    return [warning("reachable", when + "; ".join(said) or advice, advice)]


def _is_inside(address: Multiaddr) -> bool:
    ip = ip_of(address)
    return ip is not None and not ipaddress.ip_address(plain_ip(ip)).is_global
