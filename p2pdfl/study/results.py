"""What a study has found so far: results.csv, one row per cell, kept as it comes; table and heatmap made from it."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from statistics import fmean, quantiles, stdev
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from p2pdfl.protocol.audit_economics import ROUNDS_WITHOUT_AUDITS, Audits
from p2pdfl.study.cell import Row
from p2pdfl.study.spec import Attack, Study, StudyError

COLUMNS = tuple(field.name for field in fields(Row))
_INTEGERS = {"seed", "rounds", "banned", "honest_banned", "all_banned_after"}
_TEXTS = {"attack", "rule"}


class Results:
    """A directory, held by one process at a time."""

    def __init__(
        self, directory: Path, study: Study, *, identity: Mapping[str, str] | None = None, fresh: bool = False
    ) -> None:
        """identity: what all rows share beside the study's fields (`cell.identity`).
        Raises StudyError: it holds another study's results, or another process holds it."""
        fixed = _fixed(study) | dict(identity or {})
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "results.csv").open("a+", newline="", encoding="utf-8")
        except OSError as error:
            raise StudyError(f"{error.filename}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rows = [] if fresh else _read(self._file, directory)
            if rows:
                _check_same(directory / "study.json", fixed)
        except BlockingIOError:
            self._file.close()
            raise StudyError(f"{directory}: another study is running there") from None
        except StudyError:
            self._file.close()
            raise
        (directory / "study.json").write_text(json.dumps(fixed, indent=2))
        # written anew, so that a row that was cut off in the middle is gone
        self._file.truncate(0)
        self._table = csv.writer(self._file)
        self._table.writerow(COLUMNS)
        self.rows: list[Row] = []
        for row in rows:
            self.add(row)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._table.writerow(["" if value is None else value for value in astuple(row)])
        self._file.flush()


def _read(file: io.TextIOBase, directory: Path) -> list[Row]:
    file.seek(0)
    text = file.read()
    lines = text[: text.rfind("\n") + 1].splitlines()
    table = csv.DictReader(lines)
    if lines and tuple(table.fieldnames or ()) != COLUMNS:
        raise StudyError(f"{directory}/results.csv: has other columns than {', '.join(COLUMNS)}; move it away")
    try:
        return [Row(**{name: _value(name, text) for name, text in entry.items()}) for entry in table]
    except (TypeError, ValueError, AttributeError):
        raise StudyError(f"{directory}/results.csv: line {table.line_num} is no result; move the file away") from None


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if not text:
        return None
    return int(text) if name in _INTEGERS else float(text)


def _fixed(study: Study) -> dict[str, Any]:
    """What all rows of one table share."""
    common: dict[str, Any] = study.model_dump(mode="json", include={"peers", "byzantine", "learning"})
    task = study.task.model_dump(mode="json", exclude={"rule", "audit_fraction", "seed", "members_min", "name"})
    return common | {f"task.{name}": value for name, value in task.items()}


def _check_same(path: Path, here: dict[str, Any]) -> None:
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise StudyError(f"{path}: missing or damaged, so nobody knows of what results.csv is; --fresh begins anew")
    changed = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
    if changed:
        told = "; ".join(f"{name} was {there.get(name)!r}, is {here.get(name)!r}" for name in sorted(changed))
        raise StudyError(f"{path.parent}: holds results of another study: {told}.  --fresh begins anew")


# --- tables ------------------------------------------------------------------------------------------------------


def rows_of(study: Study, rows: Sequence[Row], attack: Attack, rule: str, audits: float) -> list[Row]:
    return [row for row in rows if row.key[:3] == (attack.name, rule, audits) and row.seed in study.seeds]


def report(study: Study, rows: Sequence[Row]) -> Group:
    tables = [table for rule in study.rules if (table := _table(study, rows, rule)) is not None]
    told = [f"honest members banned: {sum(row.honest_banned for row in rows)}"]
    sizes = [row.bytes_per_update for row in rows if row.bytes_per_update is not None]
    told += [f"an honest member's update has {fmean(sizes) / 1000:.1f} kB"] if sizes else []
    return Group(*tables, *_bans(study, rows), Text("; ".join(told)))


def _table(study: Study, rows: Sequence[Row], rule: str) -> Table | None:
    """What all lines share goes into the title, and what none has is left out: else 80 columns do not hold it."""
    lines = [
        _line(attack, audits, found)
        for audits in study.audits
        for attack in study.attacks
        if (found := rows_of(study, rows, attack, rule, audits))
    ]
    if not lines:
        return None
    columns = {name: {line[name] for line in lines} for name in lines[0]}
    shared = [name for name in ("audits", "seeds") if len(columns[name]) == 1]
    left_out = {name for name, values in columns.items() if values == {"-"}}
    if all(attack.behaviour != "backdoor" for attack in study.attacks):
        left_out.add("backdoor")
    title = [f"{study.name}: {study.byzantine} of {study.peers} peers attack, rule {rule}"]
    title += [f"{name} {lines[0][name]}" for name in shared]
    table = Table(title=", ".join(title), title_justify="left")
    shown = [name for name in columns if name not in left_out.union(shared)]
    for name in shown:
        table.add_column(name, justify="left" if name == "attack" else "right", no_wrap=" " not in name)
    for line in lines:
        table.add_row(*(line[name] for name in shown))
    return table


def _line(attack: Attack, audits: float, found: Sequence[Row]) -> dict[str, str]:
    accuracies = [row.accuracy for row in found if row.accuracy is not None]
    backdoors = [row.backdoor_success for row in found if row.backdoor_success is not None]
    after = [row.all_banned_after for row in found if row.all_banned_after is not None]
    return {
        "attack": attack.name,
        "audits": f"{audits:g}",
        "seeds": str(len(found)),
        "accuracy": _percent(accuracies, fmean),
        "worst seed": _percent(accuracies if len(found) > 1 else (), min),
        "backdoor": _percent(backdoors, fmean),
        "banned": f"{fmean(row.banned for row in found):.1f}",
        "all banned after": f"{fmean(after):.1f}" if len(after) == len(found) else "-",
    }


def _percent(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> str:
    return f"{100 * of(values):.1f} %" if values else "-"


def _bans(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Rounds until all are banned, by formula beside what the runs took; none where nobody is."""
    table = Table(
        title=f"rounds until all {study.byzantine} are banned",
        title_justify="left",
        caption="formula: rounds with audits, and those before the first and after the last (docs/audits.md); "
        "measured: mean and standard error of the runs that banned all, so too small if some were too "
        "short for that; coin flips: BTARD's released experiments",
        caption_justify="left",
    )
    table.add_column("attacks")
    for name in ("audits", "auditors", "formula", "measured", "95 % within", "runs", "coin flips"):
        table.add_column(name, justify="right", no_wrap=" " not in name)
    for fraction in study.audits:
        audits = Audits(peers=study.peers, byzantine=study.byzantine, audit_fraction=fraction)
        for (start, every), attacks in _by_schedule(study.attacks).items():
            found = [
                row
                for attack in attacks
                for rule in study.rules
                for row in rows_of(study, rows, attack, rule, fraction)
            ]
            after = [row.all_banned_after - start for row in found if row.all_banned_after is not None]
            if after:
                table.add_row(
                    "always" if every == 1 else f"1 in {every}",
                    f"{fraction:g}",
                    str(audits.auditors),
                    f"{audits.rounds_to_catch(every):.1f} + {ROUNDS_WITHOUT_AUDITS}",
                    f"{fmean(after):.1f}" + (f" ± {stdev(after) / math.sqrt(len(after)):.1f}" if after[1:] else ""),
                    f"{quantiles(after, n=20, method='inclusive')[-1]:.0f}" if after[1:] else "-",
                    f"{len(after)}/{len(found)}",
                    f"{audits.rounds_of_coin_flips:.1f}",
                )
    return [table] if table.rows else []


def _by_schedule(attacks: Sequence[Attack]) -> dict[tuple[int, int], list[Attack]]:
    """Attacks by the rounds in which they are made: that alone is what the formula asks about."""
    schedules: dict[tuple[int, int], list[Attack]] = {}
    for attack in attacks:
        if attack.behaviour != "none":
            schedules.setdefault((attack.from_round, attack.every), []).append(attack)
    return schedules


_SUMMARIES: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "worst seed": min}


def plot(path: Path, study: Study, rows: Sequence[Row]) -> bool:
    """A heatmap of the mean accuracy and one of the worst seed's.  Whether there was any accuracy to show."""
    from matplotlib.figure import Figure  # half a second, and only here

    columns = [(rule, audits) for audits in study.audits for rule in study.rules]
    found = [
        [
            [row.accuracy for row in rows_of(study, rows, attack, *column) if row.accuracy is not None]
            for column in columns
        ]
        for attack in study.attacks
    ]
    if not any(values for line in found for values in line):
        return False
    least = min(100 * min(cell) for line in found for cell in line if cell)
    floor = min(80, 10 * math.floor(least / 10))  # so that one point more or less does not look like a difference
    beside, below = (2, 1) if len(columns) < 4 else (1, 2)
    size = ((3 + 1.5 * len(columns)) * beside, (1.5 + 0.3 * len(study.attacks)) * below)
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(below, beside)
    for axes, (title, of) in zip(places, _SUMMARIES.items(), strict=True):
        values = [[100 * of(cell) if cell else math.nan for cell in line] for line in found]
        image = axes.imshow(values, vmin=floor, vmax=100, cmap="viridis", aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    color = "white" if value < (floor + 100) / 2 else "black"
                    axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize="small", color=color)
        axes.set_xticks(
            range(len(columns)), [f"{rule}\naudits {audits:g}" for rule, audits in columns], fontsize="x-small"
        )
        axes.set_yticks(range(len(study.attacks)), [attack.name for attack in study.attacks], fontsize="small")
        axes.set_title(f"{study.name}: accuracy in %, {title}", fontsize="small")
    figure.colorbar(image, ax=places, label="%")
    figure.savefig(path, dpi=130)
    return True
