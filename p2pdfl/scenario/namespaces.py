"""Network namespaces without names: each lives as long as a process is in it or a descriptor of it is open, so none
stays behind however a run ends."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CLONE_NEWNET = 0x4000_0000
OWN = "/proc/thread-self/ns/net"

TUN = "/dev/net/tun"
TUNSETIFF = 0x4004_54CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
"""Packets as they are, without four bytes before them."""

COMMAND_S = 10.0


class Unavailable(Exception):
    """This machine, or this user, cannot have such a network; what is missing, in words."""


class CommandFailed(Exception):
    """ip, tc or nft refused, with what it said."""


def create() -> int:
    """A new namespace, as a descriptor of it.  The calling thread stays where it is.  Raises Unavailable."""
    with _coming_back():
        try:
            _call("unshare", CLONE_NEWNET)
        except PermissionError:
            raise Unavailable("network namespaces need root (CAP_SYS_ADMIN)") from None
        return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


def path_of(namespace: int) -> str:
    """By which another process of this user may enter it."""
    return f"/proc/{os.getpid()}/fd/{namespace}"


def enter(path: str) -> None:
    """The calling thread, and all that it starts from now on, for good."""
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", namespace, CLONE_NEWNET)
    finally:
        os.close(namespace)


@contextmanager
def inside(path: str) -> Iterator[None]:
    """What the calling thread opens here belongs to that namespace."""
    with _coming_back():
        enter(path)
        yield


def run(path: str, command: Sequence[str], text: str = "") -> None:
    """A command inside a namespace, with text as its input.  Raises CommandFailed."""
    with inside(path):
        done = subprocess.run(list(command), input=text, capture_output=True, text=True, timeout=COMMAND_S)
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)}: {' '.join((done.stderr or done.stdout).split())[:300]}")


def open_tun(path: str, name: str) -> int:
    """A device of that name inside the namespace: what is sent out through it is read from the descriptor, and what is
    written there arrives on it.  Raises Unavailable."""
    with inside(path):
        try:
            device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        except OSError as error:
            raise Unavailable(f"{TUN}: {error.strerror}; a delay needs it where the kernel has no netem") from None
    return device


@contextmanager
def _coming_back() -> Iterator[None]:
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)


def _call(function: str, *arguments: int) -> None:
    """os.setns and os.unshare are there from Python 3.12 on."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
