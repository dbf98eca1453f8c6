"""p2pdfl: the commands.  What a command needs is imported when it runs, so that --help is there at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_OK = 0
EXIT_NOT_AS_EXPECTED = 1
EXIT_USAGE = 2
"""The command line or a file it names cannot be used."""
EXIT_FAILED = 3
EXIT_SKIPPED = 77
"""This machine cannot give a scenario the network that it wants; the number that automake's tests use for it."""
EXIT_INTERRUPTED = 130

PLAIN_WIDTH = 120
"""Columns of a report that goes to a file or a CI log."""
PEER_ENTRY = "p2pdfl.peer:main"
AUDIT_FRACTIONS = (0.05, 0.125, 0.25, 0.5, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["peer"]:  # has its own options, and its own --help
        return _peer(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="p2pdfl",
        description="Train one model together with peers you do not trust, and leave a record that anyone can check.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    commands.add_parser("peer", help="take part in a task (see `p2pdfl peer --help`)", add_help=False)

    _add_scenario(commands)
    _add_verify(commands)
    _add_study(commands)
    _add_audits(commands)
    _add_doctor(commands)
    _add_devchain(commands)
    return parser


def _add_scenario(commands: Commands) -> None:
    parser = commands.add_parser(
        "scenario",
        help="run a whole network on this machine, with cheaters, and judge what came of it",
        description="Run a whole network on this machine: a chain, one process per peer, cheaters and faults as the "
        "scenario says.  Exit code 0 if everything came out as the scenario expects, 1 if not, 2 if the scenario "
        "cannot be used, 3 if the run failed, 77 if this machine cannot give it the network that it wants.",
    )
    parser.add_argument("scenario", metavar="FILE_OR_NAME", help="a scenario file, or NAME for scenarios/NAME.toml")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where runs/<name>/ goes (default: %(default)s)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="move an earlier run of this scenario aside to <name>.1, <name>.2, ...; without it, it is replaced",
    )
    parser.set_defaults(run=_scenario)


def _add_verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a finished run again, from what it left behind",
        description="Check a finished run from its transcript and its chain's events alone: signatures, beacons, "
        "assignments, verdicts, member lists, every aggregate, anchors and slashes.  Exit code 0 if all that could be "
        "checked is right, 1 if not, 2 if there is no run to check.",
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="runs/<name>")
    parser.add_argument(
        "--replay",
        type=_count,
        default=0,
        metavar="K",
        help="also train K sampled updates again, and every one that a verdict is about (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--trust-code", action="store_true", help="run the model and data functions that the task brings, if any"
    )
    parser.set_defaults(run=_verify)


def _add_study(commands: Commands) -> None:
    parser = commands.add_parser(
        "study",
        help="tables of attacks beside rules beside audits, in one process",
        description="Run the cells of a study - attack, rule, audits, seed - each a whole network in virtual time with "
        "real training, and put them in a table.  What is finished is kept: Ctrl-C stops at any time, and the same "
        "command goes on.  Exit code 0 if all cells are there, 2 if the study cannot be used, 3 if a run failed.",
    )
    parser.add_argument("study", metavar="FILE_OR_NAME", help="a study file, or NAME for studies/NAME.toml")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="where study-<name>/ goes (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=_count, default=os.cpu_count() or 1, help="cells at a time (default: %(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the results that are there, and begin anew")
    parser.set_defaults(run=_study)


def _add_audits(commands: Commands) -> None:
    parser = commands.add_parser(
        "audits",
        help="what an audit_fraction costs, and how soon it finds who cheats",
        description="Work and effect of audits by formula; docs/audits.md says what the columns mean.",
    )
    parser.add_argument("--peers", type=_count, required=True)
    parser.add_argument("--byzantine", type=_count, required=True, help="of them, shielding each other")
    parser.add_argument(
        "--audit-fraction", type=float, action="append", help="may be repeated (default: some from 0.05 to 1)"
    )
    parser.set_defaults(run=_audits)


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="tell why a peer cannot be reached or sees too few others, and what to do",
        description="Examine, from this machine outwards: installation, key, task, chain, membership, addresses, who "
        "answers, who of the members can be dialled, and whether others can dial this peer.  It never uses the peer's "
        "key, and may run beside the peer.  Exit code 0 if nothing failed, 1 if something did, 2 if there is nothing "
        "to examine.",
    )
    parser.add_argument("--home", type=Path, help="of the peer; what it was started with is known from there")
    parser.add_argument("--task", type=Path, metavar="FILE", help="the task file")
    for flag, text in (
        ("--bootstrap", "an address to start from"),
        ("--listen", "where the peer is to listen"),
        ("--announce", "where others are to dial it"),
    ):
        parser.add_argument(flag, action="append", default=[], metavar="MULTIADDR", help=f"{text}, may be repeated")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_doctor)


