"""What a member asks of the chain and owes it, beside the rounds (DESIGN 3.8, 7).

A round never waits for any of this.  A chain that is out of reach, or answers nonsense, is asked again, with growing
pauses; a chain that hangs holds up a few threads of its own and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import TypeVar

import trio

from p2pdfl.base import params
from p2pdfl.base.types import Address, Digest
from p2pdfl.chain.rpc import ChainError, ChainUnreachable
from p2pdfl.chain.sender import Receipt
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.node.event_log import EventLog
from p2pdfl.node.ports import Chain, Workers
from p2pdfl.protocol.events import ChainSeen, SubmitAnchor, SubmitEquivocation, SubmitVerdict
from p2pdfl.protocol.evidence_pool import EVIDENCE_NAMES

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Asks the contract to let this member go."""

    delay_ms: int = 0


Duty = SubmitAnchor | SubmitVerdict | SubmitEquivocation | Leave


class Standing(Enum):
    """Of a duty."""

    BLOCKED = auto()
    """Something else has to be on chain before."""
    READY = auto()
    MINED = auto()
    """And a reorganization may still drop it."""
    CONFIRMED = auto()


class _Turn:
    """When it is this member that sends, from now: later by the time in which nobody could."""

    def __init__(self, delay_s: float) -> None:
        self._at_s = trio.current_time() + delay_s
        self._held_since_s: float | None = None

    def hold(self, since_s: float) -> None:
        if self._held_since_s is None:
            self._held_since_s = since_s

    def has_come(self) -> bool:
        """Asked when it can be sent."""
        now_s = trio.current_time()
        if self._held_since_s is not None:
            self._at_s += now_s - self._held_since_s
            self._held_since_s = None
        return now_s >= self._at_s


