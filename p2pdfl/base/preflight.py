"""Whether this Python can run p2pdfl safely; called once by every entry point, after its imports."""

from __future__ import annotations

import sys

import msgpack

RECURSION_LIMIT = 1_000
"""Python's own default.  The chain's libraries raise it to 100,000, where a deeply nested value from outside no longer
ends in a RecursionError but in a C stack overflow."""


class BrokenInstall(RuntimeError):
    """This Python must not run p2pdfl."""


def check() -> None:
    """Raises BrokenInstall with the command that repairs what is wrong."""
    sys.setrecursionlimit(RECURSION_LIMIT)
    if sys.flags.optimize:
        raise BrokenInstall("p2pdfl does not run under `python -O`: checks of proofs would vanish; start without -O")
    # petlib asks for `msgpack-python`, the old name of msgpack: some installers let it overwrite the new package with
    # version 0.5.6 in pure Python, while its metadata goes on claiming the new version.
    unpacker = getattr(getattr(msgpack, "Unpacker", None), "__module__", None)
    if getattr(msgpack, "version", (0,)) < (1,) or unpacker != "msgpack._cmsgpack":
        raise BrokenInstall(
            "msgpack was overwritten by msgpack-python; repair it with "
            f"`{sys.executable} -m pip install --force-reinstall --no-deps 'msgpack>=1.1'`"
        )
