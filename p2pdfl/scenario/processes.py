"""The processes of a run: one per peer, forked from a server that has imported torch once; the chain beside them.

A peer's process is what `python -m p2pdfl.peer` is: the same entry point, the same arguments, its own session.  It ends
when the runner's process ends, however that ends.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from p2pdfl.base.task import Task
from p2pdfl.scenario import namespaces
from p2pdfl.scenario.halt import Halts
from p2pdfl.scenario.spec import OutageKind

STOP_S = 5.0
"""Between asking a process to end and killing it."""
CHAIN_START_S = 60.0
CHAIN_LISTEN_S = 15.0
MEASURE_S = 120.0

LAZY_IMPORTS = ("p2pdfl.node.lifecycle", "p2pdfl.chain.devchain")
"""What a peer and the chain import on first use: seconds of processor time that each would spend."""

_GO_AWAY, _COME_BACK = "go away", "come back"
"""What the chain's process is told; a list names network namespaces to listen in."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ProcessFailed(Exception):
    """A process that the run cannot do without has ended, with the reason it gave."""


class PeerForge:
    """Starts peers.  entry: "package.module:function", a function of argv that returns an exit code."""

    def __init__(self, entry: str) -> None:
        self._entry = entry
        # Many peers share few cores: one thread each, decided before the libraries load.
        for variable in _ONE_THREAD:
            os.environ.setdefault(variable, "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([entry.partition(":")[0], *LAZY_IMPORTS])

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        namespace: str | None = None,
        halts: Halts | None = None,
    ) -> BaseProcess:
        """log: where the process's standard output and error go.  namespace: the network that it sees."""
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(
            name=name, target=_run_peer, args=(self._entry, list(arguments), str(log), namespace, halts), daemon=True
        )
        process.start()
        return process

    def measure(self, task: Task) -> Task:
        """`learning.learner.measure`, where torch is loaded already.  Raises ProcessFailed."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(name="measure", target=_measure, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()
        try:
            measured = receive(ours, "measuring the task", MEASURE_S)
        finally:
            stop([process])
        assert isinstance(measured, Task)
        return measured


class ChainProcess:
    """The embedded chain in a process of its own, so that it shares no interpreter lock with a peer."""

    def __init__(self) -> None:
        # from the peers' server, if there is one: it has most of what the chain imports
        context = multiprocessing.get_context("forkserver")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(name="devchain", target=_serve_chain, args=(theirs,), daemon=True)
        self._process.start()
        self._stopped: Stopped | None = None
        theirs.close()

    def url(self) -> str:
        """Waits until it listens.  Raises ProcessFailed."""
        url = receive(self._ours, "the embedded chain", CHAIN_START_S)
        assert isinstance(url, str)
        return url

    def listen_in(self, network_namespaces: Sequence[str]) -> None:
        """The same url answers in those too.  Raises ProcessFailed."""
        self._tell(list(network_namespaces))

    def go_away(self, kind: OutageKind) -> None:
        """Out of reach until `come_back`.  Raises ProcessFailed."""
        if kind == "hang":
            self._stopped = Stopped(self._process)
        else:
            self._tell(_GO_AWAY)

    def come_back(self) -> None:
        """Raises ProcessFailed."""
        if not self._go_on():
            self._tell(_COME_BACK)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self._go_on()
        self._ours.close()
        stop([self._process])

    def _go_on(self) -> bool:
        """Whether it was stopped."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.go_on()
        return stopped is not None

    def _tell(self, what: list[str] | str) -> None:
        try:
            self._ours.send(what)
        except OSError:
            raise ProcessFailed("the embedded chain: its process has ended") from None
        receive(self._ours, "the embedded chain", CHAIN_LISTEN_S)


class Stopped:
    """A process by SIGSTOP, until `go_on` or the end of this one, however that ends: it could not follow it."""

    def __init__(self, process: BaseProcess) -> None:
        self._waker = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -CONT "$0"', str(process.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        send(process, signal.SIGSTOP)

    def go_on(self) -> None:
        self._waker.communicate()


def stop(processes: Sequence[BaseProcess], *, patience_s: float = STOP_S) -> None:
    """Asks all to end, waits for them together, kills who has not.  Those that ended already are left alone."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline_s = time.monotonic() + patience_s
    try:
        for process in processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def send(process: BaseProcess, number: signal.Signals) -> bool:
    """False if it has ended."""
    # is_alive also reaps: until then nobody else can get the process id
    if process.pid is None or not process.is_alive():
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
    return True


def _run_peer(entry: str, arguments: list[str], log: str, namespace: str | None, halts: Halts | None) -> None:
    _write_to(log)
    if namespace is not None:
        namespaces.enter(namespace)  # first of all: threads see the network of the one that starts them
    live_as_long_as_the_runner()
    if halts is not None:
        halts.arm()
    module, _, function = entry.partition(":")
    main: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    # As an interpreter would end: the traceback in the log, and the code that `python -m` would give.
    sys.exit(main(arguments))


def _measure(answer: Connection, task: Task) -> None:
    live_as_long_as_the_runner()
    from p2pdfl.learning.learner import measure

    _answer(answer, lambda: measure(task))


def _serve_chain(answer: Connection) -> None:
    live_as_long_as_the_runner()
    from p2pdfl.chain.devchain import devchain

    try:
        with devchain(port=0) as chain:
            answer.send(("ok", chain.url))
            while True:
                match answer.recv():
                    case str(told) if told == _GO_AWAY:
                        chain.go_away()
                    case str():
                        chain.come_back()
                    case paths:
                        for path in paths:
                            with namespaces.inside(path):
                                chain.listen_here_too()
                answer.send(("ok", None))
    except EOFError:
        return  # the runner needs it no longer
    except Exception:  # noqa: BLE001  the parent has to hear of whatever it was
        answer.send(("failed", traceback.format_exc()))


def _answer(answer: Connection, work: Callable[[], Any]) -> None:
    try:
        result = ("ok", work())
    except Exception:  # noqa: BLE001  the parent has to hear of whatever it was
        result = ("failed", traceback.format_exc())
    answer.send(result)


def receive(ours: Connection, what: str, timeout_s: float) -> object:
    """What another process answers, ("ok", value) or ("failed", why).  Raises ProcessFailed."""
    if not ours.poll(timeout_s):
        raise ProcessFailed(f"{what}: no answer within {timeout_s:.0f} s")
    try:
        outcome, value = ours.recv()
    except (EOFError, ConnectionError):
        raise ProcessFailed(f"{what}: its process ended without an answer") from None
    if outcome != "ok":
        raise ProcessFailed(f"{what}: {value}")
    return value


def _write_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def live_as_long_as_the_runner() -> None:
    """Its own session, so that Ctrl-C reaches the runner alone; but no orphan when the runner is killed."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="follow the runner", daemon=True).start()
