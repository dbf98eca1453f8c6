"""What can be seen on this machine alone: the installation, the home, the task file, the addresses to listen on."""

from __future__ import annotations

import errno
import os
import platform
import resource
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from multiaddr import Multiaddr

from p2pdfl.base import preflight
from p2pdfl.base.task import TaskError, TaskFile, load
from p2pdfl.doctor.finding import Finding, failed, ok, warning
from p2pdfl.net.addresses import ip_of, is_wildcard, port_of
from p2pdfl.net.libp2p import adapter
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.peers.probe import Failure, probe
from p2pdfl.node import status_file

OTHER_FILES = 64
"""Open files besides connections: store, event log, chain, libraries."""


def installation() -> Iterator[Finding]:
    try:
        preflight.check()
        adapter.check_version()
    except preflight.BrokenInstall as error:
        yield failed("installation", str(error), "repair it as said, then start again")
    except adapter.UnsupportedLibp2p as error:
        yield failed("installation", str(error), f"pip install libp2p=={adapter.LIBP2P_VERSION}")
    else:
        yield ok("installation", f"Python {platform.python_version()}, py-libp2p {adapter.LIBP2P_VERSION}")
    needed = Limits().connections_max + OTHER_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raisable = most == resource.RLIM_INFINITY or most >= needed
        yield warning(
            "open files",
            f"a process may open {allowed}, a peer with all its connections needs {needed}",
            f"ulimit -n {needed}, before the peer starts" if raisable else f"have the system's limit of {most} raised",
        )
    else:
        yield ok("open files", "unlimited" if allowed == resource.RLIM_INFINITY else f"{allowed} allowed")


def home(path: Path) -> Iterator[Finding]:
    if not path.is_dir():
        yield failed("home", f"{path}: no such directory", "give the --home that the peer was started with")
        return
    yield _key(path / "key")


def running(path: Path, others: int | None) -> Iterator[Finding]:
    """others: how many are registered besides this peer, None if the chain does not say."""
    found = status_file.of_running(path)
    if found is None:
        yield warning("peer", "none runs in this home", "start it with `p2pdfl peer`; what follows is seen without it")
        return
    connected = found.get("connected")
    count = len(connected) if isinstance(connected, list) else 0
    process = f"process {found['pid']} runs"
    if others == 0 and not count:
        yield ok("peer", f"{process}; nobody else is registered yet")
    elif not count:
        yield failed("peer", f"{process} and is connected to nobody", "the reason is among what follows")
    elif others is not None and count < others:
        yield warning("peer", f"{process} and is connected to {count} of {others} others", "see the members below")
    else:
        yield ok("peer", f"{process} and is connected to {count} {'other' if count == 1 else 'others'}")
    if isinstance(arithmetic := found.get("arithmetic"), str):
        yield ok("training", f"profile {found.get('profile')}: {arithmetic}")
    yield from _counters(found.get("counters"))


def _counters(counters: object) -> Iterator[Finding]:
    if not isinstance(counters, dict):
        return
    refused = {
        str(name): count
        for name, count in counters.items()
        if isinstance(count, int) and str(name).startswith(("refused", "contained"))
    }
    if refused:
        most = sorted(refused.items(), key=lambda entry: -entry[1])[:5]
        yield ok("refused", ", ".join(f"{name.partition(': ')[2] or name} {count} times" for name, count in most))
    if (attempts := counters.get("dials failed")) and isinstance(attempts, int):
        yield ok("dials", f"{counters.get('dials', 0)} worked, {attempts} failed")


def _key(path: Path) -> Finding:
    """Never opened: whoever has it is the peer."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return warning("key", f"{path}: none yet", "it is made when the peer first starts")
    except OSError as error:
        return failed("key", f"{path}: {error.strerror}", "make it readable for the peer's user")
    if not stat.S_ISREG(found.st_mode):
        return failed("key", f"{path}: is not a regular file", "put the key file itself there, not a link to it")
    if found.st_uid != os.geteuid():
        return failed("key", f"{path}: belongs to another user", "run peer and doctor as the key's owner")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return failed("key", f"{path}: others can read it", f"chmod 600 {shlex.quote(str(path))}")
    return ok("key", f"{path}: yours alone")


def task(path: Path) -> tuple[TaskFile | None, Finding]:
    try:
        file = load(path)
    except TaskError as error:
        return None, failed("task", str(error), "get the file that the task's publisher gave out")
    if file.chain is None or not file.task.is_measured:
        return None, failed("task", f"{path}: not published", "publish it; `p2pdfl devchain` does so on this machine")
    return file, ok(
        "task", f"{path}: {file.task.name}, profile {file.task.profile}, id {file.task.task_id().hex()[:16]}"
    )


async def listening(address: Multiaddr, own_id: bytes | None, *, timeout_s: float) -> Finding:
    """own_id: of the peer that may be listening there already."""
    ip, port = str(ip_of(address)), port_of(address)
    subject = f"listen {address}"
    problem = _bind(ip, port)
    if problem == errno.EADDRINUSE:
        loopback = "::1" if ":" in ip else "127.0.0.1"
        there = loopback if is_wildcard(address) else ip
        seen = await probe(Multiaddr(f"/ip{6 if ':' in there else 4}/{there}/tcp/{port}"), timeout_s=timeout_s)
        if seen.failure == Failure.NONE and seen.peer_id == own_id:
            return ok(subject, "this peer listens there")
        who = f"peer {seen.peer_id.decode()}" if seen.failure == Failure.NONE else "another program"
        return failed(subject, f"in use, by {who}", "end that one, or choose another port")
    if problem == errno.EADDRNOTAVAIL:
        return failed(
            subject,
            "not an address of this machine",
            f"listen on {'/ip6/::' if ':' in ip else '/ip4/0.0.0.0'}/tcp/{port}, which is all of its addresses, and "
            "--announce the one that others should dial",
        )
    if problem == errno.EACCES:
        return failed(subject, "this user may not use that port", "choose a port above 1023")
    if problem:
        return failed(subject, os.strerror(problem), "choose another address")
    if ip.startswith("127.") or ip == "::1":
        return warning(
            subject, "only this machine can dial it", f"for others: --listen /ip4/0.0.0.0/tcp/{port or 9000}"
        )
    if port == 0:
        return warning(
            subject, "another port at each start", "name a port, so that others find this peer again, and open it"
        )
    return ok(subject, "free")


def _bind(ip: str, port: int) -> int:
    """The error number, 0 if it can be had."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            own.bind((ip, port))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
