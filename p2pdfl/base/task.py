"""A task: everything that fixes a run, and the id that binds every message to it.

A task file is TOML with a `[task]` table (`Task`) and, once published, a `[chain]` table (`Deployment`).  What no
file states, `publish` measures on the publisher's machine: the data's and the initial state's digest and a reference
replay (see `learning.learner.measure`).
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from p2pdfl.base import config_file, params
from p2pdfl.base.types import Digest


class TaskError(ValueError):
    """A task file that cannot be used, said in words that name the field."""


def _from_hex(value: Any) -> Any:
    return bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else value


HexDigest = Annotated[
    Digest, BeforeValidator(_from_hex), PlainSerializer(lambda value: value.hex(), return_type=str, when_used="json")
]
HexAddress = Annotated[
    bytes,
    Field(min_length=20, max_length=20),
    BeforeValidator(_from_hex),
    PlainSerializer(lambda value: "0x" + value.hex(), return_type=str, when_used="json"),
]

CLIP, NNM = "clip_", "nnm_"
Profile = Literal["exact", "tolerant"]
"""In what arithmetic peers train, and how audits compare, see `learning.profiles`."""
BaseRule = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clip", "mda"]
RULES = tuple(clip + nnm + base for clip in ("", CLIP) for nnm in ("", NNM) for base in get_args(BaseRule))
"""What an aggregate is computed by, see `learning.aggregate` and docs/aggregation.md."""


def _known_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"there is {', '.join(get_args(BaseRule))}, each also after {NNM}, {CLIP} or {CLIP}{NNM}")
    return name


Rule = Annotated[str, AfterValidator(_known_rule)]


def _in_thousandths(value: float) -> float:
    if value != round(value * 1000) / 1000:
        raise ValueError("must be a whole number of thousandths")
    return value


Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(_Table):
    """Hyperparameters carry the field's usual names; counts are per round unless they say otherwise."""

    name: str = Field(default="digits", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    model: str = "digits_mlp"
    """Built-in name, or `package.module:function`."""
    data: str = "digits"
    """Built-in name, or `package.module:function`."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    profile: Profile = "exact"

    training_rounds: int = Field(default=20, ge=1, le=100_000)
    epoch_rounds: int = Field(default=13, ge=params.EPOCH_ROUNDS_MIN)
    audit_fraction: float = Field(default=0.25, ge=0, le=1)
    verdict_rounds: int = Field(default=params.VERDICT_ROUNDS, ge=1, le=params.VERDICT_ROUNDS_MAX)

    dirichlet: Annotated[float, Field(gt=0, le=1000), AfterValidator(_in_thousandths)] | None = None
    """None: all draw from the whole training set (IID).  Else each author draws from a shard of its own, with class
    proportions from Dirichlet(alpha, ..., alpha), see `learning.shards`."""
    local_steps: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=32, ge=1, le=100_000)
    learning_rate: float = Field(default=0.3, gt=0)
    outer_learning_rate: float = Field(default=1.0, gt=0)
    outer_momentum: float = Field(default=0.0, ge=0, lt=1)
    """0 is plain; else Nesterov."""
    rule: Rule = "clip_nnm_trimmed_mean"
    codes: Literal["int8", "int4"] = "int8"
    """How coarse an update's coordinates are (`learning.quantize`)."""
    compression: Literal["none", "zstd"] = "none"
    """Of what is committed and sent; nobody has to compress (`learning.compression`)."""

    members_min: int = Field(default=3, ge=1, le=params.MEMBER_COUNT_MAX)
    """Registration closes when this many are registered."""
    deposit_wei: int = Field(default=params.DEPOSIT_WEI, ge=0)
    verdict_slash_wei: int = Field(default=params.VERDICT_SLASH_WEI, ge=0)
    equivocation_slash_wei: int = Field(default=params.EQUIVOCATION_SLASH_WEI, ge=0)
    cooldown_blocks: int = Field(default=params.COOLDOWN_BLOCKS, ge=1)
    stall_blocks: int = Field(default=params.STALL_BLOCKS, ge=1)
    confirmations: int = Field(default=1, ge=0, le=1_000)
    """Blocks that must be on top of a block before peers act on it."""

    commit_ms: Milliseconds = params.COMMIT_MS
    reveal_ms: Milliseconds = params.REVEAL_MS
    grace_ms: Milliseconds = params.GRACE_MS
    view_ms: Milliseconds = params.VIEW_MS
    resync_ms: Milliseconds = params.RESYNC_MS

    data_digest: HexDigest | None = None
    initial_state: HexDigest | None = None
    """Digest of the state that round 0 starts from."""
    reference_replay: HexDigest | None = None
    """Digest of the update that `learning` computes for a fixed seed from the initial state, in float64."""

    @model_validator(mode="after")
    def _slashes_fit_the_deposit(self) -> Task:
        if max(self.verdict_slash_wei, self.equivocation_slash_wei) > self.deposit_wei:
            raise ValueError("a slash exceeds deposit_wei")
        return self

    @model_validator(mode="after")
    def _honest_noise_is_small(self) -> Task:
        if self.profile == "tolerant" and self.codes == "int4":
            raise ValueError("profile tolerant is for int8 codes: int4's make honest noise as large as a small attack")
        return self

    @property
    def closing_rounds(self) -> int:
        """Rounds without training at the end, so that the last updates are audited like all others (DESIGN 3.8)."""
        return 2 + self.verdict_rounds

    @property
    def total_rounds(self) -> int:
        return self.training_rounds + self.closing_rounds

    @property
    def epoch_count(self) -> int:
        """The last epoch takes the remainder, so none is shorter than `epoch_rounds` unless it is the only one."""
        return max(1, self.total_rounds // self.epoch_rounds)

    def epoch_of(self, round: int) -> int:
        return min(round // self.epoch_rounds, self.epoch_count - 1)

    def last_round_of(self, epoch: int) -> int:
        return self.total_rounds - 1 if epoch == self.epoch_count - 1 else (epoch + 1) * self.epoch_rounds - 1

    @property
    def is_measured(self) -> bool:
        return None not in (self.data_digest, self.initial_state, self.reference_replay)

    def task_id(self) -> Digest:
        """sha256 of the canonical bytes: sorted JSON of the fields that are not None, floats in exact hexadecimal."""
        assert self.is_measured, "a task gets its id once its digests are measured"
        fields = {
            name: value.hex() if isinstance(value, (float, bytes)) else value
            for name, value in self.model_dump(mode="python", exclude_none=True).items()
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return sha256(b"p2pdfl/task/1\0" + canonical.encode()).digest()


class Deployment(_Table):
    """Where a published task lives."""

    rpc: str = Field(pattern=r"^https?://")
    chain_id: int = Field(ge=1)
    contract: HexAddress


class TaskFile(_Table):
    task: Task
    chain: Deployment | None = None


def load(path: Path) -> TaskFile:
    """Raises TaskError with the file, the field and what is wrong with it."""
    if not path.exists():
        raise TaskError(f"{path}: no such file; `p2pdfl devchain` writes one")
    return config_file.load(path, TaskFile, TaskError)


def save(path: Path, file: TaskFile) -> None:
    lines: list[str] = []
    for table, fields in file.model_dump(mode="json", exclude_none=True).items():
        lines.append(f"[{table}]")
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
