"""A task for peers started by hand: an embedded chain, the task published on it, and the commands to type next."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from pydantic import ValidationError

from p2pdfl.base import task as task_file
from p2pdfl.base.config_file import explain
from p2pdfl.base.task import Task, TaskError
from p2pdfl.chain.devchain import devchain
from p2pdfl.chain.rpc import ChainError
from p2pdfl.node.keyfile import KeyFileError, load_or_create
from p2pdfl.scenario import ledger
from p2pdfl.scenario.run_directory import make_room

BOOTSTRAP_PORT = 9001
WALK_TRAINING_ROUNDS = 10
"""A built-in task without a file of its own is short, to be watched."""


class NotServed(Exception):
    """The chain could not be started, or the task not be published."""


def serve(*, task: str, members: int, port: int, out: Path) -> None:
    """Until Ctrl-C.  Raises TaskError, NotServed."""
    from p2pdfl.learning.learner import measure  # imports torch

    chosen = choose(task, members)
    try:
        with devchain(port) as chain:
            print(f"a chain listens at {chain.url}; the task is being measured", flush=True)
            published = ledger.publish(chain.url, measure(chosen))
            make_room(out, made_by="task.toml", keep=True)
            path = out / "task.toml"
            task_file.save(path, published)
            for line in commands(path, out, members):
                print(line)
            print("\nCtrl-C stops the chain; what is on it is gone then.", flush=True)
            chain.serve_forever()
    except KeyboardInterrupt:
        print("the chain is stopped")
    except OSError as error:
        what = error.filename or f"port {port}"
        raise NotServed(f"{what}: {error.strerror}; another --port or --out?") from None
    except (ChainError, KeyFileError) as error:
        raise NotServed(str(error)) from None


def choose(name_or_file: str, members: int) -> Task:
    """A task file's [task] table, or the built-in data set of that name, for so many members.  Raises TaskError."""
    from p2pdfl.learning.data import MODELS

    if Path(name_or_file).is_file():
        fields = task_file.load(Path(name_or_file)).task.model_dump()
    else:
        fields = {"name": name_or_file, "data": name_or_file, "training_rounds": WALK_TRAINING_ROUNDS}
        if name_or_file in MODELS:
            fields["model"] = MODELS[name_or_file]
    try:
        return Task.model_validate({**fields, "members_min": members})
    except ValidationError as error:
        raise TaskError(f"{name_or_file}: {explain(error)}") from None


def commands(task: Path, out: Path, members: int) -> list[str]:
    """What to type in the other terminals.  The first peer's key is made here, since the others need its peer id."""
    python = min(sys.executable, os.path.relpath(sys.executable), key=len)
    start = f"{python} -m p2pdfl.peer --task {task} --fund --home"
    keys = load_or_create(out / "peer1" / "key", secrets.token_bytes)
    bootstrap = f"/ip4/127.0.0.1/tcp/{BOOTSTRAP_PORT}/p2p/{_peer_id(keys.peer_secret)}"
    lines = [
        f"{task} is written.  {members} peers are awaited; each command in a terminal of its own:",
        "",
        f"  {start} {out / 'peer1'} --listen /ip4/127.0.0.1/tcp/{BOOTSTRAP_PORT}",
    ]
    lines += [f"  {start} {out / f'peer{number}'} --bootstrap {bootstrap}" for number in range(2, members + 1)]
    return lines


def _peer_id(peer_secret: bytes) -> str:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    return ID.from_pubkey(create_new_key_pair(peer_secret).public_key).to_base58()
