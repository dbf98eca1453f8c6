"""A run held against what its scenario states, and against what every run must show.

What a fault must lead to follows from where it struck and what was closed meanwhile (`aftermath`, `course`), not from
what the scenario meant by it; a fault that came to nothing is itself not as expected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from p2pdfl.scenario.aftermath import Aftermath
from p2pdfl.scenario.course import Course
from p2pdfl.scenario.events import Accusation, AnchorSent, Ban, BeaconKnown, Members, PeerRecord
from p2pdfl.scenario.faults import Cut, Outage, Span
from p2pdfl.scenario.rows import AnchorRow, Expectation, PeerRow, SlashRow
from p2pdfl.scenario.spec import Scenario


def judge(
    scenario: Scenario,
    records: Sequence[PeerRecord],
    anchors: Sequence[AnchorRow],
    slashes: Sequence[SlashRow],
    *,
    problems: Sequence[str] = (),
) -> list[Expectation]:
    """The scenario's expectations, and what every run must show."""
    honest = [record for record in records if record.name not in scenario.behaviours]
    killed = {name for name, fault in scenario.faults_by_name.items() if fault.is_for_good}
    unharmed = [record for record in honest if record.name not in killed]
    finished = [record for record in honest if record.result is not None]
    expected = scenario.expected
    items = [_equal("the run went through", [], list(problems))]
    items += _judge_catches(scenario, records, slashes)
    items += _judge_agreement(finished, honest, anchors)

    count_min = expected.finished_peers_min
    if count_min is None:
        unfinished = [record.name for record in unharmed if record.result is None]
        items.append(_equal("honest peers that did not reach the end", [], unfinished))
    else:
        items.append(_at_least("honest peers that reached the end", count_min, len(finished)))
    anchors_min = scenario.task.epoch_count if expected.anchors_min is None else expected.anchors_min
    items.append(_at_least("anchored epochs", anchors_min, len(anchors)))
    in_order = [row.epoch for row in anchors]
    items.append(_equal("epochs in the order of their anchors, each once", list(range(len(anchors))), in_order))

    accuracies = [record.result.accuracy for record in finished if record.result and record.result.accuracy is not None]
    accuracy = median(accuracies) if accuracies else None
    if expected.accuracy_min is not None:
        items.append(_at_least("final accuracy", expected.accuracy_min, accuracy))
    if expected.accuracy_max is not None:
        items.append(_at_most("final accuracy", expected.accuracy_max, accuracy))
    if expected.accusations_max is not None:
        items.append(_at_most("accusations", expected.accusations_max, len(accusations_of(honest))))
    if expected.all_commit_at_end:
        last_round = scenario.task.total_rounds - 1
        commits = next((record.rounds[last_round].commits for record in honest if last_round in record.rounds), None)
        items.append(_equal("COMMITs in the last round", len(records), commits))
    return items


def _judge_catches(scenario: Scenario, records: Sequence[PeerRecord], slashes: Sequence[SlashRow]) -> list[Expectation]:
    honest = [record for record in records if record.name not in scenario.behaviours]
    bans = bans_of(honest)
    items = []
    for name, evidence in scenario.expected.caught.items():
        address = next(record.address for record in records if record.name == name)
        ban = bans.get(address or "")
        items.append(_equal(f"{name} is caught: evidence", evidence, ban.evidence if ban else None))
        on_chain = sorted({slash.evidence for slash in slashes if slash.member == address and slash.wei > 0})
        items.append(
            Expectation(
                what=f"{name} is slashed on chain: evidence",
                expected=evidence,
                seen=on_chain,
                held=evidence in on_chain,
            )
        )
    others = [
        record.name
        for record in records
        if record.name in scenario.behaviours and record.name not in scenario.expected.caught and record.address in bans
    ]
    items.append(_equal("other Byzantine peers banned", [], others))
    banned = [record.name for record in honest if record.address in bans]
    items.append(_at_most("honest peers banned", scenario.expected.honest_banned_max, len(banned)))
    slashed = sorted(
        record.name for record in honest if any(slash.member == record.address and slash.wei > 0 for slash in slashes)
    )
    items.append(_at_most("honest peers slashed", scenario.expected.honest_banned_max, len(slashed)))
    return items