@dataclass(kw_only=True)
class ChainOutbox:
    chain: Chain
    workers: Workers
    event_log: EventLog

    _owed: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)
    _threads: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(params.CHAIN_THREADS_MAX)  # not those that training waits for
    )
    _reading: set[Digest | None] = field(default_factory=set)

    def take(self, duty: Duty, nursery: trio.Nursery) -> None:
        self._owed += 1
        nursery.start_soon(self._do, duty)

    def leave(self, nursery: trio.Nursery) -> None:
        """Out of the members from the next list on; the deposit stays until the contract's cooldown is over."""
        self.take(Leave(), nursery)

    async def wait_until_done(self, patience_s: float) -> None:
        """Until all that this member owes is on chain, confirmed or not; tells if that takes longer."""
        with trio.move_on_after(patience_s):
            while self._owed:
                await self._changed.wait()
        if self._owed:
            self._tell_trouble("finishing", f"{self._owed} transactions owed; a restart tries again")

    async def read_registry(self, block: Digest | None = None) -> list[ChainSeen]:
        """The registry as of the newest confirmed block and, if that is confirmed, of the block asked for.

        Nothing if the chain cannot say, or while the same question is open.
        """
        if block in self._reading:
            return []
        self._reading.add(block)
        try:
            return await self._ask(partial(self._read, block))
        except ChainError as error:
            self._tell_trouble("reading the registry", error)
            return []
        finally:
            self._reading.discard(block)

    def _read(self, asked: Digest | None) -> list[ChainSeen]:
        newest = self.chain.confirmed_block()
        blocks = {newest}
        found = None if asked is None else self.chain.block_of(asked)
        if found is not None and found.number <= newest.number:
            blocks.add(found)
        return [
            ChainSeen(number=block.number, block=block.hash, registrations=tuple(self.chain.registrations(block.hash)))
            for block in sorted(blocks, reverse=True)
        ]

    async def _do(self, duty: Duty) -> None:
        """When this member's turn comes, and unless another one has done it; until that is confirmed, since a
        reorganization may undo it.

        Turns follow each other while it can be done: time in which the chain was out of reach, or an earlier anchor
        missing, does not count.  Else all members' turns would have come, and each send, and pay for, the same."""
        turn = _Turn(duty.delay_ms / 1000)
        is_owed = True
        pause_s = params.CHAIN_RETRY_S
        refusals = 0
        try:
            while True:
                asked_s = trio.current_time()
                try:
                    standing = await self._ask(partial(self._standing, duty))
                    if standing is Standing.CONFIRMED:
                        return
                    is_mined = standing is Standing.MINED
                    if is_mined or not is_owed:
                        is_owed = self._change_owed(is_owed, not is_mined)
                        turn = _Turn(duty.delay_ms / 1000)
                    if is_mined:
                        refusals = 0
                    if standing is Standing.READY and turn.has_come():
                        self._tell_sent(duty, await self._ask(partial(self._send, duty)))
                    elif standing is Standing.BLOCKED:
                        turn.hold(asked_s)
                    pause_s = params.CHAIN_RETRY_S
                    await trio.sleep(params.CHAIN_RETRY_S)
                    continue
                except ChainUnreachable as error:
                    turn.hold(asked_s)
                    self._tell_trouble(type(duty).__name__, error)
                except ChainError as error:
                    # another member may have come first between the question and the sending: the next look tells
                    refusals += 1
                    if refusals == params.CHAIN_REFUSALS_MAX:
                        return self._tell_trouble(type(duty).__name__, error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, params.CHAIN_RETRY_S_MAX)
        finally:
            self._change_owed(is_owed, False)

    def _change_owed(self, before: bool, after: bool) -> bool:
        self._owed += int(after) - int(before)
        self._changed.set()
        self._changed = trio.Event()
        return after

    async def _ask(self, work: Callable[[], T]) -> T:
        with self.event_log.waiting("chain"):
            return await self.workers.run(work, limiter=self._threads)

    def _standing(self, duty: Duty) -> Standing:
        if self._is_done(duty, self.chain.confirmed_block().hash):
            return Standing.CONFIRMED
        if self._is_done(duty, None):
            return Standing.MINED
        return Standing.READY if self._is_ready(duty) else Standing.BLOCKED

    def _is_done(self, duty: Duty, block: Digest | None) -> bool:
        """block: as of which, None for the newest."""
        chain = self.chain
        match duty:
            case SubmitAnchor():
                return chain.anchored_head(duty.head.epoch, block) is not None
            case SubmitVerdict():
                return chain.is_slashed_by_verdict(duty.proof, duty.members, block)
            case SubmitEquivocation():
                return chain.is_slashed_by_equivocation(duty.proof, duty.accused, block)
            case Leave():
                return any(entry.exiting for entry in chain.registrations(block) if entry.address == chain.address)

    def _is_ready(self, duty: Duty) -> bool:
        """The contract takes anchors in order, and an outage leaves several to send."""
        if isinstance(duty, SubmitAnchor) and duty.head.epoch > 0:
            return self.chain.anchored_head(duty.head.epoch - 1) is not None
        return True

    def _send(self, duty: Duty) -> Receipt:
        match duty:
            case SubmitAnchor():
                return self.chain.anchor(
                    head=duty.head,
                    certificate=duty.certificate,
                    members=duty.members,
                    next_members=duty.next_members,
                )
            case SubmitVerdict():
                return self.chain.slash_by_verdict(duty.proof, duty.members)
            case SubmitEquivocation():
                return self.chain.slash_by_equivocation(duty.proof, duty.accused)
            case Leave():
                return self.chain.request_exit()

    def _tell_sent(self, duty: Duty, receipt: Receipt) -> None:
        tx = "0x" + receipt.tx.hex()
        match duty:
            case SubmitAnchor():
                head = duty.head
                self.event_log.write(
                    "anchor",
                    {
                        "epoch": head.epoch,
                        "round": head.round,
                        "head": head_digest(head).hex(),
                        "tx": tx,
                        "gas": receipt.gas,
                    },
                )
            case SubmitVerdict():
                entry = duty.proof.entry
                loser = entry.accuser if EVIDENCE_NAMES[entry.outcome] == "false" else entry.accused
                self._tell_slash(duty.members[loser], EVIDENCE_NAMES[entry.outcome], tx)
            case SubmitEquivocation():
                self._tell_slash(duty.accused, "equivocation", tx)
            case Leave():
                self.event_log.write("leaving", {"tx": tx})

    def _tell_slash(self, member: Address, evidence: str, tx: str) -> None:
        self.event_log.write("slash", {"member": "0x" + member.hex(), "evidence": evidence, "tx": tx})

    def _tell_trouble(self, what: str, error: ChainError | str) -> None:
        self.event_log.write("chain_error", {"what": what, "error": " ".join(str(error).split())})
