from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pdfl.chain.contract import artefact

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_artefact_is_what_the_source_compiles_to() -> None:
    pytest.importorskip("vyper")
    checked = subprocess.run(
        [sys.executable, ROOT / "contracts" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_runtime_fits_a_contract() -> None:
    assert len(artefact().runtime) < 24_576 - 13 * 32  # EIP-170, with the immutables appended