def judge_noticed(scenario: Scenario, peers: Sequence[PeerRow]) -> list[Expectation]:
    noticed_s_max = scenario.expected.noticed_s_max
    if noticed_s_max is None:
        return []
    return [
        _at_most(f"{row.name}'s fault is noticed by all others: seconds", noticed_s_max, row.noticed_s)
        for row in peers
        if row.fault is not None
    ]


def judge_cuts(scenario: Scenario, cuts: Sequence[Cut]) -> list[Expectation]:
    expected, items = scenario.expected, []
    for number, cut in enumerate(cuts):
        what = "rounds closed while the network was cut" + ("" if len(cuts) == 1 else f" ({number + 1})")
        closed = None if cut.ended_s is None else len(cut.rounds_closed)
        if expected.closed_while_cut_min is not None:
            items.append(_at_least(what, expected.closed_while_cut_min, closed))
        if expected.closed_while_cut_max is not None:
            items.append(_at_most(what, expected.closed_while_cut_max, closed))
    return items


def judge_outages(scenario: Scenario, outages: Sequence[Outage], honest: Sequence[PeerRecord]) -> list[Expectation]:
    expected, items = scenario.expected, []
    for number, outage in enumerate(outages):
        which = "" if len(outages) == 1 else f" ({number + 1})"
        if expected.closed_in_outage_min is not None:
            what = f"rounds closed while the chain was out of reach{which}"
            closed = None if outage.ended_s is None else len(outage.rounds_closed)
            items.append(_at_least(what, expected.closed_in_outage_min, closed))
        if expected.anchored_s_max is not None:
            bound, seen = expected.anchored_s_max, anchored_s(scenario, outage, honest)
            held = bool(seen) and all(second is not None and 0 <= second <= bound for second in seen.values())
            what = f"anchors of the epochs that ended in the outage{which}: epoch, seconds after it"
            items.append(Expectation(what=what, expected=f"0 to {bound:g}", seen=seen, held=held))
    return items


def anchored_s(scenario: Scenario, outage: Outage, honest: Sequence[PeerRecord]) -> dict[int, float | None]:
    """Seconds from the outage's end until the first told of its anchor, for each epoch that ended in it."""
    found: dict[int, float | None] = {}
    for epoch in range(scenario.task.epoch_count):
        if outage.ended_s is not None and scenario.task.last_round_of(epoch) in outage.rounds_closed:
            sent_s = [at_s for record in honest for at_s, line in record.timed(AnchorSent) if line.epoch == epoch]
            found[epoch] = round(min(sent_s) - outage.ended_s, 3) if sent_s else None
    return found


def _judge_agreement(
    finished: Sequence[PeerRecord], honest: Sequence[PeerRecord], anchors: Sequence[AnchorRow]
) -> list[Expectation]:
    digests = {record.result.state for record in finished if record.result}
    items = [_equal("model digests among honest peers", 1, len(digests))]
    strangers = [
        f"{record.name}: round {anchor.round}"
        for anchor in anchors
        for record in finished
        if record.result
        and anchor.round >= record.result.first_round
        and record.result.heads.get(anchor.round) != anchor.head
    ]
    items.append(_equal("anchored heads that differ from an honest peer's", [], strangers))

    heads: dict[int, set[str]] = {}
    beacons: dict[int, set[str]] = {}
    for record in honest:
        for line in record.rounds.values():
            heads.setdefault(line.round, set()).add(line.head)
        for beacon in record.all(BeaconKnown):
            beacons.setdefault(beacon.round, set()).add(beacon.value)
    items.append(_equal("rounds that honest peers closed with different heads", [], _split(heads)))
    items.append(_equal("rounds in which honest peers saw different beacons", [], _split(beacons)))
    return items


