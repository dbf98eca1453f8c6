"""What came of a run: the peers' records and the chain's events -> Summary, with every expectation judged.

Who was caught is taken from the bans that honest peers saw in certified heads; who was slashed and what is anchored,
from the chain alone.  Pure: nothing is read or written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from pydantic import BaseModel, ConfigDict

from p2pdfl.base import params
from p2pdfl.byzantine.machine import UPDATE_BEHAVIOURS
from p2pdfl.protocol.audit_economics import Audits
from p2pdfl.scenario.events import (
    SECONDS,
    Accusation,
    AnchorSent,
    Ban,
    BeaconKnown,
    Lost,
    Members,
    PeerRecord,
    RoundClosed,
)
from p2pdfl.scenario.faults import Cut, Outage, Strike
from p2pdfl.scenario.spec import Conditions, Scenario


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class AnchorRow(_Row):
    epoch: int
    round: int
    head: str
    tx: str
    gas: int | None


class SlashRow(_Row):
    member: str
    wei: int
    evidence: str
    tx: str


class PeerRow(_Row):
    name: str
    address: str | None
    behaviour: str | None
    from_round: int | None
    fault: str | None
    noticed_s: float | None
    """From the fault until the last of the honest others that were at it or through had lost the connection to it."""
    caught_up_s: float | None
    """From the fault's end until this peer closed a round before any of the others had closed the next."""
    ended: str
    caught_round: int | None
    """Round whose head listed the verdict or the evidence."""
    evidence: str | None
    slashed_wei: int
    slash_tx: str | None


class BanRow(_Row):
    name: str
    round: int
    """Whose head listed the verdict or the evidence."""
    evidence: str
    auditor: str | None
    """Who found it; nobody in particular where it was no bad update."""
    audited_round: int | None
    verdict_round: int | None
    """In which the audit was made and judged."""


class AuditsRow(_Row):
    """What the formulas of `audit_economics` expect beside what came."""

    auditors: int
    chance: float
    """That a bad update is found."""
    byzantine: int
    """Who send bad updates."""
    rounds_expected: float
    """With audits, until all of these are found."""
    rounds: int | None
    """That it took; None if they were not all found."""


class Expectation(_Row):
    what: str
    expected: Any
    seen: Any
    held: bool


class Summary(_Row):
    scenario: str
    ok: bool
    network: str
    """What carried the peers' packets: loopback, a bridge or a relay."""
    conditions: Conditions | None
    """Between peers; none on loopback."""
    peers: list[PeerRow]
    honest_banned: int
    bans: list[BanRow]
    """In the order in which they came."""
    audits: AuditsRow | None
    """None where no formula fits: nobody sends bad updates, or not all in the same rounds, or not all collude."""
    accusations: int
    rounds: int
    late_rounds: int
    """Closed in a view after the first: the first leader was away, or too slow for the timers."""
    missing_commits: int
    """Summed over rounds: peers of which the head names no COMMIT."""
    final_accuracy: float | None
    model_digest: dict[str, str]
    """Per honest peer that reached the end: digest of model and outer optimizer after the last round."""
    anchors: list[AnchorRow]
    round_seconds: float | None
    """Median over honest peers and training rounds."""
    closing_round_seconds: float | None
    """The same over the rounds without training at the end."""
    seconds: dict[str, float]
    """Where peers' time went, summed over the honest ones."""
    bytes_sent_per_peer_per_round: int | None
    bytes_per_update: int | None
    """Mean over the updates in heads, as they were sent."""
    wall_seconds: float
    expected: list[Expectation]


