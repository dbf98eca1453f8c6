"""A machine's whole state as one comparable value."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

from p2pdfl.base.types import Wire
from p2pdfl.protocol.config import Setup
from p2pdfl.protocol.evidence_pool import EvidencePool
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.run import Run


def freeze(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str() | bytes() | Enum() | Wire():
            return value
        case Setup() | EpochMembers() | ModuleType():
            return id(value)
        case Run():
            return {name: freeze(held) for name, held in vars(value).items() if name not in ("setup", "refused")}
        case Mapping():
            return {freeze_key(key): freeze(held) for key, held in value.items()}
        case list() | tuple() | deque():
            return [freeze(item) for item in value]
        case set() | frozenset():
            return frozenset(freeze_key(item) for item in value)
        case EvidencePool() | object() if is_dataclass(value):
            return {field.name: freeze(getattr(value, field.name)) for field in fields(value)}
        case _ if callable(value):
            return None
        case _:
            raise AssertionError(f"unknown to freeze: {type(value)}")


def freeze_key(key: Any) -> Any:
    return tuple(freeze_key(item) for item in key) if isinstance(key, tuple) else key
