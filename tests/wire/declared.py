"""The payloads' fields and bounds as docs/wire.md writes them, read off the types."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Len, Lt

from p2pdfl.base import types
from p2pdfl.base.types import PAYLOAD_TYPES, Wire
from p2pdfl.protocol.checkpoint import CheckpointReply, CheckpointRequest
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest

ROOTS: tuple[type[Wire], ...] = (
    types.Packet,
    *PAYLOAD_TYPES.values(),
    ResyncRequest,
    ResyncReply,
    CheckpointRequest,
    CheckpointReply,
    types.Checkpoint,
)


def lines() -> list[str]:
    """One per type, each after the types that it is made of."""
    found: dict[str, str] = {}
    for root in ROOTS:
        _declare(root, found)
    return list(found.values())


def _declare(kind: type[Wire], found: dict[str, str]) -> None:
    hints = get_type_hints(kind, include_extras=True)
    fields = [f"{name}: {_word(hints[name], found)}" for name in kind.model_fields]
    found.setdefault(kind.__name__, f"{kind.__name__} = [{', '.join(fields)}]")


def _word(hint: Any, found: dict[str, str]) -> str:
    if get_origin(hint) is Annotated:
        plain, *bounds = get_args(hint)
        return _bounded(plain, {type(bound): bound for bound in bounds}, found)
    if get_origin(hint) in (Union, UnionType):
        (item,) = (part for part in get_args(hint) if part is not NoneType)
        return f"{_word(item, found)} or nil"
    assert issubclass(hint, Wire)
    _declare(hint, found)
    return str(hint.__name__)


def _bounded(plain: Any, bounds: dict[type, Any], found: dict[str, str]) -> str:
    if plain is int:
        low, high = bounds[Ge].ge, bounds[Lt].lt - 1
        return {(0, 2**32 - 1): "u32", (0, 255): "u8"}.get((low, high), f"int {low}..{high}")
    length = bounds[Len]
    fixed = length.min_length == length.max_length
    count = str(length.min_length) if fixed else f"{length.min_length}..{length.max_length}"
    if plain is bytes:
        return f"bytes {count}"
    item = _word(get_args(plain)[0], found)
    return f"list {count} of {item if ' ' not in item else f'({item})'}"


if __name__ == "__main__":
    print("\n".join(lines()))
