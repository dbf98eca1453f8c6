"""Random mutants that survive and may: what they change makes no difference, or none that a test should fix."""

from __future__ import annotations

EXPLAINED: dict[tuple[str, str], str] = {
    (
        "if justified is None:",
        "if False:",
    ): "each view before has its certificate when a member enters one; None takes more than VIEW_COUNT_MAX skips",
    (
        "update = None if closed is None else closed.updates_by_address().get(author)",
        "update = None if False else closed.updates_by_address().get(author)",
    ): "a case lapses before the round that it audits leaves the history",
    (
        'context.state[place] = int.from_bytes(state[4 * place : 4 * place + 4], "big")',
        'context.state[place] = int.from_bytes(state[3 * place : 4 * place + 4], "big")',
    ): "ctypes keeps the low 32 bits, which are the same four bytes",
    (
        "is_known = is_own and self._signing.has_signed(packet)",
        "is_known = self._signing.has_signed(packet)",
    ): "what it has signed itself is its own; the first half saves a look",
    (
        "self.is_settled = True",
        "self.is_settled = False",
    ): "it is looked again, in vain: `is_settled` only saves time",
    (
        "found[count] += weight * _drawn(peers - 1, byzantine, truthful, count)",
        "found[count] += weight * _drawn(peers - 1, truthful, byzantine, count)",
    ): "the hypergeometric distribution is symmetric in what is marked and what is drawn",
}
"""The line as it is and as the mutant has it -> why."""
