"""What a run is about: the same for all who follow it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Digest
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain
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
