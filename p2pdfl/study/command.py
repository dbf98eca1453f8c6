"""`p2pdfl study`: a study file in, progress, a table and files out."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from p2pdfl.learning import resolve
from p2pdfl.study import runner, spec
from p2pdfl.study.cell import Row, cells
from p2pdfl.study.results import report


def run(name_or_path: str, out: Path, *, processes: int, fresh: bool, console: Console) -> Path:
    """Returns the directory.  Raises StudyError, TaskError, StudyFailed."""
    path = spec.find(name_or_path)
    study = spec.load(path)
    resolve.look_in(path.parent)  # a study's own model and data stand beside it
    directory = out / f"study-{study.name}"
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        bar = progress.add_task(study.name, total=len(cells(study)))

        def show(row: Row, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            if progress.disable:
                console.print(f"{done}/{total} {_line(row)}", highlight=False, soft_wrap=True)

        rows = runner.run(study, directory, processes=processes, fresh=fresh, on_row=show)
    console.print(report(study, rows))
    return directory


def _line(row: Row) -> str:
    measured = [] if row.accuracy is None else [f"accuracy {100 * row.accuracy:.1f} %"]
    measured += [] if row.all_banned_after is None else [f"all banned after {row.all_banned_after} rounds"]
    return f"{row.attack}, {row.rule}, audits {row.audits:g}, seed {row.seed}: {', '.join(measured) or 'done'}"
