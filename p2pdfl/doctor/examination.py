"""The whole examination, from this machine outwards."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from p2pdfl.base import workers
from p2pdfl.base.task import TaskFile
from p2pdfl.base.types import Registration
from p2pdfl.doctor import machine, others, registry
from p2pdfl.doctor.finding import Finding, failed, warning
from p2pdfl.net.addresses import announced_address, listen_address
from p2pdfl.net.host import Network, is_peer_id, open_network
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.peers.probe import Failure
from p2pdfl.net.peers.reachability import DIAL_BACK_PROTOCOL, Reachability, ask_about
from p2pdfl.net.requests import Refused
from p2pdfl.node import status_file

PROBE_S = 5.0
"""One address, from name to handshake."""
HEAR_S = 8.0
"""How long those who answer may take to name the others."""
NAMED_MAX = 64
"""Others who are tried when the registry does not say who they are."""
ASKED_MAX = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    home: Path | None = None
    task: Path | None = None
    bootstrap: Sequence[str] = ()
    listen: Sequence[str] = ()
    announce: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Peer:
    """What the home's address.json says of the peer, as far as it makes sense."""

    peer_id: bytes | None
    address: bytes | None
    addresses: list[str]
    listening: list[str]
    bootstrap: list[str]
    task: Path | None
    is_running: bool


async def examine(options: Options, tell: Callable[[Finding], None]) -> None:
    """tell: hears each finding as soon as it is there."""
    for finding in machine.installation():
        tell(finding)
    peer = _peer_of(options.home)
    if options.home is not None:
        for finding in machine.home(options.home):
            tell(finding)
    file: TaskFile | None = None
    registrations: Sequence[Registration] | None = None
    if (path := options.task or peer.task) is not None:
        file, finding = machine.task(path)
        tell(finding)
    if file is not None and file.chain is not None:
        seen = await workers.run(registry.look, file.chain, file.task, peer.address)
        registrations = seen.registrations
        for finding in seen.findings:
            tell(finding)
    if options.home is not None and options.home.is_dir():
        for finding in machine.running(options.home, _others(registrations, peer)):
            tell(finding)
    free: list[str] = []
    for text in options.listen or peer.listening:
        finding = await _listening(text, peer)
        if finding.text in ("free", "only this machine can dial it", "another port at each start"):
            free.append(text)
        tell(finding)
    announce = []
    for text in options.announce:
        try:
            announced_address(text)
            announce.append(text)
        except ValueError as error:
            tell(failed(f"announce {text}", str(error), "name what others should dial"))
    await _network(options, peer, file, registrations, free, announce, tell)


async def _listening(text: str, peer: _Peer) -> Finding:
    try:
        address = listen_address(text)
    except ValueError as error:
        return failed(f"listen {text}", str(error), "name an IP address of this machine and a TCP port")
    return await machine.listening(address, peer.peer_id, timeout_s=PROBE_S)


async def _network(
    options: Options,
    peer: _Peer,
    file: TaskFile | None,
    registrations: Sequence[Registration] | None,
    free: Sequence[str],
    announce: Sequence[str],
    tell: Callable[[Finding], None],
) -> None:
    usable: list[str] = []
    given = options.bootstrap or peer.bootstrap
    for text in given:
        seen = await others.bootstrap(text, peer.peer_id, timeout_s=PROBE_S)
        tell(seen.finding)
        if seen.usable:
            usable.append(text)
    if not given and not peer.is_running:
        tell(warning("bootstrap", "none named", "the first peer needs none, any other the address of one that runs"))
    if given and not usable:
        tell(failed("network", "no bootstrap address can be used", "one is enough: see above what to do"))
    # the peer itself knows others as well, and tells them to anyone
    sources = [*usable, *(peer.addresses if peer.is_running else [])]
    if not sources:
        return
    expected = [entry.peer_id for entry in registrations or () if not entry.exiting]
    topic = f"/p2pdfl/2/{file.task.task_id().hex()}" if file else "/p2pdfl/doctor"
    listen = [] if peer.is_running else free
    async with open_network(
        key_seed=secrets.token_bytes(32), listen=listen, announce=announce, bootstrap=sources, topic=topic
    ) as network:
        network.serve(DIAL_BACK_PROTOCOL, _answer_nothing, request_bytes_max=0)
        await _hear(network, {*expected} - {peer.peer_id})
        for text in usable:
            there = text.rpartition("/p2p/")[2].encode()
            if "/p2p-circuit" not in text:
                tell(await others.speaking(network, there, of_task=file is not None))
        ids = expected or [one for one in network.known() if one not in (peer.peer_id, network.peer_id)][:NAMED_MAX]
        for finding in await others.members(network, ids, peer.peer_id, timeout_s=PROBE_S):
            tell(finding)
        if peer.is_running or listen:
            for finding in await _reachable(network, options, peer):
                tell(finding)


