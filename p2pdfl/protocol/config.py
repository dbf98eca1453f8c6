"""What a run is about, the same for all who follow it, and what one member brings to it: its signing key."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Address, Digest
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain, Signer
from p2pdfl.protocol.sharing import Sharing


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    task: Task
    task_id: Digest
    domain: Domain
    sharing: Sharing = pvss

    @property
    def history_rounds(self) -> int:
        """Closed rounds kept in memory: what an audit, its verdict and a resync can still ask about."""
        return max(params.HISTORY_ROUNDS, self.task.verdict_rounds + params.AUDIT_LAG + 2)


@dataclass(frozen=True, kw_only=True)
class Setup(RunConfig):
    signer: Signer

    @property
    def address(self) -> Address:
        return self.signer.address
