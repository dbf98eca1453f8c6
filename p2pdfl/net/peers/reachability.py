"""Whether others can dial this peer: it asks a few that it is connected to, and they try.

Why not the library's AutoNAT: who asks is connected already, and py-libp2p 0.8.1 takes that connection for the
dial-back, so its answer is always yes.  Here a fresh connection is made, with a fresh key, up to the proof of the id.

ATTACK: who is asked must not become a tool against a third party.  It dials only where the asker itself comes from, by
IP address, a few ports at a time, and not often.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

import trio
from pydantic import Field

from p2pdfl.base.codec import Malformed, decode, encode
from p2pdfl.base.types import Entropy, Wire
from p2pdfl.net.addresses import Unresolved, announced_address, ip_of, resolve
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.peers.probe import Failure, probe
from p2pdfl.net.requests import Handle, Refused, Unreachable

DIAL_BACK_PROTOCOL = "/p2pdfl/dialback/1"
ADDRESSES_MAX = 8
ADDRESS_BYTES_MAX = 256
REQUEST_BYTES_MAX = REPLY_BYTES_MAX = 4096
ASKED_PEERS_MAX = 256
"""Whose last question is remembered."""

Text = Annotated[bytes, Field(max_length=ADDRESS_BYTES_MAX)]


class DialBackRequest(Wire):
    addresses: Annotated[tuple[Text, ...], Field(min_length=1, max_length=ADDRESSES_MAX)]
    """Multiaddrs as text, without a peer id."""


class DialBackResult(Wire):
    failure: Annotated[int, Field(ge=0, le=max(Failure))]
    peer_id: Text
    """Of who answered there."""


class DialBackReply(Wire):
    seen_as: Text
    """The IP address that the question came from."""
    results: Annotated[tuple[DialBackResult, ...], Field(max_length=ADDRESSES_MAX)]
    """In the request's order."""


class Asking(Protocol):
    """What of `Network` is used here."""

    peer_id: bytes
    limits: Limits

    @property
    def addresses(self) -> list[str]: ...
    def connected(self) -> set[bytes]: ...
    async def wait_connected(self, count: int) -> None: ...
    async def request(
        self, peer_id: bytes, protocol: str, request: bytes, *, reply_bytes_max: int, timeout_s: float
    ) -> bytes: ...
    def serve(self, protocol: str, handle: Handle, *, request_bytes_max: int) -> None: ...
    def remote_ips(self, peer_id: bytes) -> set[str]: ...


@dataclass(frozen=True, kw_only=True)
class Reachability:
    """What those who were asked found.  One that reached us proves that it can be done; the others may be lying."""

    reached: tuple[str, ...]
    failed: tuple[tuple[str, Failure], ...]
    """Address and why; nobody reached it."""
    seen_as: tuple[str, ...]
    asked: int

    @property
    def verdict(self) -> object:
        """Equal while there is nothing new to tell."""
        return self.reached, self.failed, self.seen_as

    def fields(self) -> dict[str, Sequence[str]]:
        """For the event log."""
        return {
            "reached": list(self.reached),
            "failed": [f"{address}: {failure.words}" for address, failure in self.failed],
            "seen_as": list(self.seen_as),
        }

    def words(self) -> list[str]:
        """For the operator, with what to do."""
        if self.reached:
            return [f"others reach this peer at {', '.join(self.reached)}"]
        lines = [f"others cannot reach this peer: {address}: {failure.words}" for address, failure in self.failed]
        tried = [failure for _, failure in self.failed if failure != Failure.NOT_TRIED]
        seen_as = ", ".join(self.seen_as)
        if not tried:
            lines.append(
                f"others see it come from {seen_as}, where none of these addresses is: forward a port of the router "
                f"there to this peer's --listen port, and give --announce {_example(self.seen_as)}"
            )
        elif Failure.TIMED_OUT in tried:
            lines.append("something on the way drops connections: open the port in the firewall of machine and router")
        elif Failure.NO_PEER in tried:
            lines.append("the port leads to another program: check the router's forwarding and --announce")
        elif Failure.REFUSED in tried:
            lines.append("nothing listens there: check that --announce names the port that leads to --listen")
        lines.append("meanwhile this peer takes part through the connections that it makes itself")
        return lines


async def ask(network: Asking, peers: Sequence[bytes], *, limits: Limits) -> Reachability:
    """Asks all at once; who does not answer is not counted."""
    return await ask_about(network, peers, network.peer_id, _without_peer(network.addresses), limits=limits)


async def ask_about(
    network: Asking, peers: Sequence[bytes], subject: bytes, addresses: Sequence[str], *, limits: Limits
) -> Reachability:
    """Whether `subject`, on this machine, answers at these addresses."""
    addresses = addresses[:ADDRESSES_MAX]
    replies: list[DialBackReply] = []

    async def ask_one(peer: bytes) -> None:
        request = encode(DialBackRequest(addresses=tuple(address.encode() for address in addresses)))
        try:
            data = await network.request(
                peer,
                DIAL_BACK_PROTOCOL,
                request,
                reply_bytes_max=REPLY_BYTES_MAX,
                timeout_s=2 * limits.dial_back_s,
            )
            reply = decode(DialBackReply, data, bytes_max=REPLY_BYTES_MAX)
        except (Unreachable, Refused, Malformed):
            return
        if len(reply.results) == len(addresses):
            replies.append(reply)

    if addresses:
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask_one, peer)
    return _judged(addresses, replies, subject)


