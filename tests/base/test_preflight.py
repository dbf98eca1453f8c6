"""The two ways in which an installation can be silently unsafe."""

from __future__ import annotations

import subprocess
import sys

import msgpack
import pytest

from p2pdfl.base import preflight


def test_this_installation_is_safe() -> None:
    preflight.check()


@pytest.mark.parametrize(
    "damage",
    [("version", (0, 5, 6)), ("Unpacker", type("Unpacker", (), {"__module__": "msgpack.fallback"}))],
    ids=["old version", "pure Python"],
)
def test_an_overwritten_msgpack_is_refused_with_the_repair(
    monkeypatch: pytest.MonkeyPatch, damage: tuple[str, object]
) -> None:
    monkeypatch.setattr(msgpack, *damage)
    with pytest.raises(preflight.BrokenInstall, match=r"pip install --force-reinstall --no-deps 'msgpack>=1\.1'"):
        preflight.check()


def test_a_gutted_msgpack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(msgpack, "Unpacker")
    monkeypatch.delattr(msgpack, "version")
    with pytest.raises(preflight.BrokenInstall, match="repair it with"):
        preflight.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["from p2pdfl.base import preflight; preflight.check()", "import p2pdfl.crypto.group"]
)
def test_python_without_assertions_is_refused(statement: str) -> None:
    finished = subprocess.run([sys.executable, "-O", "-c", statement], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "does not run under `python -O`" in finished.stderr


@pytest.mark.slow
def test_nested_values_from_outside_end_in_an_error_not_in_a_crash() -> None:
    """Importing the chain's libraries raises the recursion limit a hundredfold; the check puts it back."""
    program = "import sys, web3; from p2pdfl.base import preflight; preflight.check(); print(sys.getrecursionlimit())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == preflight.RECURSION_LIMIT
