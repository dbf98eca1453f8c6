from __future__ import annotations

from pathlib import Path

import trio.testing

from p2pdfl.node import status_file


async def test_a_home_that_cannot_be_written_to_ends_no_peer(tmp_path: Path) -> None:
    (tmp_path / status_file.NAME).mkdir()
    described = []
    async with status_file.kept(tmp_path, lambda: {"connected": described.append(1) or []}):
        await trio.testing.wait_all_tasks_blocked()
    assert described
