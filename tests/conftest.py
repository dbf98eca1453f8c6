from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

LONGEST_FIRST = ("scenario", "net", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest first: a worker that began one of them last would keep the others waiting."""
    marks: defaultdict[Path, set[str]] = defaultdict(set)
    for item in items:
        marks[item.path] |= {mark.name for mark in item.iter_markers()}
    items.sort(key=lambda item: [mark not in marks[item.path] for mark in LONGEST_FIRST])
