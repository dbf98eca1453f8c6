"""A machine's whole state as one comparable value."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

from p2pdfl.base.task import Task
from p2pdfl.base.types import Wire
from p2pdfl.crypto.envelope import Signer
from p2pdfl.protocol.config import RunConfig
from p2pdfl.protocol.membership import EpochMembers

RESYNC_SOONER = ("resync_ms", "due_ms", "refused")
"""What a message may change though it is refused, as from others that are ahead."""


def freeze(value: Any, ignoring: Collection[str] = ()) -> Any:
    """ignoring: attributes, without the underscore of private ones."""
    match value:
        case None | bool() | int() | float() | str() | bytes() | Enum() | Wire():
            return value
        case RunConfig() | Task() | Signer() | EpochMembers() | ModuleType():
            return id(value)
        case Mapping():
            return {_freeze_key(key): freeze(held, ignoring) for key, held in value.items()}
        case list() | tuple() | deque():
            return [freeze(item, ignoring) for item in value]
        case set() | frozenset():
            return frozenset(_freeze_key(item) for item in value)
        case _ if is_dataclass(value):
            names = [field.name for field in fields(value)]
        case _ if type(value).__module__.startswith("p2pdfl.protocol."):
            names = [*vars(value)]
        case _ if callable(value):
            return None
        case _:
            raise AssertionError(f"unknown to freeze: {type(value)}")
    return {name: freeze(getattr(value, name), ignoring) for name in names if name.lstrip("_") not in ignoring}


def _freeze_key(key: Any) -> Any:
    return tuple(_freeze_key(item) for item in key) if isinstance(key, tuple) else key
