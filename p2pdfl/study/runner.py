"""All cells of a study, on several processes; those that are in results.csv already are not run again."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from pathlib import Path

from p2pdfl.study.cell import Cell, Row, cells, identity, run_cell
from p2pdfl.study.results import Results, plot
from p2pdfl.study.spec import Study


class StudyFailed(Exception):
    """The study is fine, but a process died of it."""


def run(
    study: Study,
    directory: Path,
    *,
    processes: int = 1,
    fresh: bool = False,
    on_row: Callable[[Row, int, int], object] = lambda row, done, total: None,
) -> list[Row]:
    """The rows of all cells.  An interrupt leaves what is finished in `directory`, and the next call goes on there.

    fresh: forget what is there.  on_row: told of each row, how many there are and will be.
    Raises StudyError, TaskError, StudyFailed.
    """
    wanted = cells(study)
    with Results(directory, study, identity=identity(study), fresh=fresh) as results:
        known = {row.key for row in results.rows}
        missing = [cell for cell in wanted if cell.key not in known]
        done = len(wanted) - len(missing)
        with closing(_run(study, missing, processes)) as finished:
            for row in finished:
                results.add(row)
                done += 1
                on_row(row, done, len(wanted))
        keys = {cell.key for cell in wanted}
        rows = [row for row in results.rows if row.key in keys]
    plot(directory / "accuracy.png", study, rows)
    return rows


def _run(study: Study, missing: Sequence[Cell], processes: int) -> Generator[Row, None, None]:
    """As they are finished."""
    if processes <= 1 or len(missing) <= 1:
        yield from (run_cell(study, cell) for cell in missing)
        return
    others = multiprocessing.active_children()
    executor = ProcessPoolExecutor(
        min(processes, len(missing)), mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts
    )
    try:
        yield from _as_finished(executor, study, iter(missing), processes)
        executor.shutdown()
    except BrokenProcessPool:
        raise StudyFailed("a process died, perhaps for want of memory; the same command goes on") from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # left over only after an interrupt or a failure: what is half done is not waited for
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
                process.join()


def _as_finished(executor: ProcessPoolExecutor, study: Study, missing: Iterator[Cell], processes: int) -> Iterator[Row]:
    running: set[Future[Row]] = {executor.submit(run_cell, study, cell) for cell in islice(missing, processes)}
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            running |= {executor.submit(run_cell, study, cell) for cell in islice(missing, 1)}
            yield future.result()


def _leave_interrupts() -> None:
    """Ctrl-C goes to all processes of the terminal; the first of them sees to the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
