"""A small run of three Python peers, followed by two js-libp2p nodes that share no code with them.

One is there from the start and lives by gossip; the other comes when rounds have closed, and has to ask for them.  Exit
code 0 if both verified the first ROUNDS rounds.  `make interop` installs what this needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from p2pdfl.base import task as task_file
from p2pdfl.base.task import Task
from p2pdfl.scenario import ledger
from p2pdfl.scenario.processes import ChainProcess, PeerForge, stop

HERE = Path(__file__).parent
PEER_COUNT = 3
ROUNDS = 8
LATE_ROUNDS = 2
"""Closed when the second follower comes."""
TASK = Task(name="interop", training_rounds=4, epoch_rounds=5, members_min=PEER_COUNT)
"""Two epochs of five rounds."""
START_S = 90.0
FOLLOW_S = 180.0


def main() -> int:
    with TemporaryDirectory(prefix="p2pdfl-interop-") as name, ExitStack() as running:
        directory = Path(name)
        chain = ChainProcess()
        running.callback(chain.stop)
        forge = PeerForge("p2pdfl.peer:main")
        published = ledger.publish(chain.url(), forge.measure(TASK))
        path = directory / "task.toml"
        task_file.save(path, published)

        first, *others = [directory / f"peer{number}" for number in range(PEER_COUNT)]
        arguments = ["--task", str(path), "--fund", "--linger", "60"]

        def start(home: Path, *more: str) -> None:
            peer = forge.start(home.name, [*arguments, "--home", str(home), *more], directory / f"{home.name}.txt")
            running.callback(stop, [peer])

        def follow(name: str) -> subprocess.Popen[bytes]:
            options = ["--task", str(path), "--bootstrap", bootstrap, "--rounds", str(ROUNDS), "--name", name]
            follower = subprocess.Popen(["node", str(HERE / "follow.mjs"), *options])
            running.callback(follower.kill)
            return follower

        try:
            start(first, "--followers", "2")
            _wait_for("the first peer's address", (first / "address.json").exists)
            bootstrap: str = json.loads((first / "address.json").read_bytes())["addresses"][0]
            followers = [follow("early")]
            for home in others:
                start(home, "--bootstrap", bootstrap)
            _wait_for(f"{LATE_ROUNDS} rounds", lambda: _rounds_of(first) >= LATE_ROUNDS)
            followers.append(follow("late"))
            codes = [follower.wait(FOLLOW_S) for follower in followers]
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            print(f"interop: {error}", file=sys.stderr)
            codes = [1]
        if any(codes):
            for log in sorted(directory.glob("peer*.txt")):
                print(f"{log.stem}:\n{log.read_text(encoding='utf-8', errors='replace')[-1500:]}", file=sys.stderr)
        return int(any(codes))


def _wait_for(what: str, is_there: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_there():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not there after {START_S:.0f} s")
        time.sleep(0.1)


def _rounds_of(home: Path) -> int:
    try:
        return (home / "events.jsonl").read_text(encoding="utf-8").count('"event": "round"')
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
