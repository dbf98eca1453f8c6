"""Fuzzes the targets side by side for some minutes; a crash ends its target, is written to a file and fails the run.

    python -m fuzz --minutes 10                       all, each in a process of its own
    python -m fuzz --target codec --input FILE        one input again

Run it in tests/.  Inputs that reached something new are kept under --home and are where the next run goes on.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

TARGET_NAMES = ("codec", "gossip", "pull", "update")
INPUT_BYTES_MAX = {"codec": 1 << 14, "gossip": 1 << 12, "pull": 1 << 10, "update": 1 << 12}
INPUT_S_MAX = 5
"""An input that takes longer is a crash."""
MEMORY_MB_MAX = 2048
STATUS = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--target", choices=TARGET_NAMES, action="append")
    parser.add_argument("--input", type=Path)
    parser.add_argument("--home", type=Path, default=Path(__file__).parents[2] / "runs" / "fuzz")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGET_NAMES)
    if arguments.input is not None:
        from .targets import TARGETS

        for target in targets:
            TARGETS[target](arguments.input.read_bytes())
    elif arguments.run:
        from .fuzzer import fuzz

        fuzz(targets[0], arguments.home / targets[0], options(targets[0], arguments.home, arguments.minutes))
    else:
        sys.exit(run_all(targets, arguments.home, arguments.minutes))


def options(target: str, home: Path, minutes: float) -> list[str]:
    return [
        f"-max_total_time={round(60 * minutes)}",
        f"-max_len={INPUT_BYTES_MAX[target]}",
        f"-timeout={INPUT_S_MAX}",
        f"-rss_limit_mb={MEMORY_MB_MAX}",
        f"-artifact_prefix={home / target}/",
        "-print_final_stats=1",
    ]


def run_all(targets: list[str], home: Path, minutes: float) -> int:
    running = []
    for target in targets:
        (home / target).mkdir(parents=True, exist_ok=True)
        log, before = home / target / "log.txt", artifacts(home / target)
        command = [sys.executable, "-m", "fuzz", "--run", "--target", target, "--home", str(home)]
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*command, "--minutes", str(minutes)],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.nice(10),  # what else runs here goes first
            )
        running.append((target, log, child, before))
    failed = False
    for target, log, child, before in running:
        code = child.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        crashes = artifacts(home / target) - before
        print(f"{target}: {summary(text)}, crashes {len(crashes)}")
        if code != 0 or crashes:
            failed = True
            print(text[-4000:])
            print(f"{target}: ended with {code}; its log: {log}")
            for path in sorted(crashes):
                print(f"{target}: again with: cd tests && python -m fuzz --target {target} --input {path}")
    return int(failed)


def artifacts(directory: Path) -> set[Path]:
    """Inputs that failed, took too long or took too much memory."""
    return {path for kind in ("crash", "timeout", "oom") for path in directory.glob(f"{kind}-*")}


def summary(log: str) -> str:
    """Executions, and the coverage at the start and at the end."""
    seen = STATUS.findall(log)
    if not seen:
        return "did not start"
    start = next((status for status in seen if status[1] == "INITED"), seen[0])
    end = seen[-1]
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    count = executed.group(1) if executed else end[0]
    return (
        f"{count} inputs, branches {start[2]} -> {end[2]}, features {start[3]} -> {end[3]}, kept {start[4]} -> {end[4]}"
    )


if __name__ == "__main__":
    main()