def summarize(
    scenario: Scenario,
    records: Sequence[PeerRecord],
    anchors: Sequence[AnchorRow],
    slashes: Sequence[SlashRow],
    *,
    wall_seconds: float,
    problems: Sequence[str] = (),
    strikes: Mapping[str, Strike] | None = None,
    cuts: Sequence[Cut] = (),
    outages: Sequence[Outage] = (),
    network: str = "loopback",
) -> Summary:
    """problems: what went wrong with the run itself (a stall, an interruption); any makes it not ok."""
    honest = [record for record in records if record.name not in scenario.behaviours]
    finished = [record for record in honest if record.result is not None]
    # Honest peers agree on a round's head; one may have closed it in a later view than another.
    closed = {line.round: line for record in honest for line in record.rounds.values()}
    bans = _bans(honest)
    peers = [
        _peer_row(scenario, record, bans, slashes, records, (strikes or {}).get(record.name)) for record in records
    ]
    expected = judge(scenario, records, anchors, slashes, problems=problems)
    expected += _judge_faults(scenario, peers)
    expected += _judge_cuts(scenario, cuts)
    expected += _judge_outages(scenario, outages, honest)
    if scenario.expected.all_commit_at_end:
        last = closed.get(scenario.task.total_rounds - 1)
        expected.append(_equal("COMMITs in the last round", len(records), last.commits if last else None))
    accuracies = [record.result.accuracy for record in finished if record.result and record.result.accuracy is not None]
    per_round = [record.result.bytes_sent / max(1, record.result.rounds) for record in finished if record.result]
    return Summary(
        scenario=scenario.name,
        ok=all(item.held for item in expected),
        network=network,
        conditions=scenario.conditions,
        peers=peers,
        honest_banned=sum(1 for record in honest if record.address in bans),
        bans=_ban_rows(records, bans),
        audits=_audits(scenario, records, bans),
        accusations=len(_accusations(honest)),
        rounds=max((len(record.rounds) for record in honest), default=0),
        late_rounds=sum(line.view > 0 for line in closed.values()),
        missing_commits=sum(len(records) - line.commits for line in closed.values()),
        final_accuracy=median(accuracies) if accuracies else None,
        model_digest={record.name: record.result.state for record in finished if record.result},
        anchors=sorted(anchors, key=lambda row: row.epoch),
        round_seconds=_median_seconds(scenario, honest, training=True),
        closing_round_seconds=_median_seconds(scenario, honest, training=False),
        seconds={
            part: round(sum(record.result.seconds.get(part, 0.0) for record in finished if record.result), 3)
            for part in SECONDS
        },
        bytes_sent_per_peer_per_round=round(fmean(per_round)) if per_round else None,
        bytes_per_update=_bytes_per_update(closed.values()),
        wall_seconds=round(wall_seconds, 3),
        expected=expected,
    )


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

    if expected.members_at_end is not None:
        items.append(
            _equal("members of the last epoch", sorted(expected.members_at_end), _last_members(records, honest))
        )

    accuracies = [record.result.accuracy for record in finished if record.result and record.result.accuracy is not None]
    accuracy = median(accuracies) if accuracies else None
    if expected.accuracy_min is not None:
        items.append(_at_least("final accuracy", expected.accuracy_min, accuracy))
    if expected.accuracy_max is not None:
        items.append(_at_most("final accuracy", expected.accuracy_max, accuracy))
    if expected.accusations_max is not None:
        items.append(_at_most("accusations", expected.accusations_max, len(_accusations(honest))))
    return items


def _judge_catches(scenario: Scenario, records: Sequence[PeerRecord], slashes: Sequence[SlashRow]) -> list[Expectation]:
    honest = [record for record in records if record.name not in scenario.behaviours]
    bans = _bans(honest)
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


def _judge_faults(scenario: Scenario, peers: Sequence[PeerRow]) -> list[Expectation]:
    noticed_s_max = scenario.expected.noticed_s_max
    if noticed_s_max is None:
        return []
    return [
        _at_most(f"{row.name}'s fault is noticed by all others: seconds", noticed_s_max, row.noticed_s)
        for row in peers
        if row.fault is not None
    ]


