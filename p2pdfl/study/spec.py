"""A study file: which attacks, against which rules, with how many audits, how often.

name = "byzantine"
peers = 16
byzantine = 7           # of them; one adversary, who shield each other in audits
seeds = 3               # 0, 1, 2: keys, batches and initial weights; or a list
rules = ["clip_nnm_trimmed_mean", "mean"]   # of `task.Rule`
audits = [0.0, 0.25]    # `task.audit_fraction`
learning = "real"       # stand-in: only digests, to count rounds until all are banned, where a run ends
attacks = [
    "none",
    "sign_flip",        # one of `byzantine.machine.UpdateBehaviour`, with its usual factor (`byzantine.attacks`)
    { behaviour = "ipm", factor = 0.1 },
    { behaviour = "scale", from_round = 10, every = 10 },
]

[task]                  # fields of `task.Task`
training_rounds = 60
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from p2pdfl.base import config_file, params
from p2pdfl.base.task import Rule, Task
from p2pdfl.base.types import Address
from p2pdfl.byzantine.attacks import DEFAULT_FACTORS
from p2pdfl.byzantine.machine import Deviation, UpdateBehaviour

SEEDS_MAX = 10_000


class StudyError(ValueError):
    """A study that cannot be run, said in words that name the field."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attack(_Table):
    behaviour: Literal["none", UpdateBehaviour]
    factor: float | None = None
    from_round: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _uses_all_it_is_given(self) -> Attack:
        """Else a row would be called by what made no difference."""
        if self.behaviour == "none" and (self.from_round, self.every) != (0, 1):
            raise ValueError("none: has no rounds")
        if self.factor is not None and self.behaviour not in DEFAULT_FACTORS:
            raise ValueError(f"{self.behaviour}: takes no factor")
        if (
            self.behaviour == "delay"
            and self.factor is not None
            and not (self.factor >= 1 and self.factor.is_integer())
        ):
            raise ValueError("delay: its factor is a whole number of rounds, at least 1")
        return self

    @property
    def name(self) -> str:
        words: list[str] = [self.behaviour]
        words += [] if self.factor is None else [f"x{self.factor:g}"]
        words += [] if self.from_round == 0 else [f"from {self.from_round}"]
        words += [] if self.every == 1 else [f"every {self.every}"]
        return " ".join(words)

    def deviation(self, colluders: frozenset[Address]) -> Deviation | None:
        if self.behaviour == "none":
            return None
        return Deviation(
            behaviour=self.behaviour,
            from_round=self.from_round,
            factor=self.factor,
            every=self.every,
            colluders=colluders,
        )


def _by_name(value: Any) -> Any:
    return {"behaviour": value} if isinstance(value, str) else value


def _counted(value: Any) -> Any:
    return tuple(range(min(value, SEEDS_MAX + 1))) if isinstance(value, int) and not isinstance(value, bool) else value


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**32)], ...],
    BeforeValidator(_counted),
    Field(min_length=1, max_length=SEEDS_MAX),
]


class Study(_Table):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    peers: int = Field(default=16, ge=2, le=params.MEMBER_COUNT_MAX)
    byzantine: int = Field(default=7, ge=0)
    seeds: Seeds = (0, 1, 2)
    rules: tuple[Rule, ...] = Field(default=(Task().rule,), min_length=1)
    audits: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.0, Task().audit_fraction), min_length=1)
    attacks: tuple[Annotated[Attack, BeforeValidator(_by_name)], ...] = Field(min_length=1)
    learning: Literal["real", "stand-in"] = "real"
    task: Task = Task()

    @model_validator(mode="after")
    def _makes_sense(self) -> Study:
        if self.byzantine >= self.peers:
            raise ValueError(f"byzantine: {self.byzantine} of {self.peers} peers leaves nobody honest")
        for field, names in (
            ("attacks", [attack.name for attack in self.attacks]),
            ("rules", self.rules),
            ("audits", self.audits),
            ("seeds", self.seeds),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: names one twice")
        for attack in self.attacks:
            if attack.from_round >= self.task.training_rounds:
                last = self.task.training_rounds - 1
                raise ValueError(f"attacks: {attack.name}: the last round with training is {last}")
        for field in ("rule", "audit_fraction", "seed", "members_min", "name"):
            if field in self.task.model_fields_set:
                raise ValueError(f"task.{field}: is for the study to set (rules, audits, seeds, peers, name)")
        return self


def load(path: Path) -> Study:
    """Raises StudyError with the file, the field and what is wrong with it."""
    return config_file.load(path, Study, StudyError)


def find(name_or_path: str) -> Path:
    """The file itself, or studies/NAME.toml.  Raises StudyError."""
    return config_file.find(name_or_path, "study", "studies", StudyError)