def judge_members(records: Sequence[PeerRecord], honest: Sequence[PeerRecord], course: Course) -> list[Expectation]:
    """The lists of all epochs after the first, as honest peers told of them, against the protocol's rule."""
    told: dict[int, set[frozenset[str]]] = {}
    for record in honest:
        for line in record.all(Members):
            told.setdefault(line.epoch, set()).add(frozenset(line.addresses))
    told.pop(0, None)
    by_rule = {epoch: {members} for epoch, members in course.members.items() if epoch > 0}
    if not told and not by_rule:
        return []
    epochs = range(1, max(told.keys() | by_rule.keys()) + 1)
    expected, seen = (_left_out(records, epochs, lists) for lists in (by_rule, told))
    what = "peers that are no members, from which epoch on"
    return [Expectation(what=what, expected=expected, seen=seen, held=told == by_rule)]


def _left_out(
    records: Sequence[PeerRecord], epochs: Iterable[int], lists: Mapping[int, Collection[Collection[str]]]
) -> dict[int, list[str]]:
    """Where that is not as in the epoch before.  Peers that any list of the epoch leaves out; and, marked as such,
    members that are no peers of this run."""
    found: dict[int, list[str]] = {}
    addresses, before = {record.address for record in records}, list[str]()
    for epoch in epochs:
        of_epoch = lists.get(epoch)
        if of_epoch is None:
            names = ["of no known list"]
        else:
            names = [record.name for record in records if any(record.address not in members for members in of_epoch)]
            names += [f"but {stranger}" for stranger in sorted(set().union(*of_epoch) - addresses)]
        if names != before:
            found[epoch] = names
        before = names
    return found


def judge_faults(aftermaths: Mapping[str, Aftermath], breaks: Sequence[Span]) -> list[Expectation]:
    """breaks: of what all peers use."""
    if not aftermaths and not breaks:
        return []
    nothing = [
        f"{name} {item.strike.fault}: {item.came_to_nothing}"
        for name, item in aftermaths.items()
        if item.came_to_nothing is not None
    ]
    for span in breaks:
        if span.ended_s is None:
            why = "nobody came so far" if span.began_s is None else "the run was over before it ended"
            nothing.append(f"{span}: {why}")
    impossible = [
        f"{name}: round {round}" for name, item in aftermaths.items() for round in item.named if round in item.away
    ]
    silent = [
        name
        for name, item in aftermaths.items()
        if item.came_to_nothing is None and item.due and not set(item.due).intersection(item.named)
    ]
    return [
        _equal("faults that came to nothing", [], nothing),
        _equal("COMMITs in heads of peers that were away", [], impossible),
        _equal("peers that were back and took no part any more", [], silent),
    ]


def _split(values: Mapping[int, set[str]]) -> list[int]:
    return sorted(round for round, seen in values.items() if len(seen) > 1)


def _equal(what: str, expected: Any, seen: Any) -> Expectation:
    return Expectation(what=what, expected=expected, seen=seen, held=seen == expected)


def _at_least(what: str, bound: float, seen: float | None) -> Expectation:
    return Expectation(what=what, expected=f">= {bound}", seen=seen, held=seen is not None and seen >= bound)


def _at_most(what: str, bound: float, seen: float | None) -> Expectation:
    return Expectation(what=what, expected=f"<= {bound}", seen=seen, held=seen is not None and seen <= bound)


def bans_of(honest: Sequence[PeerRecord]) -> dict[str, Ban]:
    """Banned address -> the first ban of it.  Honest peers agree on heads, hence on bans; heads are compared apart."""
    bans: dict[str, Ban] = {}
    for ban in sorted((ban for record in honest for ban in record.all(Ban)), key=lambda ban: ban.round):
        bans.setdefault(ban.member, ban)
    return bans


def accusations_of(honest: Sequence[PeerRecord]) -> set[tuple[int, str, str, int]]:
    return {
        (item.round, item.accuser, item.accused, item.audited_round)
        for record in honest
        for item in record.all(Accusation)
    }
