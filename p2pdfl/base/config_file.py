"""Tables from outside: TOML files that people write, found by name, read, and what is wrong with them in words."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)


def load(path: Path, model: type[M], refusal: type[ValueError]) -> M:
    """Raises `refusal` with the file, the field and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise refusal(f"{path}: not readable as TOML: {error}") from None
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise refusal(f"{path}: {explain(error)}") from None


def find(name_or_path: str, kind: str, folder: str, refusal: type[ValueError]) -> Path:
    """The file itself, or folder/NAME.toml here or in the checkout this package runs from.  Raises `refusal`."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    folders = (Path(folder), Path(__file__).resolve().parents[2] / folder)
    for place in folders:
        candidate = place / f"{name_or_path}.toml"
        if candidate.is_file():
            return candidate
    known = sorted({file.stem for place in folders for file in place.glob("*.toml")})
    raise refusal(f"no {kind} {name_or_path!r}; there are: {', '.join(known) or 'none here'}")


def explain(error: ValidationError) -> str:
    """A validation error as one line a person can act on."""
    items = error.errors()
    # a list with a bad entry is also said to be too short, since the entry does not count
    counted = [item for item in items if item["type"] != "too_short" or not _has_bad_entry(item["loc"], items)]
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {_complaint(item)}" for item in counted)


def _has_bad_entry(place: tuple[int | str, ...], items: Sequence[ErrorDetails]) -> bool:
    return any(len(item["loc"]) > len(place) and item["loc"][: len(place)] == place for item in items)


def _complaint(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    said, given = item["msg"].removeprefix("Value error, "), item["input"]
    return f"{said}, not {given!r}" if isinstance(given, (str, int, float)) and len(repr(given)) < 80 else said