def _judge_cuts(scenario: Scenario, cuts: Sequence[Cut]) -> list[Expectation]:
    expected, items = scenario.expected, []
    for number, cut in enumerate(cuts):
        what = "rounds closed while the network was cut" + ("" if len(cuts) == 1 else f" ({number + 1})")
        if expected.closed_while_cut_min is not None:
            items.append(_at_least(what, expected.closed_while_cut_min, cut.closed))
        if expected.closed_while_cut_max is not None:
            bound = expected.closed_while_cut_max
            held = cut.closed is not None and cut.closed <= bound
            items.append(Expectation(what=what, expected=f"<= {bound}", seen=cut.closed, held=held))
    return items


def _judge_outages(scenario: Scenario, outages: Sequence[Outage], honest: Sequence[PeerRecord]) -> list[Expectation]:
    expected, items = scenario.expected, []
    for number, outage in enumerate(outages):
        which = "" if len(outages) == 1 else f" ({number + 1})"
        if expected.closed_in_outage_min is not None:
            what = f"rounds closed while the chain was out of reach{which}"
            items.append(_at_least(what, expected.closed_in_outage_min, outage.closed))
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
            sent_s = [
                record.start_s + line.ms / 1000
                for record in honest
                for line in record.all(AnchorSent)
                if line.epoch == epoch
            ]
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


def _last_members(records: Sequence[PeerRecord], honest: Sequence[PeerRecord]) -> list[str]:
    """As honest peers told of the newest epoch; they agree on heads, hence on members."""
    names = {record.address: record.name for record in records}
    lists = [line for record in honest for line in record.all(Members)]
    newest = max(lists, key=lambda line: line.epoch, default=None)
    return [] if newest is None else sorted(names.get(address, address) for address in newest.addresses)


def _split(values: Mapping[int, set[str]]) -> list[int]:
    return sorted(round for round, seen in values.items() if len(seen) > 1)


def _bans(honest: Sequence[PeerRecord]) -> dict[str, Ban]:
    """Banned address -> the first ban of it.  Honest peers agree on heads, hence on bans; heads are compared apart."""
    bans: dict[str, Ban] = {}
    for ban in sorted((ban for record in honest for ban in record.all(Ban)), key=lambda ban: ban.round):
        bans.setdefault(ban.member, ban)
    return bans


def _ban_rows(records: Sequence[PeerRecord], bans: Mapping[str, Ban]) -> list[BanRow]:
    names = {record.address: record.name for record in records}
    return [
        BanRow(
            name=names.get(ban.member, ban.member),
            round=ban.round,
            evidence=ban.evidence,
            auditor=names.get(ban.accuser) if ban.accuser not in (None, ban.member) else None,
            audited_round=ban.audited_round,
            verdict_round=ban.verdict_round,
        )
        for ban in bans.values()
    ]


def _audits(scenario: Scenario, records: Sequence[PeerRecord], bans: Mapping[str, Ban]) -> AuditsRow | None:
    attackers = {name: entry for name, entry in scenario.behaviours.items() if entry.behaviour in UPDATE_BEHAVIOURS}
    schedules = {(entry.from_round, entry.every) for entry in attackers.values()}
    shielded = len(attackers) == 1 or all(entry.collude for entry in attackers.values())
    if len(schedules) != 1 or not shielded or not scenario.task.audit_fraction or len(attackers) == scenario.peers:
        return None
    ((from_round, every),) = schedules
    audits = Audits(peers=scenario.peers, byzantine=len(attackers), audit_fraction=scenario.task.audit_fraction)
    found = [bans[record.address or ""] for record in records if record.name in attackers and record.address in bans]
    verdict_rounds = [ban.verdict_round for ban in found if ban.verdict_round is not None]
    first = from_round + params.AUDIT_LAG
    return AuditsRow(
        auditors=audits.auditors,
        chance=audits.chance,
        byzantine=audits.byzantine,
        rounds_expected=audits.rounds_to_catch(every),
        rounds=max(verdict_rounds) - first + 1 if len(verdict_rounds) == len(attackers) else None,
    )


def _accusations(honest: Sequence[PeerRecord]) -> set[tuple[int, str, str, int]]:
    return {
        (item.round, item.accuser, item.accused, item.audited_round)
        for record in honest
        for item in record.all(Accusation)
    }