def _add_devchain(commands: Commands) -> None:
    parser = commands.add_parser(
        "devchain",
        help="start a chain on this machine with a task on it, for peers started by hand",
        description="Start the embedded chain, publish a task on it and print the commands that start its peers.  The "
        "chain lives as long as this command: Ctrl-C ends it.",
    )
    parser.add_argument("--port", type=_port, default=8545, help="of the chain, on 127.0.0.1 (default: %(default)s)")
    parser.add_argument(
        "--task", default="digits", metavar="NAME_OR_FILE", help="built-in data set, or a task file (default: digits)"
    )
    parser.add_argument("--members", type=int, default=3, help="how many peers it waits for (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("devchain"), help="where the task file goes (default: %(default)s/)"
    )
    parser.set_defaults(run=_devchain)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 (any that is free) to {2**16 - 1}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return int(text)


def _peer(arguments: list[str]) -> int:
    from p2pdfl import peer
    from p2pdfl.base.workers import leave

    leave(peer.main(arguments))


def _scenario(options: argparse.Namespace) -> int:
    from rich.console import Console

    from p2pdfl.scenario import namespaces, report, runner, spec

    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    try:
        path = spec.find(options.scenario)
        summary = runner.run(path, options.out, peer_entry=PEER_ENTRY, console=console, keep=options.keep)
    except spec.ScenarioError as error:
        return _complain(str(error), EXIT_USAGE)
    except namespaces.Unavailable as error:
        return _complain(f"skipped: {options.scenario} wants a network of its own: {error}", EXIT_SKIPPED)
    except runner.RunFailed as error:
        return _complain(str(error), EXIT_FAILED)
    report.print_verdict(console, options.out / summary.scenario, summary)
    return EXIT_OK if summary.ok else EXIT_NOT_AS_EXPECTED


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from p2pdfl.base import preflight
    from p2pdfl.verify.files import Unusable
    from p2pdfl.verify.findings import lines
    from p2pdfl.verify.verification import verify

    try:
        preflight.check()
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            rounds = progress.add_task("rounds", total=None)
            report = verify(
                options.directory,
                replays=options.replay,
                trust_code=options.trust_code,
                on_round=lambda done, total: progress.update(rounds, completed=done, total=total),
            )
    except (Unusable, preflight.BrokenInstall) as error:
        return _complain(str(error), EXIT_USAGE)
    if options.json:
        print(report.model_dump_json(indent=2))
    else:
        print("\n".join(lines(report)))
        print(
            f"{options.directory}: {'ok' if report.ok else 'NOT ok'}, {report.rounds} of {report.rounds_of_task} rounds"
        )
    return EXIT_OK if report.ok else EXIT_NOT_AS_EXPECTED


def _study(options: argparse.Namespace) -> int:
    from rich.console import Console

    from p2pdfl.base.task import TaskError
    from p2pdfl.study import command
    from p2pdfl.study.runner import StudyFailed
    from p2pdfl.study.spec import StudyError

    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    try:
        directory = command.run(
            options.study, options.out, processes=options.processes, fresh=options.fresh, console=console
        )
    except (StudyError, TaskError) as error:
        return _complain(str(error), EXIT_USAGE)
    except StudyFailed as error:
        return _complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain("stopped; the same command goes on where this left off", EXIT_INTERRUPTED)
    for file in ("results.csv", "accuracy.png"):
        if (directory / file).exists():
            print(f"  {directory / file}")
    return EXIT_OK


def _audits(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from p2pdfl.protocol import audit_economics

    title = f"{options.peers} peers, {options.byzantine} of them Byzantine"
    table = Table(*audit_economics.HEADINGS, title=title, title_justify="left")
    try:
        for fraction in options.audit_fraction or AUDIT_FRACTIONS:
            audits = audit_economics.Audits(peers=options.peers, byzantine=options.byzantine, audit_fraction=fraction)
            table.add_row(*audit_economics.cells(audits))
    except ValueError as error:
        return _complain(str(error), EXIT_USAGE)
    Console().print(table)
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    if not (options.home or options.task or options.bootstrap or options.listen):
        return _complain("doctor needs something to examine: --home, --task, --bootstrap or --listen", EXIT_USAGE)
    from p2pdfl.doctor import command
    from p2pdfl.doctor.examination import Options

    well = command.run(
        Options(
            home=options.home,
            task=options.task,
            bootstrap=options.bootstrap,
            listen=options.listen,
            announce=options.announce,
        ),
        as_json=options.json,
    )
    return EXIT_OK if well else EXIT_NOT_AS_EXPECTED


def _devchain(options: argparse.Namespace) -> int:
    from p2pdfl.base.task import TaskError
    from p2pdfl.scenario import devnet

    try:
        devnet.serve(task=options.task, members=options.members, port=options.port, out=options.out)
    except TaskError as error:
        return _complain(str(error), EXIT_USAGE)
    except devnet.NotServed as error:
        return _complain(str(error), EXIT_FAILED)
    return EXIT_OK


def _complain(text: str, code: int) -> int:
    print(f"p2pdfl: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
