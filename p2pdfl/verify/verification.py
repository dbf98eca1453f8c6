"""All of it, in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2pdfl.base import params
from p2pdfl.base import task as task_file
from p2pdfl.base.task import Deployment, Task, TaskError
from p2pdfl.crypto.envelope import Domain
from p2pdfl.learning.learner import Learner
from p2pdfl.protocol.config import RunConfig
from p2pdfl.verify import registry
from p2pdfl.verify.files import BadFile, Transcript, Unusable, check_regular
from p2pdfl.verify.findings import Check, Findings, Report
from p2pdfl.verify.model import Model
from p2pdfl.verify.outcome import check_anchors, check_model, check_slashes
from p2pdfl.verify.registry import ChainExport
from p2pdfl.verify.replays import NO_REPLAYS, ReplayPlan, plan_replays
from p2pdfl.verify.rounds import Follower, Unsound

TASK_BYTES_MAX = 1 << 20
PER_ROUND = (
    Check.HEADS,
    Check.CERTIFICATES,
    Check.PROPOSALS,
    Check.COMMITS,
    Check.BEACONS,
    Check.ASSIGNMENTS,
    Check.CASES,
    Check.MEMBERS,
    Check.UPDATES,
    Check.STATES,
)
SELF_REPORTED = (
    "the chain's events are the word of whoever ran the chain; where it still runs, compare them with the contract"
)

OnRound = Callable[[int, int], None]
"""(rounds followed, of how many)"""


def verify(
    directory: Path,
    *,
    replays: int = 0,
    trust_code: bool = False,
    on_round: OnRound = lambda done, total: None,
) -> Report:
    """replays: how many sampled updates to train again.  trust_code: run the model and data that the task brings.

    Raises Unusable."""
    task, deployment = _load_task(directory, trust_code=trust_code)
    return _Verification(directory, task, deployment, replays, on_round).go()


def _load_task(directory: Path, *, trust_code: bool) -> tuple[Task, Deployment]:
    path = directory / "task.toml"
    try:
        check_regular(path, TASK_BYTES_MAX)
        file = task_file.load(path)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}; a finished run has one") from None
    except (BadFile, TaskError) as error:
        raise Unusable(str(error)) from None
    if file.chain is None or not file.task.is_measured:
        raise Unusable(f"{path}: the task was never published")
    for field, name in (("model", file.task.model), ("data", file.task.data)):
        # ATTACK: naming a function is calling it
        if ":" in name and not trust_code:
            raise Unusable(f"{path}: {field}: {name!r} would run code that the task brings; read it, then --trust-code")
    return file.task, file.chain


class _Verification:
    def __init__(self, directory: Path, task: Task, deployment: Deployment, replays: int, on_round: OnRound) -> None:
        self._directory, self._task, self._deployment = directory, task, deployment
        self._replays, self._on_round = replays, on_round
        self._findings = Findings()
        self._transcript = Transcript(directory / "transcript")
        self._rounds = 0
        """Followed to their end."""

    def go(self) -> Report:
        export = self._load_export()
        if export is not None and self._is_task_of_the_heads():
            self._follow(export)
        self._check_files()
        total = self._task.total_rounds
        if self._rounds < total:
            for check in PER_ROUND:
                self._findings.leave(check, f"rounds {self._rounds} to {total - 1}")
            for check in Check:
                if self._findings.is_untouched(check):
                    self._findings.leave(check, "not reached")
        return self._findings.report(rounds=self._rounds, rounds_of_task=total, caveats=(SELF_REPORTED,))

    def _load_export(self) -> ChainExport | None:
        path = self._directory / "chain.json"
        if not path.exists():
            raise Unusable(f"{path}: no such file; without the chain's events nobody knows who the members were")
        try:
            return registry.load(path, self._task.deposit_wei)
        except BadFile as error:
            self._findings.fail(Check.REGISTRY, str(error))
            return None

    def _is_task_of_the_heads(self) -> bool:
        """Told apart here, so that a changed task.toml does not show as everything being wrong."""
        try:
            named = self._transcript.index(0).head.task
        except BadFile as error:
            self._findings.fail(Check.FILES, str(error))
            return False
        return self._findings.ensure(
            Check.TASK,
            named == self._task.task_id(),
            f"task.toml: is task {self._task.task_id().hex()[:16]}, the heads are of task {named.hex()[:16]}",
        )

    def _follow(self, export: ChainExport) -> None:
        findings, task = self._findings, self._task
        config = RunConfig(
            task=task,
            task_id=task.task_id(),
            domain=Domain(chain_id=self._deployment.chain_id, contract=self._deployment.contract),
        )
        try:
            follower = Follower(config, self._transcript, export, findings)
        except Unsound:
            return
        model = self._model(config)
        try:
            for round in range(task.total_rounds):
                closed = follower.follow(round)
                if model is not None:
                    model.follow(closed, follower.epochs)
                self._rounds = round + 1
                self._on_round(self._rounds, task.total_rounds)
        except Unsound:
            pass
        is_complete = self._rounds == task.total_rounds
        check_anchors(export, follower.anchorable, task, findings, is_complete=is_complete)
        check_slashes(export, follower.bans, task, findings, is_complete=is_complete)
        if model is None:
            return
        model.conclude(follower.banned)
        if is_complete:
            check_model(self._directory, follower.state, model.state, model.learner, findings)

    def _model(self, config: RunConfig) -> Model | None:
        """None, and a failed check, if this machine cannot compute the task at all."""
        try:
            learner = Learner(self._task)
        except TaskError as error:
            self._findings.fail(Check.STATES, f"cannot be computed on this machine: {error}")
            return None
        return Model(
            learner=learner,
            task_id=config.task_id,
            transcript=self._transcript,
            findings=self._findings,
            plan=self._plan(learner),
            state=learner.initial_state(),
        )

    def _plan(self, learner: Learner) -> ReplayPlan:
        if self._replays == 0:
            self._findings.leave(Check.REPLAYS, "not asked for; --replay K trains K of them again")
            return NO_REPLAYS
        try:
            learner.check_reference()
        except TaskError as error:
            self._findings.leave(Check.REPLAYS, f"this machine computes otherwise: {error}")
            return NO_REPLAYS
        return plan_replays(self._transcript, self._task.total_rounds, self._replays)

    def _check_files(self) -> None:
        findings, transcript = self._findings, self._transcript
        for name in transcript.stray_rounds(self._task.total_rounds):
            findings.fail(Check.FILES, f"rounds/{name}: is no round of the task")
        unread = 0
        for name, problem in transcript.unread_blobs():
            unread += 1
            findings.ensure(Check.FILES, problem is None, f"blobs/{name}: {problem}")
        findings.confirm(Check.FILES, transcript.blobs_read)
        if unread and self._rounds == self._task.total_rounds:
            findings.remark(Check.FILES, f"{unread} blobs that no round needs")


assert set(PER_ROUND) <= set(Check)
assert params.AUDIT_LAG == 2, "beacons 0 and 1 are the ones that no dealing gives"
