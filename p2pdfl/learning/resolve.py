"""`package.module:function`, as a task names its own model and data.

Naming code is running it: whoever joins a task that brings its own should have read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from p2pdfl.task import TaskError


def resolve(field: str, name: str, built_in: dict[str, Callable[[], Any]]) -> Callable[[], Any]:
    """The function that `name` stands for in the task's `field`.  Raises TaskError."""
    if name in built_in:
        return built_in[name]
    module_name, separator, function_name = name.partition(":")
    if not (separator and function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        known = ", ".join(sorted(built_in))
        raise TaskError(f"{field}: {name!r} is neither built in ({known}) nor of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(f"{field}: cannot import {module_name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TaskError(f"{field}: {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]