def noticed_s(strike: Strike, struck: PeerRecord, others: Sequence[PeerRecord]) -> float | None:
    """Seconds until all others had lost the peer.  None if one of them has not."""
    if strike.began_s is None:
        return None
    slowest_s = 0.0
    for other in others:
        times_s = [other.start_s + lost.ms / 1000 for lost in other.all(Lost) if lost.peer_id == struck.peer_id]
        after_s = [at_s - strike.began_s for at_s in times_s if at_s >= strike.began_s]
        if not after_s:
            return None
        slowest_s = max(slowest_s, min(after_s))
    return round(slowest_s, 3)


def caught_up_s(strike: Strike, struck: PeerRecord, others: Sequence[PeerRecord]) -> float | None:
    """Seconds from the strike's end until the peer closed a round before any of the others had closed the next."""
    if strike.ended_s is None:
        return None
    first_s: dict[int, float] = {}
    for other in others:
        for line in other.all(RoundClosed):
            first_s[line.round] = min(first_s.get(line.round, math.inf), other.start_s + line.ms / 1000)
    for line in struck.all(RoundClosed):
        at_s = struck.start_s + line.ms / 1000
        if at_s >= strike.ended_s and line.round + 1 in first_s and at_s < first_s[line.round + 1]:
            return round(at_s - strike.ended_s, 3)
    return None


def _peer_row(
    scenario: Scenario,
    record: PeerRecord,
    bans: Mapping[str, Ban],
    slashes: Sequence[SlashRow],
    records: Sequence[PeerRecord],
    strike: Strike | None,
) -> PeerRow:
    byzantine = scenario.behaviours.get(record.name)
    fault = scenario.faults_by_name.get(record.name)
    ban = bans.get(record.address or "")
    unstruck = [
        other
        for other in records
        if other.name not in scenario.faults_by_name and other.name not in scenario.behaviours and other.rounds
    ]
    own = [slash for slash in slashes if slash.member == record.address]
    return PeerRow(
        name=record.name,
        address=record.address,
        behaviour=byzantine.behaviour if byzantine else None,
        from_round=byzantine.from_round if byzantine else None,
        fault=None if fault is None else str(fault),
        noticed_s=noticed_s(strike, record, unstruck) if strike else None,
        caught_up_s=caught_up_s(strike, record, unstruck) if strike else None,
        ended=describe_end(record),
        caught_round=ban.round if ban else None,
        evidence=ban.evidence if ban else None,
        slashed_wei=sum(slash.wei for slash in own),
        slash_tx=own[0].tx if own else None,
    )


def describe_end(record: PeerRecord) -> str:
    if record.result is not None:
        return "finished"
    if record.exit_code is None:
        return "running"
    if record.exit_code < 0:
        return f"killed by signal {-record.exit_code}"
    return f"stopped with exit code {record.exit_code}"


def _bytes_per_update(rounds: Iterable[RoundClosed]) -> int | None:
    lines = list(rounds)
    count = sum(line.updates for line in lines)
    return round(sum(line.update_bytes for line in lines) / count) if count else None


def _median_seconds(scenario: Scenario, honest: Sequence[PeerRecord], *, training: bool) -> float | None:
    seconds = [
        line.seconds
        for record in honest
        for line in record.rounds.values()
        if (line.round < scenario.task.training_rounds) is training
    ]
    return round(median(seconds), 3) if seconds else None


def _equal(what: str, expected: Any, seen: Any) -> Expectation:
    return Expectation(what=what, expected=expected, seen=seen, held=seen == expected)


def _at_least(what: str, bound: float, seen: float | None) -> Expectation:
    return Expectation(what=what, expected=f">= {bound}", seen=seen, held=seen is not None and seen >= bound)


def _at_most(what: str, bound: float, seen: float | None) -> Expectation:
    return Expectation(what=what, expected=f"<= {bound}", seen=seen, held=seen is not None and seen <= bound)
