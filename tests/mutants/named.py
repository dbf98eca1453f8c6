"""Mutants that stand for a property each: what an attacker could do if the line were not there.

All must be killed.  `old` is somewhere in `protocol/` or `crypto/`, once; what it becomes may be nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Named:
    name: str
    old: str
    new: str

    def find(self, tree: Path, paths: list[str]) -> str:
        """The module that it changes.  Raises Gone."""
        places = [path for path in paths if self.old in (tree / path).read_text()]
        if len(places) != 1 or (tree / places[0]).read_text().count(self.old) != 1:
            raise Gone(
                f"{self.name}: its lines are in {places or 'no module'}, once is needed; change named.py with the code"
            )
        return places[0]


class Gone(Exception):
    """The lines that it changes have changed themselves."""


NAMED = (
    Named(
        "dealing: one random weight for all holders",
        "weights = [group.random_weight(entropy) for _ in range(holder_count)]",
        "weights = [group.random_weight(entropy)] * holder_count",
    ),
    Named(
        "share: one random weight for both equations",
        "a, b = group.random_weight(entropy), group.random_weight(entropy)",
        "a = b = group.random_weight(entropy)",
    ),
    Named(
        "dealing: a polynomial of any degree",
        "if len(dealing.response) != threshold:",
        "if not dealing.response:",
    ),
    Named(
        "dealing: the proof holds in every context",
        "return transcript.challenge(_DEALING_CHALLENGE, context, *encrypted_shares, *commitments)",
        "return transcript.challenge(_DEALING_CHALLENGE, *encrypted_shares, *commitments)",
    ),
    Named(
        "proposal: an overdue case may be left out",
        "        and required.losers <= banned\n",
        "",
    ),
    Named(
        "proposal: a COMMIT that was here in time may be left out",
        "        required.members <= {member for member, _ in commit_keys(contents)}\n        and promised",
        "        promised",
    ),
    Named(
        "vote: what it rests on is not kept",
        """            outputs.append(
                KeepNotarized(
                    certificate=self._agreement.notarizations[view], packets=self._proposals.packets_of(propose)
                )
            )
""",
        "",
    ),
    Named(
        "vote: for a head that cannot be computed here",
        "if propose is None or not self._proposals.is_held(propose):",
        "if propose is None:",
    ),
    Named(
        "vote: a view that was left is closed later",
        "        self.close_signed.add(self.view)\n        self.view += 1\n",
        "        self.view += 1\n",
    ),
    Named(
        "vote: a certificate of one vote less",
        "len(signers) < epoch.quorum or",
        "len(signers) < epoch.quorum - 1 or",
    ),
    Named(
        "accusation: none is ever accepted",
        "if not is_case(accused_case(envelope, payload, sender), self._assignment(envelope.round)):",
        "if True:",
    ),
    Named(
        "accusation: nobody replays it",
        "return [*outputs, *self._replay(case)]",
        "return outputs",
    ),
    Named(
        "jury: jurors never judge",
        """        if me is None or is_party(entry, me):
            return []
        judge = Judge(""",
        """        return []
        judge = Judge(""",
    ),
    Named(
        "jury: its verdict is not filed",
        "        self._evidence_pool.file_verdict(proof)\n        return [\n",
        "        return [\n",
    ),
    Named(
        "jury: the accuser sits in it",
        "return member in (entry.accused, entry.accuser)",
        "return member == entry.accused",
    ),
    Named(
        "evidence: two bodies in one slot are none",
        "            self.file_equivocation(proof)\n        return proof\n",
        "            pass\n        return proof\n",
    ),
    Named(
        "evidence: one signature twice is proof",
        "if entry.body_low >= entry.body_high:",
        "if entry.body_low > entry.body_high:",
    ),
    Named(
        "next epoch: the banned are on its list",
        "excluded=absent | set(banned)",
        "excluded=absent",
    ),
    Named(
        "next epoch: whom the choosing head itself bans is on its list",
        "banned = self._context.banned | self._evidence_pool.bans(contents).keys()",
        "banned = self._context.banned",
    ),
    Named(
        "next epoch: the absent are on its list",
        "excluded=absent | set(banned)",
        "excluded=set(banned)",
    ),
    Named(
        "next epoch: the exiting are on its list",
        "if not entry.exiting and entry.address not in excluded",
        "if entry.address not in excluded",
    ),
    Named(
        "next epoch: chosen by a block older than the last one",
        "if snapshot is None or snapshot.number < self.snapshots[self.block].number:",
        "if snapshot is None:",
    ),
    Named(
        "slot: signed again with another body",
        "            self._signed[slot] = packet\n",
        "",
    ),
    Named(
        "slot: a lost store goes unnoticed",
        "            self._signing.mute(self._epochs.latest_number())\n",
        "            pass\n",
    ),
)
