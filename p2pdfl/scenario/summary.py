"""What came of a run: the peers' records and the chain's events -> Summary, with every expectation judged.

Who was caught is taken from the bans that honest peers saw in certified heads; who was slashed and what is anchored,
from the chain alone.  Pure: nothing is read or written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from p2pdfl.base import params
from p2pdfl.byzantine.machine import UPDATE_BEHAVIOURS
from p2pdfl.protocol.audit_economics import Audits
from p2pdfl.scenario.aftermath import Aftermath, aftermaths, caught_up_s, noticed_s
from p2pdfl.scenario.course import Course
from p2pdfl.scenario.events import SECONDS, Ban, PeerRecord, RoundClosed
from p2pdfl.scenario.faults import Cut, Outage, Strike
from p2pdfl.scenario.judge import (
    accusations_of,
    bans_of,
    judge,
    judge_cuts,
    judge_faults,
    judge_members,
    judge_noticed,
    judge_outages,
)
from p2pdfl.scenario.rows import AnchorRow, AuditsRow, BanRow, Expectation, PeerRow, Row, SlashRow
from p2pdfl.scenario.spec import Conditions, Scenario


class Summary(Row):
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
    course: Course | None = None,
    network: str = "loopback",
) -> Summary:
    """problems: what went wrong with the run itself (a stall, an interruption); any makes it not ok."""
    honest = [record for record in records if record.name not in scenario.behaviours]
    finished = [record for record in honest if record.result is not None]
    # Honest peers agree on a round's head; one may have closed it in a later view than another.
    closed = {line.round: line for record in honest for line in record.rounds.values()}
    bans = bans_of(honest)
    course = course or Course()
    after = aftermaths(scenario, records, strikes or {}, course)
    peers = [_peer_row(scenario, record, bans, slashes, records, after.get(record.name)) for record in records]
    expected = judge(scenario, records, anchors, slashes, problems=problems)
    expected += judge_members(records, honest, course)
    expected += judge_faults(after, [*cuts, *outages])
    expected += judge_noticed(scenario, peers)
    expected += judge_cuts(scenario, cuts)
    expected += judge_outages(scenario, outages, honest)
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
        accusations=len(accusations_of(honest)),
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


def _peer_row(
    scenario: Scenario,
    record: PeerRecord,
    bans: Mapping[str, Ban],
    slashes: Sequence[SlashRow],
    records: Sequence[PeerRecord],
    after: Aftermath | None,
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
    began_at = after.strike.began_at if after else None
    return PeerRow(
        name=record.name,
        address=record.address,
        behaviour=byzantine.behaviour if byzantine else None,
        from_round=byzantine.from_round if byzantine else None,
        fault=None if fault is None else str(fault),
        struck_at=None if began_at is None else str(began_at),
        back_round=after.strike.ended_round if after and after.strike.ended_s is not None else None,
        missed_rounds=after.missed if after else [],
        noticed_s=noticed_s(after.strike, record, unstruck) if after else None,
        caught_up_s=caught_up_s(after.strike, record, unstruck) if after else None,
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
