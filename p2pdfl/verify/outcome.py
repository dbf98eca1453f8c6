"""What the run's other files make of it, against the heads: anchors and slashes on chain, the model, the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2pdfl.base.config_file import explain
from p2pdfl.base.task import HexDigest, Task
from p2pdfl.base.types import Address, Digest, Epoch, EquivocationEntry, Head, Round
from p2pdfl.chain.contract import EVIDENCE_EQUIVOCATION, Anchored, Slashed
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.learning.learner import Learner, State, StateError, load_state
from p2pdfl.verify.files import RECORD_BYTES_MAX, BadFile, check_regular, read_json
from p2pdfl.verify.findings import Check, Findings
from p2pdfl.verify.registry import ChainExport
from p2pdfl.verify.rounds import Ban

ACCURACY_TOLERANCE = {"exact": 1e-9, "tolerant": 0.005}
"""By profile.  Accuracies are ratios of small integers, and a summary has them as JSON's shortest form; in float32 an
example between two classes goes to either."""
_CHECKPOINT_SLACK_BYTES = 1 << 20
"""Of a safetensors file: names and shapes."""


def check_anchors(
    export: ChainExport, heads: Mapping[Epoch, Head], task: Task, findings: Findings, *, is_complete: bool
) -> None:
    """heads: the last one of each epoch that was followed to its end."""
    anchored: dict[int, Anchored] = {}
    for event in export.of(Anchored):
        if event.epoch in anchored:
            findings.fail(Check.ANCHORS, f"epoch {event.epoch}: anchored twice")
        anchored[event.epoch] = event
    for epoch, head in heads.items():
        found = anchored.pop(epoch, None)
        if found is None:
            findings.fail(Check.ANCHORS, f"epoch {epoch}: is not anchored")
            continue
        is_same = (found.head, found.round) == (head_digest(head), head.round)
        findings.ensure(Check.ANCHORS, is_same, f"epoch {epoch}: another head is anchored than the transcript's")
    if is_complete:
        for epoch in anchored:
            findings.fail(Check.ANCHORS, f"epoch {epoch}: is anchored, and the task has no such epoch")
    else:
        findings.leave(Check.ANCHORS, f"epochs {len(heads)} to {task.epoch_count - 1}: not followed to their end")


def check_slashes(
    export: ChainExport, bans: Sequence[Ban], task: Task, findings: Findings, *, is_complete: bool
) -> None:
    """Each ban is slashed, and nobody else."""
    due = {_slash_of(ban): ban for ban in bans}
    amounts: dict[Address, int] = {}
    for event in export.of(Slashed):
        ban = due.pop((event.address, event.evidence, event.round), None)
        who = f"0x{event.address.hex()} in block {event.block}"
        if ban is None:
            if is_complete:
                findings.fail(Check.SLASHES, f"{who}: slashed, and no head bans it for that")
            continue
        paid = amounts.get(event.address, 0)
        full = task.equivocation_slash_wei if ban.evidence == "equivocation" else task.verdict_slash_wei
        amounts[event.address] = paid + event.amount_wei
        is_right = event.amount_wei == min(full, task.deposit_wei - paid)
        findings.ensure(Check.SLASHES, is_right, f"{who}: slashed by another amount than the task says")
    for ban in due.values():
        findings.fail(
            Check.SLASHES,
            f"0x{ban.address.hex()}: banned in round {ban.head_round} ({ban.evidence}), and not slashed for it",
        )
    if not is_complete:
        findings.leave(Check.SLASHES, "bans of the rounds that were not followed")


def check_model(directory: Path, digest: Digest, state: State | None, learner: Learner, findings: Findings) -> None:
    """digest: of the last head's state; state: as aggregated here, if it came to that."""
    path = directory / "model.safetensors"
    try:
        check_regular(path, 16 * learner.dimension + _CHECKPOINT_SLACK_BYTES)
        saved = load_state(path, learner)
        is_right = saved.digest() == digest
        findings.ensure(Check.MODEL, is_right, "model.safetensors: holds another state than the last head's")
        state = saved if is_right else state
    except FileNotFoundError:
        findings.leave(Check.MODEL, "model.safetensors: there is none")
    except (BadFile, StateError, OSError) as error:
        findings.fail(Check.MODEL, f"model.safetensors: {error}")
    accuracy = None if state is None else learner.evaluate(state)
    tolerance = ACCURACY_TOLERANCE[learner.task.profile]
    _check_summary(directory / "summary.json", digest, accuracy, tolerance, findings)


class _Summary(BaseModel):
    """Of `scenario.summary.Summary`, what a checker can know."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model_digest: dict[str, HexDigest]
    final_accuracy: Annotated[float, Field(strict=True)] | None


def _check_summary(path: Path, digest: Digest, accuracy: float | None, tolerance: float, findings: Findings) -> None:
    if not path.exists():
        findings.leave(Check.MODEL, "summary.json: there is none")
        return
    try:
        summary = _Summary.model_validate(read_json(path, RECORD_BYTES_MAX))
    except BadFile as error:
        findings.fail(Check.MODEL, str(error))
        return
    except ValidationError as error:
        findings.fail(Check.MODEL, f"summary.json: {explain(error)}")
        return
    for name, claimed in summary.model_digest.items():
        findings.ensure(Check.MODEL, claimed == digest, f"summary.json: {name} ends with another state")
    if summary.final_accuracy is not None and accuracy is not None:
        is_right = abs(summary.final_accuracy - accuracy) <= tolerance
        problem = f"summary.json: says accuracy {summary.final_accuracy}, the last state has {accuracy}"
        findings.ensure(Check.MODEL, is_right, problem)


def _slash_of(ban: Ban) -> tuple[Address, int, Round]:
    """As the contract logs it."""
    if isinstance(ban.entry, EquivocationEntry):
        return ban.address, EVIDENCE_EQUIVOCATION, ban.entry.round
    return ban.address, ban.entry.outcome, ban.entry.audited_round
