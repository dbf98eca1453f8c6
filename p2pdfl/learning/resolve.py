"""`package.module:function`, as a task names its own model and data.

Naming code is running it: whoever joins a task that brings its own should have read it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pdfl.base.task import TaskError

_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a task's own code may fail with; the cause stays attached for its author."""


def look_in(folder: Path) -> None:
    """Packages are found there too, after those that are installed."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)


def call(field: str, name: str, built_in: dict[str, Callable[[], Any]]) -> Any:
    """What the function that `name` stands for in the task's `field` returns.  Raises TaskError, also that which the
    function raises."""
    function = built_in[name] if name in built_in else _imported(field, name, built_in)
    try:
        return function()
    except TaskError:
        raise
    except _FAILURES as error:
        raise TaskError(f"{field}: {name!r} failed: {type(error).__name__}: {error}") from error


def _imported(field: str, name: str, built_in: dict[str, Callable[[], Any]]) -> Callable[[], Any]:
    module_name, separator, function_name = name.partition(":")
    if not (separator and function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        known = ", ".join(sorted(built_in))
        raise TaskError(f"{field}: {name!r} is neither built in ({known}) nor of the form package.module:function")
    look_in(Path.cwd())  # `python -m` does that by itself, an installed command does not
    try:
        module = importlib.import_module(module_name)
    except _FAILURES as error:
        raise TaskError(
            f"{field}: cannot import {module_name!r}: {type(error).__name__}: {error}; own files are looked for where "
            f"the command runs, a study's also beside its file"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TaskError(f"{field}: {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]
