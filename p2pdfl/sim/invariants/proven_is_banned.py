"""Whoever is proven to cheat is banned by the next round, once so many honest members hold the proof that no quorum
can do without them.

A member refuses a fresh proposal of a view below n that omits a proof which it held when the round opened, for as long
as the proof is timely (DESIGN 3.5, and bans; ADR 3).  Who restarts has lost its proofs, and may get them again or not:
so this is about those that were found after the last crash.
"""

from __future__ import annotations

from p2pdfl.base.params import quorum
from p2pdfl.base.types import Address, Round
from p2pdfl.protocol.events import Closed, Notice
from p2pdfl.sim.invariants.history import History
from p2pdfl.sim.invariants.invariant import Invariant


class ProvenIsBanned(Invariant):
    def __init__(self, history: History) -> None:
        super().__init__(history)
        self._proofs: dict[Address, dict[int, list[tuple[Round, Round]]]] = {}
        """cheat -> peer -> (from which round on it insists, which round the proof is of)"""

    def on_notice(self, index: int, notice: Notice) -> None:
        history = self.history
        cheat = _proven_cheat(notice)
        if cheat is None or history.world.now_ms <= history.calm_ms:
            return
        proven_round = notice.fields["round"]
        assert isinstance(proven_round, int)
        holders = self._proofs.setdefault(cheat, {})
        holders.setdefault(index, []).append((history.world.state(index).round + 1, proven_round))

    def on_closed(self, index: int, closed: Closed) -> None:
        """Bans take effect from the next round on: they are those of the head before."""
        before = self.history.closed.get(closed.round - 1)
        if before is None:
            return
        members = self.history.lists[before.head.epoch]
        if before.certificate.view >= len(members):
            return
        for cheat in sorted(self._proofs.keys() - closed.banned):
            insisting = sum(
                self.history.world.addresses[holder] in members and self._insists(proofs, before.round)
                for holder, proofs in self._proofs[cheat].items()
            )
            if len(members) - insisting < quorum(len(members)):
                self.history.violated(
                    f"round {closed.round}: peer{index} has not banned 0x{cheat.hex()}, "
                    f"of which {insisting} of {len(members)} members had the proof before round {before.round}"
                )

    def _insists(self, proofs: list[tuple[Round, Round]], round: Round) -> bool:
        timely = self.history.world.task.verdict_rounds
        return any(from_round <= round <= proven + timely for from_round, proven in proofs)


def _proven_cheat(notice: Notice) -> Address | None:
    match notice.name, notice.fields.get("outcome"):
        case "equivocation", _:
            cheat = notice.fields["member"]
        case "verdict", "guilty" | "objective":
            cheat = notice.fields["accused"]
        case "verdict", "false":
            cheat = notice.fields["accuser"]
        case _:
            return None
    assert isinstance(cheat, str)
    return bytes.fromhex(cheat[2:])
