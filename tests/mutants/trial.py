"""A copy of the tree in which a mutant lives, and the tests that guard it there."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "runs", "build", "*.egg-info")
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
SPARE_CPU_S = 20
"""Of processor time that a mutant has, beyond three times what the unchanged tree takes."""
WAIT_FACTOR = 20
"""How much longer than that it may take on a busy machine, or where it waits for what never comes."""
MEMORY_BYTES_MAX = 4 << 30
"""Of address space: a mutant may make a list that never ends."""

SIMULATED = (
    "tests/sim/test_byzantine.py",
    "tests/sim/test_faults.py",
    "tests/sim/test_hunt.py::test_a_drawn_run_holds",
)
BROADEST = {"protocol": ("tests/protocol/test_voting.py", "tests/protocol/test_court.py")}
"""Those that come by most of a room's lines: first after a module's own."""
AFTER_THE_ROOM = {
    "protocol": ("tests/wire", *SIMULATED),
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

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        """In whatever order."""
        return self.marks, frozenset(self.tests)


def stages(path: str, tree: Path) -> list[Stage]:
    """What guards a module, fastest first: its own tests, its room's, the slow ones of these, and whole runs."""
    room, module = path.split("/")[1], Path(path).stem
    own = f"tests/{room}/test_{module}.py"
    files = [str(file.relative_to(tree)) for file in sorted((tree / "tests" / room).glob("test_*.py"))]
    first = (own, *BROADEST.get(room, ()))
    files.sort(key=lambda file: first.index(file) if file in first else len(first))
    return [
        Stage(room, "not slow", tuple(files)),
        Stage(f"{room}, slow", "slow", tuple(files)),
        Stage(f"after {room}", "slow or not slow", AFTER_THE_ROOM[room]),
    ]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    cpu_s: float

    @property
    def is_over_a_limit(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXCPU)


@dataclass
class Trial:
    tree: Path
    took_s: dict[tuple[str, frozenset[str]], float] = field(default_factory=dict)
    """Processor time of each stage in the unchanged tree, which has passed it."""

    @classmethod
    def make(cls, tree: Path) -> Trial:
        """Raises BrokenTree."""
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
        trial = cls(tree)
        where = trial._python("-c", "import p2pdfl; print(p2pdfl.__file__)").out.strip()
        if not Path(where).is_relative_to(tree):
            raise BrokenTree(f"p2pdfl comes from {where}")
        return trial

    def killer(self, path: str, source: str) -> str | None:
        """The first test that notices that the module reads so; None if none does.  Raises BrokenTree."""
        for stage in stages(path, self.tree):
            if stage.key not in self.took_s:
                self._check(stage)
            with self._changed(path, source):
                killer = self._run(stage)
            if killer is not None:
                return killer
        return None

    def _check(self, stage: Stage) -> None:
        """That the unchanged tree passes."""
        finished = self._pytest(stage)
        if finished.code not in (0, 5):  # 5: none of these, as where a room has no slow ones
            raise BrokenTree(f"without any change: {finished.code}\n{finished.out[-3000:]}")
        self.took_s[stage.key] = finished.cpu_s

    def _run(self, stage: Stage) -> str | None:
        finished = self._pytest(stage, cpu_s=round(3 * self.took_s[stage.key]) + SPARE_CPU_S)
        if finished.code in (0, 5):
            return None
        if finished.is_over_a_limit:
            return f"no end ({stage.name})"
        found = FAILED.search(finished.out)
        if found is None or finished.code not in (1, 2):
            raise BrokenTree(f"pytest: {finished.code}\n{finished.out[-3000:]}")
        return found[1]

    @contextmanager
    def _changed(self, path: str, source: str) -> Iterator[None]:
        module = self.tree / path
        original = module.read_bytes()
        # a change within the same second, of the same length, would go unnoticed by what is compiled
        Path(cache_from_source(str(module))).unlink(missing_ok=True)
        module.write_text(source)
        try:
            yield
        finally:
            module.write_bytes(original)

    def _pytest(self, stage: Stage, *, cpu_s: int = 1200) -> Finished:
        return self._python(
            *("-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("-p", "mutants.ordered", "--hypothesis-profile=ci", "-m", stage.marks, *stage.tests),
            cpu_s=cpu_s,
        )

    def _python(self, *arguments: str, cpu_s: int = 60) -> Finished:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.tree}:{self.tree / 'tests'}",
            # what a mutant compiles to must not outlive it
            "PYTHONDONTWRITEBYTECODE": "1" if self.took_s else "",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.tree,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
            guard = threading.Timer(WAIT_FACTOR * cpu_s, os.killpg, (process.pid, signal.SIGKILL))
            guard.start()
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                guard.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            return Finished(process.returncode, out.read(), usage.ru_utime + usage.ru_stime)
