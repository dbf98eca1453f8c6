"""A finished run as files and as what the terminal shows last: summary.json, metrics.csv, accuracy.png, the verdict."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from p2pdfl.scenario.events import PeerRecord
from p2pdfl.scenario.rows import PeerRow
from p2pdfl.scenario.spec import Scenario
from p2pdfl.scenario.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = (
    "round",
    "peer",
    "behaviour",
    "epoch",
    "view",
    "accuracy",
    "seconds",
    "commits",
    "updates",
    "update_bytes",
    "bytes_sent",
)
"""Columns of metrics.csv, one row per round and peer; bytes_sent is of that round alone."""


def write(directory: Path, scenario: Scenario, records: Sequence[PeerRecord], summary: Summary) -> None:
    (directory / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_metrics(directory / "metrics.csv", scenario, records)
    plot_accuracy(directory / "accuracy.png", scenario, records, summary)


def write_metrics(path: Path, scenario: Scenario, records: Sequence[PeerRecord]) -> None:
    rows: list[tuple[Any, ...]] = []
    for record in records:
        byzantine = scenario.behaviours.get(record.name)
        sent_before = 0
        for number, line in sorted(record.rounds.items()):
            measured = (line.accuracy, line.seconds, line.commits, line.updates, line.update_bytes)
            sent = line.bytes_sent - sent_before
            rows.append(
                (number, record.name, byzantine.behaviour if byzantine else "", line.epoch, line.view, *measured, sent)
            )
            sent_before = line.bytes_sent
    rows.sort(key=lambda row: (row[0], row[1]))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(METRICS)
        table.writerows(rows)


def plot_accuracy(path: Path, scenario: Scenario, records: Sequence[PeerRecord], summary: Summary) -> None:
    """Median over honest peers by round, with the start of each attack and each ban marked."""
    from matplotlib.figure import Figure  # half a second, and only here

    measured: dict[int, list[float]] = {}
    for record in records:
        if record.name not in scenario.behaviours:
            for line in record.rounds.values():
                if line.accuracy is not None:
                    measured.setdefault(line.round, []).append(line.accuracy)
    rounds = sorted(measured)

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rounds, [median(measured[round]) for round in rounds], marker="o", markersize=3, label="honest peers")
    axes.axvspan(
        scenario.task.training_rounds - 0.5, scenario.task.total_rounds - 0.5, color="0.93", label="closing rounds"
    )
    starts: dict[tuple[int, str], list[str]] = {}
    for peer in summary.peers:
        if peer.behaviour is not None and peer.from_round is not None:
            starts.setdefault((peer.from_round, peer.behaviour), []).append(peer.name)
    for place, ((round, behaviour), names) in enumerate(starts.items()):
        who = f"{names[0]} starts" if len(names) == 1 else f"{len(names)} peers start"
        axes.axvline(round, color=f"C{place + 1}", linestyle=":", label=f"{who}: {behaviour}")
    for place, ban in enumerate(summary.bans, len(starts)):
        axes.axvline(ban.round, color=f"C{place + 1}", label=f"{ban.name} banned in {ban.round}: {ban.evidence}")
    if len(summary.bans) > 1:
        _plot_left(axes, scenario, summary)
    for anchor in summary.anchors:
        axes.plot([anchor.round], [0.02], marker="^", color="black", clip_on=False)
    axes.set(
        xlabel="round (triangles: anchored on chain)",
        ylabel="test accuracy",
        ylim=(0, 1),
        xlim=(-0.5, scenario.task.total_rounds - 0.5),
        title=f"{scenario.name}: {'ok' if summary.ok else 'NOT as expected'}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.08, 0.5), fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def _plot_left(axes: Axes, scenario: Scenario, summary: Summary) -> None:
    """How many Byzantine peers are not banned, as steps on an axis of its own."""
    rounds = [ban.round for ban in summary.bans if ban.name in scenario.behaviours]
    count = len(scenario.behaviours)
    other = axes.twinx()
    other.step(
        [-0.5, *rounds, scenario.task.total_rounds - 0.5],
        [count, *range(count - 1, count - 1 - len(rounds), -1), count - len(rounds)],
        where="post",
        color="0.5",
        linewidth=1,
    )
    other.set(ylim=(0, 3 * count), yticks=range(count + 1))
    other.set_ylabel("Byzantine peers not banned (grey)", loc="bottom", fontsize="small")


def print_verdict(console: Console, directory: Path, summary: Summary) -> None:
    console.print(verdict(summary))
    for file, what in (
        ("summary.json", "everything above, and more, for programs"),
        ("accuracy.png", "accuracy by round"),
        ("metrics.csv", "per round and peer"),
        ("peers/", "each peer's log, events.jsonl and store"),
        ("transcript/", f"what anyone needs to check the run: p2pdfl verify {directory}"),
        ("model.safetensors", "the model"),
    ):
        if (directory / file).exists():
            console.print(f"  {directory / file}", what, sep="  ", style="dim", soft_wrap=True, highlight=False)


def verdict(summary: Summary) -> Group:
    peers = Table(title=f"{summary.scenario}: who did what, and what came of it", title_justify="left")
    for heading in ("peer", "behaviour", "caught in round", "evidence", "slashed (ETH)", "ended"):
        peers.add_column(heading)
    for row in summary.peers:
        peers.add_row(*_peer_cells(row))

    bans = Table(title="bans", title_justify="left")
    for heading in ("in round", "banned", "evidence", "audited round", "auditor", "verdict in round"):
        bans.add_column(heading)
    for ban in summary.bans:
        found = (ban.audited_round, ban.auditor, ban.verdict_round)
        bans.add_row(str(ban.round), ban.name, ban.evidence, *("" if value is None else str(value) for value in found))

    expected = Table(title="expected", title_justify="left")
    for heading in ("", "what", "expected", "seen"):
        expected.add_column(heading)
    for item in summary.expected:
        mark = Text("ok", style="green") if item.held else Text("NO", style="bold red")
        expected.add_row(mark, item.what, _short(item.expected), _short(item.seen))

    accuracy = "not measured" if summary.final_accuracy is None else f"{summary.final_accuracy:.4f}"
    seconds = "-" if summary.round_seconds is None else f"{summary.round_seconds:.2f} s"
    spent = ", ".join(f"{part.replace('_', ' ')} {value:.0f} s" for part, value in summary.seconds.items())
    facts = Text(
        f"{summary.rounds} rounds in {summary.wall_seconds:.0f} s, {seconds} per training round (median); "
        f"accuracy {accuracy}; {len(summary.anchors)} anchors on chain\n"
        f"{summary.late_rounds} rounds closed late, {summary.missing_commits} COMMITs missing; "
        f"{_network(summary)}\n"
        f"honest peers' time, together: {spent}; sent per peer and round: "
        f"{(summary.bytes_sent_per_peer_per_round or 0) / 1000:.0f} kB"
        f"; an update has {(summary.bytes_per_update or 0) / 1000:.1f} kB"
    )
    outcome = (
        Text(f"{summary.scenario}: ok", style="bold green")
        if summary.ok
        else Text(f"{summary.scenario}: NOT as expected", style="bold red")
    )
    return Group(peers, *([bans] if summary.bans else []), expected, *_audits(summary), facts, outcome)


def _audits(summary: Summary) -> list[Text]:
    audits = summary.audits
    if audits is None:
        return []
    took = "not all were found" if audits.rounds is None else f"it took {audits.rounds}"
    return [
        Text(
            f"{audits.auditors} audits per round find a bad update with {100 * audits.chance:.0f} %: all "
            f"{audits.byzantine} who send some in {audits.rounds_expected:.1f} rounds with audits by formula; {took}"
        )
    ]


def _peer_cells(row: PeerRow) -> tuple[str, ...]:
    behaviour = "honest" if row.behaviour is None else f"{row.behaviour} from round {row.from_round}"
    if row.fault is not None:
        behaviour += f", {row.fault}"
    if row.struck_at is not None:
        behaviour += f": struck in {row.struck_at}"
    if row.back_round is not None:
        behaviour += f", back when the others were in {row.back_round}"
    if row.missed_rounds:
        behaviour += f", {len(row.missed_rounds)} rounds missed"
    if row.noticed_s is not None:
        behaviour += f", noticed in {row.noticed_s:.1f} s"
    if row.caught_up_s is not None:
        behaviour += f", caught up in {row.caught_up_s:.1f} s"
    return (
        row.name,
        behaviour,
        "" if row.caught_round is None else str(row.caught_round),
        row.evidence or "",
        f"{row.slashed_wei / 10**18:g}" if row.slashed_wei else "",
        row.ended,
    )


def _network(summary: Summary) -> str:
    return "on loopback" if summary.conditions is None else f"on {summary.network}: {summary.conditions}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if value is None:
        return "none"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
