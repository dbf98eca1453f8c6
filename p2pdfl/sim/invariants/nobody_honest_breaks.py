"""No honest process stops by itself: no input breaks the machine, and its own disk never forbids what it signs.

Everything from outside is checked first, and a refusal leaves the state as it was (docs/protocol.md 1).
"""

from __future__ import annotations

from p2pdfl.sim.invariants.invariant import Invariant


class NobodyHonestBreaks(Invariant):
    def on_broken(self, index: int, error: Exception) -> None:
        self.history.violated(f"peer{index} broke: {type(error).__name__}: {error}")