class DialBack:
    """Answers others' questions."""

    def __init__(self, network: Asking, *, limits: Limits, counters: Counter[str]) -> None:
        self._network = network
        self._limits = limits
        self._counters = counters
        self._slots = trio.CapacityLimiter(limits.dial_backs_at_once_max)
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        network.serve(DIAL_BACK_PROTOCOL, self._answer, request_bytes_max=REQUEST_BYTES_MAX)

    async def _answer(self, peer: bytes, data: bytes) -> bytes:
        """Raises for what is not answered; that costs the peer a stream."""
        request = decode(DialBackRequest, data, bytes_max=REQUEST_BYTES_MAX)
        ips = self._network.remote_ips(peer)
        self._check_pace(peer)
        results: list[DialBackResult] = [_NOT_TRIED] * len(request.addresses)

        async def try_one(place: int, text: bytes) -> None:
            async with self._slots:
                results[place] = await self._try(text, ips)

        async with trio.open_nursery() as nursery:
            for place, text in enumerate(request.addresses):
                nursery.start_soon(try_one, place, text)
        return encode(DialBackReply(seen_as=min(ips, default="").encode(), results=tuple(results)))

    def _check_pace(self, peer: bytes) -> None:
        now = trio.current_time()
        if now < self._asked.get(peer, 0.0):
            self._counters["refused: dial-back too soon"] += 1
            raise Refused("too soon")
        self._asked[peer] = now + self._limits.dial_back_pause_s
        self._asked.move_to_end(peer)
        if len(self._asked) > ASKED_PEERS_MAX:
            self._asked.popitem(last=False)

    async def _try(self, text: bytes, ips: set[str]) -> DialBackResult:
        try:
            address = announced_address(text.decode("ascii"))
        except ValueError:
            return _NOT_TRIED
        with trio.move_on_after(self._limits.dial_back_s):
            try:
                candidates = [one for one in await resolve(address) if ip_of(one) in ips]
            except Unresolved:
                return DialBackResult(failure=Failure.NO_NAME, peer_id=b"")
            # ATTACK: any other address would be a third party's
            if not candidates:
                return _NOT_TRIED
            self._counters["dial-backs"] += 1
            found = await probe(candidates[0], timeout_s=self._limits.dial_back_s)
            return DialBackResult(failure=found.failure, peer_id=found.peer_id)
        return DialBackResult(failure=Failure.TIMED_OUT, peer_id=b"")


@asynccontextmanager
async def watched(network: Asking, tell: Callable[[Reachability], None], *, entropy: Entropy) -> AsyncIterator[None]:
    """Tells what others say of this peer's addresses, at first and whenever that changes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, network, tell, network.limits, entropy)
        yield
        nursery.cancel_scope.cancel()


async def _watch(network: Asking, tell: Callable[[Reachability], None], limits: Limits, entropy: Entropy) -> None:
    told: object = None
    pause_s = limits.dial_back_pause_s
    while True:
        await network.wait_connected(1)
        asked = _some(network.connected(), limits.dial_back_peers, entropy)
        found = await ask(network, asked, limits=limits)
        if found.asked and found.verdict != told:
            told = found.verdict
            tell(found)
        pause_s = min(2 * pause_s, limits.reachability_s)
        due = trio.current_time() + pause_s * (0.5 + entropy(1)[0] / 256)
        while (now := trio.current_time()) < due:
            await trio.sleep(min(limits.dial_back_pause_s, due - now))
            if network.connected().isdisjoint(asked):
                # all of them are gone: this machine may be somewhere else now
                pause_s = limits.dial_back_pause_s
                break


def _judged(addresses: Sequence[str], replies: Sequence[DialBackReply], subject: bytes) -> Reachability:
    reached, failed = [], []
    for place, address in enumerate(addresses):
        results = [reply.results[place] for reply in replies]
        if any(result.failure == Failure.NONE and result.peer_id == subject for result in results):
            reached.append(address)
        elif results:
            # who answers under another id is not this peer
            failures = [Failure(result.failure) or Failure.NO_PEER for result in results]
            failed.append((address, min(failures, key=lambda failure: (failure == Failure.NOT_TRIED, failure))))
    seen_as = sorted({text for reply in replies if (text := _ip_text(reply.seen_as))})
    return Reachability(reached=tuple(reached), failed=tuple(failed), seen_as=tuple(seen_as), asked=len(replies))


def _ip_text(claimed: bytes) -> str | None:
    """ATTACK: it is shown to a person."""
    try:
        return str(ipaddress.ip_address(claimed.decode("ascii")))
    except ValueError:
        return None


def _some(peers: Iterable[bytes], count: int, entropy: Entropy) -> list[bytes]:
    """Which ones, an attacker must not be able to tell."""
    return [peer for _, peer in sorted((entropy(8), peer) for peer in sorted(peers))][:count]


def _without_peer(addresses: Iterable[str]) -> list[str]:
    return [address.rpartition("/p2p/")[0] for address in addresses if "/p2p-circuit" not in address]


def _example(seen_as: Sequence[str]) -> str:
    ip = seen_as[0] if seen_as else "203.0.113.7"
    return f"/ip{6 if ':' in ip else 4}/{ip}/tcp/<that port>"


_NOT_TRIED = DialBackResult(failure=Failure.NOT_TRIED, peer_id=b"")