def _others(registrations: Sequence[Registration] | None, peer: _Peer) -> int | None:
    if registrations is None:
        return None
    return sum(not entry.exiting and entry.peer_id != peer.peer_id for entry in registrations)


async def _answer_nothing(peer: bytes, data: bytes) -> bytes:
    """What a peer hears of its reachability must not be what the doctor said."""
    raise Refused("only asks")


async def _hear(network: Network, expected: set[bytes]) -> None:
    """Until all who are expected have been named, or there was time enough."""
    with trio.move_on_after(HEAR_S):
        await network.wait_connected(1)
        while not expected or not expected <= {*network.known()}:  # noqa: ASYNC110  nothing tells of a name heard
            await trio.sleep(0.1)


async def _reachable(network: Network, options: Options, peer: _Peer) -> list[Finding]:
    """Asked of others, about the peer where it runs, else about this doctor in its place."""
    asked = sorted(network.connected() - {peer.peer_id})[:ASKED_MAX]
    subject = peer.peer_id if peer.is_running and peer.peer_id else network.peer_id
    addresses = peer.addresses if peer.is_running else network.addresses
    direct = [text.rpartition("/p2p/")[0] for text in addresses if "/p2p-circuit" not in text]
    found = await ask_about(network, asked, subject, direct, limits=Limits())
    if found.asked:
        return others.reachability(found, is_now=True)
    if options.home is not None and (told := _told(status_file.last_event(options.home, "reachability"))) is not None:
        return others.reachability(told, is_now=False)
    return [
        warning(
            "reachable",
            "nobody could be asked: no other peer is connected, or they answer members only",
            "start the peer: it asks the members itself, and tells what they say",
        )
    ]


def _peer_of(home: Path | None) -> _Peer:
    facts = status_file.read_object(home / "address.json") if home is not None else {}
    peer_id, address, path = facts.get("peer_id"), facts.get("address"), facts.get("task")
    return _Peer(
        peer_id=peer_id.encode() if isinstance(peer_id, str) and is_peer_id(peer_id.encode()) else None,
        address=_address(address),
        addresses=_texts(facts.get("addresses")),
        listening=_texts(facts.get("listening")),
        bootstrap=_texts(facts.get("bootstrap")),
        task=Path(path) if isinstance(path, str) else None,
        is_running=home is not None and status_file.of_running(home) is not None,
    )


def _told(event: dict[str, Any]) -> Reachability | None:
    """The event log's line, back from its words."""
    if not event:
        return None
    by_words = {failure.words: failure for failure in Failure}
    failed_ones = []
    for text in _texts(event.get("failed")):
        address, _, words = text.rpartition(": ")
        if words in by_words:
            failed_ones.append((address, by_words[words]))
    return Reachability(
        reached=tuple(_texts(event.get("reached"))),
        failed=tuple(failed_ones),
        seen_as=tuple(_texts(event.get("seen_as"))),
        asked=1,
    )


def _address(text: object) -> bytes | None:
    try:
        found = bytes.fromhex(str(text).removeprefix("0x"))
    except ValueError:
        return None
    return found if len(found) == 20 else None


def _texts(value: object) -> list[str]:
    return [str(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []
