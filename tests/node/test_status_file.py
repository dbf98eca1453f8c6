from __future__ import annotations

from pathlib import Path

import trio.testing

from p2pdfl.node import status_file


async def test_a_home_that_cannot_be_written_to_ends_no_peer(tmp_path: Path) -> None:
    (tmp_path / status_file.NAME).mkdir()
    described: list[int] = []

    def describe() -> dict[str, object]:
        described.append(1)
        return {"connected": []}

    async with status_file.kept(tmp_path, describe):
        await trio.testing.wait_all_tasks_blocked()
    assert described
