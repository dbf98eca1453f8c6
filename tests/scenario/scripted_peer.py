"""Stands where `p2pdfl.peer` stands, for tests of the runner: what it does is the scenario's name."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from itertools import product
from pathlib import Path

from p2pdfl.base import task
from p2pdfl.node.event_log import EventLog
from p2pdfl.scenario.spec import PHASES

RUSHED_ROUNDS = 9
"""Told of by "rush", one after the other and without a pause."""
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
    if PIDS in os.environ:
        with Path(os.environ[PIDS]).open("a") as pids:
            print(os.getpid(), file=pids)
    (options.home / "arguments").write_text("\n".join(argv))
    with EventLog(options.home / "events.jsonl") as log:
        address = "0x" + options.name.encode().hex().rjust(40, "0")
        log.write("started", {"address": address, "peer_id": ""})
        log.write("phase", {"round": 0, "view": 0, "phase": "train"})
        if script == "die" and options.name == "peer1":
            raise RuntimeError("the disk is full of eels")
        if script == "rush":
            for round, phase in product(range(1, RUSHED_ROUNDS), PHASES):
                log.write("phase", {"round": round, "view": 0, "phase": phase})
        if script != "stall":
            result = {"name": options.name, "address": address, "rounds": 0, "state": "", "heads": {}}
            (options.home / "result.json").write_text(json.dumps(result))
            log.write("finished", {})
    threading.Event().wait()
    return 0
