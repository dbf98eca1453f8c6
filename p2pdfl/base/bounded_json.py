"""JSON from outside: parsed only if it is not nested deeply.

`json` recurses and trusts the interpreter's recursion limit to stop it; py_ecc, which web3 and py-evm import, sets that
to 100 000, where 100 KB of "[" overflow the C stack and kill the process.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_MAX = 32
"""JSON-RPC needs about 6."""

# An unfinished string takes the rest: were it tried again from each quote inside, that would cost O(n^2).
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)


def loads(data: bytes) -> Any:
    """Raises ValueError."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise ValueError("nested too deeply")
        elif first in b"]}":
            depth -= 1
    return json.loads(data)
