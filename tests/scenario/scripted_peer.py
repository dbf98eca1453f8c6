"""Stands where `p2pdfl.peer` stands, for tests of the runner: what it does is the scenario's name."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from pathlib import Path

from p2pdfl.base import task

PIDS = "SCRIPTED_PEER_PIDS"
"""In the environment: a FIFO that hears of each peer once it runs."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--name")
    options, _ = parser.parse_known_args(argv)
    script = task.load(options.task).task.name
    (options.home / "pid").write_text(str(os.getpid()))
    (options.home / "network_namespace").write_text(os.readlink("/proc/self/ns/net"))
    if script == "mute":
        print("no port is free", file=sys.stderr)
        return 3
    (options.home / "address.json").write_text(json.dumps({"addresses": [f"/memory/{options.name}"]}))
    with (options.home / "events.jsonl").open("w") as events:
        address = "0x" + options.name.encode().hex().rjust(40, "0")
        print(json.dumps({"ms": 0, "event": "started", "address": address, "peer_id": ""}), file=events)
        print(json.dumps({"ms": 0, "event": "phase", "round": 0, "view": 0, "phase": "train"}), file=events)
    if PIDS in os.environ:
        with Path(os.environ[PIDS]).open("a") as pids:
            print(os.getpid(), file=pids)
    (options.home / "arguments").write_text("\n".join(argv))
    if script == "die" and options.name == "peer1":
        raise RuntimeError("the disk is full of eels")
    threading.Event().wait()
    return 0
