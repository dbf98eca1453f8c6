"""A pytest plugin: files in the order in which they were asked for, whatever the tests' own conftest prefers."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = [argument.partition("::")[0] for argument in config.args]

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(config.rootpath).as_posix()
        return next((place for place, prefix in enumerate(asked) if path.startswith(prefix)), len(asked))

    items.sort(key=place)
