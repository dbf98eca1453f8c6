"""Compile the contract into the artefact that the package carries.

`python contracts/build.py` writes it; with `--check` it only says whether the committed one is what the source gives.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import vyper
from vyper.compiler import compile_code

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "contracts" / "P2PDFL.vy"
ARTEFACT = ROOT / "p2pdfl" / "chain" / "P2PDFL.json"


def compile_artefact() -> str:
    # a fixed path: the compiler puts it into what it hashes and reports
    output: dict[str, Any] = compile_code(
        SOURCE.read_text(encoding="utf-8"),
        contract_path=SOURCE.name,
        output_formats=["abi", "bytecode", "bytecode_runtime"],
    )
    artefact = {
        "compiler": f"vyper {vyper.__version__}",
        "abi": output["abi"],
        "bytecode": output["bytecode"],
        "runtime": output["bytecode_runtime"],
    }
    return json.dumps(artefact, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: build.py [--check]", file=sys.stderr)
        return 2
    compiled = compile_artefact()
    if not arguments:
        ARTEFACT.write_text(compiled, encoding="utf-8")
        print(f"wrote {ARTEFACT.relative_to(ROOT)}")
    elif not ARTEFACT.exists() or ARTEFACT.read_text(encoding="utf-8") != compiled:
        print(
            f"{ARTEFACT.relative_to(ROOT)} is not what {SOURCE.name} compiles to; run `make contracts`", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
