"""A member's own part of a round: its dealing, its share, its update, and the COMMIT of all three (DESIGN 3.2, 3.3)."""

from __future__ import annotations

from p2pdfl.base.types import ZERO_DIGEST, Commit, Dealing, Digest, Kind, MemberIndex, Share
from p2pdfl.protocol.assignment import batch_seed
from p2pdfl.protocol.beacon import dealing_context
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import Deal, Decrypt, Effect, Train
from p2pdfl.protocol.signing import Vote


class Contribution:
    def __init__(
        self, config: RunConfig, context: RoundContext, me: MemberIndex | None, now_ms: int, *, is_behind: bool
    ) -> None:
        """is_behind: the others closed the round before this one without this member.  So they may be further still,
        and its work may come too late: it begins once somebody who is asked does not know that this round is closed."""
        task = config.task
        self._begin_ms = now_ms + task.resync_ms if is_behind else now_ms
        self._train_deadline_ms = now_ms + task.commit_ms * 3 // 4
        self._config, self._context, self._me = config, context, me
        self._is_begun = False
        self._is_committed = False
        self._dealing: Dealing | None = None
        self._share: Share | None = None
        self._update: Digest | None = None

    def deadlines_ms(self) -> tuple[int, int]:
        return (self._begin_ms, self._train_deadline_ms)

    def is_due(self, now_ms: int) -> bool:
        return not self._is_begun and now_ms >= self._begin_ms

    def hasten(self, now_ms: int) -> None:
        """Somebody else is no further than this round."""
        self._begin_ms = min(self._begin_ms, now_ms)

    def begin(self) -> list[Effect]:
        self._is_begun = True
        context, task_id = self._context, self._config.task_id
        if self._me is None:
            return []
        address = context.epoch.addresses[self._me]
        effects: list[Effect] = [
            Deal(
                round=context.round,
                context=dealing_context(task_id, context.round, address, context.dealt_to),
                keys=context.dealt_to.keys,
                threshold=context.dealt_to.threshold,
            )
        ]
        if context.fixed is not None:
            effects.append(
                Decrypt(
                    round=context.round,
                    context=context.fixed.share_context(self._me),
                    summed=context.fixed.summed[self._me],
                )
            )
        if context.is_trainer(self._me):
            effects.append(
                Train(
                    round=context.round,
                    parent_state=context.parent_state,
                    seed=batch_seed(context.beacon, task_id, context.round, address),
                )
            )
        return effects

    def on_dealt(self, dealing: Dealing) -> None:
        self._dealing = dealing

    def on_decrypted(self, share: Share) -> None:
        self._share = share

    def on_trained(self, update: Digest) -> None:
        self._update = update

    def commit(self, now_ms: int) -> Vote | None:
        """Once, as soon as all is there, or without the update if training takes too long."""
        if self._me is None or self._is_committed or self._dealing is None:
            return None
        if self._context.fixed is not None and self._share is None:
            return None
        if self._update is None and self._context.is_trainer(self._me) and now_ms < self._train_deadline_ms:
            return None
        self._is_committed = True
        commit = Commit(
            parent=self._context.parent,
            update=self._update or ZERO_DIGEST,
            dealing=self._dealing,
            share=self._share,
        )
        return Vote(Kind.COMMIT, self._context.round, 0, commit)
