"""Bugs of the node planted on purpose, to show that the search finds such.  They patch; the node has no hooks for them.

shown     a signature is shown to others before it is synced
reorg     an anchor that a reorganization has dropped is never sent again
memory    a question about a closed round is answered from memory only
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from p2pdfl.base.types import Round
from p2pdfl.node.chain_outbox import ChainOutbox, Duty, Standing
from p2pdfl.node.resync import Resync, Turn
from p2pdfl.sim.mutants import NodePlant


@contextmanager
def planted(plant: NodePlant) -> Iterator[None]:
    owner, name, mutant = _PATCHES[plant]
    before = getattr(owner, name)
    setattr(owner, name, mutant(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def _shown(looking: object) -> Callable[[Turn], Any]:
    @asynccontextmanager
    async def look_at_once(turn: Turn) -> AsyncIterator[None]:
        yield

    return look_at_once


def _reorg(standing: Callable[[ChainOutbox, Duty], Standing]) -> Callable[[ChainOutbox, Duty], Standing]:
    def trust_the_newest_block(outbox: ChainOutbox, duty: Duty) -> Standing:
        found = standing(outbox, duty)
        return Standing.CONFIRMED if found is Standing.MINED else found

    return trust_the_newest_block


def _memory(answer: Callable[[Resync, bytes, bytes], Any]) -> Callable[[Resync, bytes, bytes], Any]:
    async def answer_from_memory(resync: Resync, peer: bytes, data: bytes) -> bytes:
        before, resync.open_round = resync.open_round, _no_round_is_closed
        try:
            return bytes(await answer(resync, peer, data))
        finally:
            resync.open_round = before

    return answer_from_memory


def _no_round_is_closed() -> Round:
    return 0


_PATCHES: dict[NodePlant, tuple[Any, str, Callable[[Any], Any]]] = {
    "shown": (Turn, "looking", _shown),
    "reorg": (ChainOutbox, "_standing", _reorg),
    "memory": (Resync, "answer", _memory),
}
