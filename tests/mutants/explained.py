"""Random mutants that survive and may: what they change makes no difference, or none that a test should fix."""

from __future__ import annotations

EXPLAINED: dict[tuple[str, str], str] = {}
"""The line as it is and as the mutant has it -> why."""
