from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

# torch's threads that spin while another worker has the processor take minutes; it reads this when it is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST_FIRST = ("scenario", "net", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest first: a worker that began one of them last would keep the others waiting."""
    marks: defaultdict[Path, set[str]] = defaultdict(set)
    for item in items:
        marks[item.path] |= {mark.name for mark in item.iter_markers()}
    items.sort(key=lambda item: [mark not in marks[item.path] for mark in LONGEST_FIRST])
