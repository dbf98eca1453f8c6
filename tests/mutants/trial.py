"""A copy of the tree in which a mutant lives, and the tests that guard it there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "runs", "build", "*.egg-info")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?: - .*)?$", re.MULTILINE)
SPARE_S = 30.0
"""Of a mutant's time, beyond three times what the unchanged tree takes."""

SIMULATED = (
    "tests/sim/test_byzantine.py",
    "tests/sim/test_faults.py",
    "tests/sim/test_joining.py",
    "tests/sim/test_hunt.py::test_a_drawn_run_holds",
)
AFTER_THE_ROOM = {
    "protocol": SIMULATED,
    "crypto": ("tests/wire", "tests/protocol", "tests/chain/test_contract.py"),
}
"""What else a room's mutants break."""


class BrokenTree(Exception):
    """The unchanged tree fails, or pytest itself does: a survivor would mean nothing."""


@dataclass(frozen=True)
class Stage:
    name: str
    marks: str
    tests: tuple[str, ...]


def stages(path: str, tree: Path) -> list[Stage]:
    """What guards a module, fastest first: its own tests, its room's, those that wait, and whole simulated runs."""
    room, module = path.split("/")[1], Path(path).stem
    own = f"tests/{room}/test_{module}.py"
    files = [str(file.relative_to(tree)) for file in sorted((tree / "tests" / room).glob("test_*.py"))]
    files.sort(key=lambda file: file != own)
    return [
        Stage(f"{room}", "not slow", tuple(files)),
        Stage(f"{room}, slow", "slow", tuple(files)),
        Stage(f"after {room}", "slow or not slow", AFTER_THE_ROOM[room]),
    ]


@dataclass
class Trial:
    tree: Path
    took_s: dict[Stage, float] = field(default_factory=dict)
    """By the unchanged tree."""

    @classmethod
    def make(cls, tree: Path) -> Trial:
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
        return cls(tree)

    def copy(self, tree: Path) -> Trial:
        """With what has been compiled."""
        shutil.copytree(self.tree, tree, symlinks=True)
        return Trial(tree, self.took_s)

    def check(self, paths: set[str]) -> None:
        """That the unchanged tree passes everything, and that it is this tree's code that runs.  Raises BrokenTree."""
        where = self._python("-c", "import p2pdfl; print(p2pdfl.__file__)")
        if not Path(where.stdout.strip()).is_relative_to(self.tree):
            raise BrokenTree(f"p2pdfl comes from {where.stdout}")
        for path in sorted(paths):
            for stage in stages(path, self.tree):
                same = next(
                    (
                        known
                        for known in self.took_s
                        if set(known.tests) == set(stage.tests) and known.marks == stage.marks
                    ),
                    None,
                )
                if same is not None:
                    self.took_s[stage] = self.took_s[same]
                    continue
                started = time.monotonic()
                killer = self._run(stage, timeout_s=900.0)
                if killer is not None:
                    raise BrokenTree(f"without any change: {killer}")
                self.took_s[stage] = time.monotonic() - started

    def killer(self, path: str, source: str) -> str | None:
        """The first test that notices that the module reads so; None if none does."""
        module = self.tree / path
        original = module.read_bytes()
        # a change within the same second, of the same length, would go unnoticed by what is compiled
        Path(cache_from_source(str(module))).unlink(missing_ok=True)
        module.write_text(source)
        try:
            for stage in stages(path, self.tree):
                killer = self._run(stage, timeout_s=3 * self.took_s[stage] + SPARE_S)
                if killer is not None:
                    return killer
            return None
        finally:
            module.write_bytes(original)

    def _run(self, stage: Stage, *, timeout_s: float) -> str | None:
        result = self._python(
            *("-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("--hypothesis-profile=ci", "-m", stage.marks, *stage.tests),
            timeout_s=timeout_s,
        )
        if result.returncode in (0, 5):  # 5: none in this stage, as where a room has no slow ones
            return None
        found = FAILED.search(result.stdout)
        if result.returncode == TIMED_OUT:
            return f"no end after {timeout_s:.0f} s ({stage.name})"
        if found is not None and result.returncode in (1, 2):
            return found[1]
        raise BrokenTree(f"pytest: {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")

    def _python(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1" if self.took_s else "",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
            return subprocess.CompletedProcess(arguments, TIMED_OUT, out, errors)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


TIMED_OUT = -1000
