"""How a peer gets on the chain's list: a deposit, and the wait until registration closes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest, Registration
from p2pdfl.chain.client import Block
from p2pdfl.chain.rpc import Refused, Reverted
from p2pdfl.chain.sender import Receipt
from p2pdfl.crypto import group
from p2pdfl.crypto.envelope import Signer, possession_digest
from p2pdfl.node.checkpoint_sync import patiently
from p2pdfl.node.home import Home, PeerError
from p2pdfl.node.ports import Chain, Workers
from p2pdfl.protocol.start import Genesis

T = TypeVar("T")

FUND_MARGIN_WEI = 10**18
"""Beyond the deposit, for gas."""


@dataclass(kw_only=True)
class Registrar:
    task: Task
    home: Home
    peer_id: bytes
    chain: Chain
    workers: Workers
    fund: Callable[[Address, int], None] | None
    """Sends that address so many wei, where money is free."""
    say: Callable[[str], None]

    async def register(self) -> None:
        """Raises PeerError."""
        if await self._patiently(self._is_registered):
            return
        try:
            await self._pay()
            await self._send()
        except (PeerError, Refused):
            # what a reorganization has dropped comes again by itself: then it is paid, and not taken a second time
            if await self._patiently(self._is_registered):
                return
            raise
        self.home.forget_loss()
        self.say(f"registered with a deposit of {self.task.deposit_wei / 10**18:g} ETH")

    async def closed(self) -> Genesis:
        """Waits for the members; once all are there, the lowest address closes the registration, or, if it does not,
        the next.  A reorganization may take back the one and the other: then all comes again."""
        chain, address = self.chain, self.home.keys.address
        seen = -1
        complete_s = None
        while True:
            block = await self._patiently(chain.start_block)
            if block is not None:
                genesis = await self._confirmed(block)
                if genesis is not None:
                    return genesis
                continue
            willing = await self._patiently(chain.candidates)
            if len(willing) != seen:
                seen = len(willing)
                self.say(f"{seen} of {self.task.members_min} members registered")
            if address not in willing:
                await self.register()
            if seen >= self.task.members_min and address in willing:
                complete_s = complete_s or trio.current_time()
                turn_s = willing.index(address) * params.ANCHOR_STAGGER_MS / 1000
                if trio.current_time() >= complete_s + turn_s:
                    # reverts if another member was faster, or one more has registered: look again
                    with suppress(Reverted, Refused):
                        await self._patiently(partial(chain.start, willing))
            await trio.sleep(params.CHAIN_POLL_MS / 1000)

    async def _confirmed(self, block: Block) -> Genesis | None:
        """None if it was not this block that closed the registration after all."""
        chain = self.chain
        confirmed = await self._patiently(chain.confirmed_block)
        while confirmed.number < block.number:
            await trio.sleep(params.CHAIN_POLL_MS / 1000)
            confirmed = await self._patiently(chain.confirmed_block)
        if await self._patiently(chain.start_block) != block:
            return None
        registrations = await self._patiently(partial(chain.registrations, block.hash))
        first = await self._patiently(partial(chain.started_with, block))
        self._check(registrations)
        if all(entry.address != self.home.keys.address for entry in first):
            self.say("registration had closed before: this peer follows, and takes part from the next epoch on")
            await self._confirm_late()
        return Genesis(
            closing_number=block.number,
            closing_block=block.hash,
            registrations=tuple(registrations),
            first=tuple(first),
        )

    async def _confirm_late(self) -> None:
        """Before that no member answers this peer, and a reorganization may drop it."""
        while True:
            confirmed = await self._patiently(self.chain.confirmed_block)
            if await self._patiently(partial(self._is_registered, confirmed.hash)):
                return
            await self.register()
            await trio.sleep(params.CHAIN_POLL_MS / 1000)

    async def _send(self) -> None:
        keys, peer_id = self.home.keys, self.peer_id
        digest = possession_digest(self.chain.domain, self.task.task_id(), keys.address, peer_id)
        possession = Signer(keys.pvss_secret).sign_digest(digest)

        def register() -> Receipt | None:
            # asked before each attempt: one whose answer was lost may have arrived
            return None if self._is_registered() else self.chain.register(peer_id, keys.pvss_key, possession)

        try:
            receipt = await self._patiently(register)
        except Reverted as error:
            raise PeerError(f"the contract refuses the registration: {error.reason}") from None
        self.home.event_log.write("registered", {} if receipt is None else {"tx": "0x" + receipt.tx.hex()})

    async def _pay(self) -> None:
        address = self.home.keys.address
        needed = self.task.deposit_wei + FUND_MARGIN_WEI
        balance = await self._patiently(lambda: self.chain.balance_of(address))
        if balance >= needed:
            return
        if self.fund is None:
            raise PeerError(
                f"0x{address.hex()} has {balance / 10**18:g} ETH and needs {needed / 10**18:g} for the deposit "
                "and gas: send it some, or add --fund on a development chain"
            )
        await self._patiently(partial(self.fund, address, needed - balance))

    def _is_registered(self, block: Digest | None = None) -> bool:
        return any(entry.address == self.home.keys.address for entry in self.chain.registrations(block))

    def _check(self, registrations: Sequence[Registration]) -> None:
        for entry in registrations:
            try:
                group.check(entry.pvss_key)
            except group.InvalidPoint as error:
                raise PeerError(
                    f"the chain lists a PVSS key that the contract refuses ({error}): is its node sane?"
                ) from None

    async def _patiently(self, work: Callable[[], T]) -> T:
        return await patiently(work, self.workers, self.home.event_log)
