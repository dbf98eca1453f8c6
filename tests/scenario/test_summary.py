from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from p2pdfl.scenario.aftermath import caught_up_s, noticed_s
from p2pdfl.scenario.course import Course
from p2pdfl.scenario.events import Lost, PeerRecord
from p2pdfl.scenario.faults import Cut, Outage, Strike
from p2pdfl.scenario.rows import AnchorRow, AuditsRow, SlashRow
from p2pdfl.scenario.spec import ChainOutage, Fault, Partition, Scenario
from p2pdfl.scenario.summary import Summary, summarize
from scenario.runs import ADDRESSES, ANCHORS, ROUNDS, SLASHES, a_record, a_scenario, events_of, head, the_records


def summary_of(
    records: list[PeerRecord] | None = None,
    anchors: list[AnchorRow] = ANCHORS,
    slashes: list[SlashRow] = SLASHES,
    problems: Iterable[str] = (),
    **expected: Any,
) -> Summary:
    return summarize(
        a_scenario(**expected),
        the_records() if records is None else records,
        anchors,
        slashes,
        wall_seconds=12.5,
        problems=list(problems),
    )


def failures(summary: Summary) -> list[str]:
    assert summary.ok is not any(not item.held for item in summary.expected)
    return [item.what for item in summary.expected if not item.held]


def replaced(name: str, record: PeerRecord) -> list[PeerRecord]:
    return [record if other.name == name else other for other in the_records()]


def with_result(name: str, **changes: Any) -> list[PeerRecord]:
    record = a_record(name)
    assert record.result is not None
    record.result = record.result.model_copy(update=changes)
    return replaced(name, record)


def test_a_run_that_went_as_expected_is_ok() -> None:
    summary = summary_of(accuracy_min=0.9, accuracy_max=0.9, accusations_max=1)
    assert failures(summary) == []
    assert summary.ok


def test_the_summary_says_who_was_caught_and_what_it_cost_him() -> None:
    row = summary_of().peers[2]
    assert (row.name, row.behaviour, row.caught_round, row.evidence) == ("peer2", "sign_flip", 3, "guilty")
    assert (row.slashed_wei, row.slash_tx, row.ended) == (5 * 10**17, "0x03", "finished")
    assert [peer.behaviour for peer in summary_of().peers] == [None, None, "sign_flip", None]


def test_the_summary_says_of_each_ban_who_found_what_and_when() -> None:
    (ban,) = summary_of().bans
    assert (ban.name, ban.round, ban.evidence) == ("peer2", 3, "guilty")
    assert (ban.auditor, ban.audited_round, ban.verdict_round) == ("peer1", 1, 3)


def test_bans_come_in_the_order_of_their_rounds_and_only_a_bad_update_has_an_auditor() -> None:
    def more(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lied = {"accuser": ADDRESSES["peer3"], "audited_round": 5, "verdict_round": 7}
        return [
            *events,
            {"event": "ban", "round": 7, "member": ADDRESSES["peer3"], "evidence": "false", **lied},
            {"event": "ban", "round": 2, "member": ADDRESSES["peer0"], "evidence": "equivocation"},
        ]

    bans = summary_of(replaced("peer1", a_record("peer1", more))).bans
    assert [(ban.name, ban.auditor, ban.audited_round) for ban in bans] == [
        ("peer0", None, None),
        ("peer2", "peer1", 1),
        ("peer3", None, 5),
    ]


def audits_of(*byzantine: dict[str, Any], audit_fraction: float = 0.25) -> AuditsRow | None:
    told = a_scenario().model_dump()
    told["task"]["audit_fraction"] = audit_fraction
    scenario = Scenario.model_validate({**told, "byzantine": byzantine, "expected": {}})
    return summarize(scenario, the_records(), ANCHORS, SLASHES, wall_seconds=1.0).audits


def test_the_summary_has_the_formula_beside_the_run() -> None:
    """Who cheats alone is found by one of four auditors in four rounds; this one by the first, in round 1 + 2."""
    audits = audits_of({"peer": 2, "behaviour": "sign_flip", "from_round": 1})
    assert audits is not None
    assert (audits.auditors, audits.byzantine, audits.rounds) == (1, 1, 1)
    assert (audits.chance, audits.rounds_expected) == pytest.approx((0.25, 4))
    two = ({"peer": peer, "behaviour": "zero", "collude": True} for peer in (1, 2))
    audits = audits_of(*two)
    assert audits is not None
    assert (audits.byzantine, audits.rounds) == (2, None)  # peer1 was not found


@pytest.mark.parametrize(
    ("byzantine", "audit_fraction"),
    [
        ([], 0.25),
        ([{"peer": 2, "behaviour": "equivocate"}], 0.25),
        ([{"peer": 2, "behaviour": "zero"}], 0),
        ([{"peer": peer, "behaviour": "zero"} for peer in (1, 2)], 0.25),
        ([{"peer": peer, "behaviour": "zero", "collude": True, "from_round": peer} for peer in (1, 2)], 0.25),
        ([{"peer": peer, "behaviour": "zero", "collude": True} for peer in range(4)], 0.25),
    ],
)
def test_no_formula_is_shown_where_none_fits(byzantine: list[dict[str, Any]], audit_fraction: float) -> None:
    assert audits_of(*byzantine, audit_fraction=audit_fraction) is None


def test_the_summary_has_the_runs_figures() -> None:
    summary = summary_of()
    assert (summary.rounds, summary.final_accuracy, summary.accusations, summary.honest_banned) == (9, 0.9, 1, 0)
    assert (summary.round_seconds, summary.closing_round_seconds) == (2.0, 1.0)
    assert summary.seconds == {"train": 6.0, "audit": 0.0, "crypto": 3.0, "network_wait": 0.0, "chain": 0.0}
    assert summary.bytes_sent_per_peer_per_round == 1000
    assert summary.bytes_per_update == 1004  # 1000 in round 0, 1008 in round 8
    assert set(summary.model_digest) == {"peer0", "peer1", "peer3"}
    assert [(anchor.round, anchor.gas) for anchor in summary.anchors] == [(3, 90_000), (8, 80_000)]


def test_another_model_at_one_honest_peer_is_noticed() -> None:
    assert failures(summary_of(with_result("peer3", state=head(0)))) == ["model digests among honest peers"]


def test_what_a_byzantine_peer_says_of_its_model_does_not_matter() -> None:
    assert summary_of(with_result("peer2", state=head(0), accuracy=0.0)).ok


def test_an_anchored_head_that_honest_peers_do_not_have_is_noticed() -> None:
    anchors = [ANCHORS[0].model_copy(update={"head": head(99)}), ANCHORS[1]]
    assert failures(summary_of(anchors=anchors)) == ["anchored heads that differ from an honest peer's"]


def test_who_joined_from_a_checkpoint_has_the_anchored_heads_since_then_only() -> None:
    later = {round: head(round) for round in range(4, ROUNDS)}
    assert failures(summary_of(with_result("peer1", first_round=4, heads=later))) == []
    del later[8]
    unlike = ["anchored heads that differ from an honest peer's"]
    assert failures(summary_of(with_result("peer1", first_round=4, heads=later))) == unlike
    assert failures(summary_of(with_result("peer1", heads=later))) == unlike


def test_a_missing_anchor_is_noticed_unless_the_scenario_allows_it() -> None:
    assert failures(summary_of(anchors=ANCHORS[:1])) == ["anchored epochs"]
    assert summary_of(anchors=ANCHORS[:1], anchors_min=1).ok


def test_a_cheater_who_is_not_banned_is_noticed() -> None:
    def without_bans(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] != "ban"]

    records = [a_record(name, without_bans) for name in ADDRESSES]
    assert failures(summary_of(records)) == ["peer2 is caught: evidence"]


def test_a_cheater_who_is_not_slashed_is_noticed() -> None:
    assert failures(summary_of(slashes=[])) == ["peer2 is slashed on chain: evidence"]


@pytest.mark.parametrize("other", ["false", "objective", "equivocation"])
def test_a_cheater_caught_with_other_evidence_is_noticed(other: str) -> None:
    assert failures(summary_of(caught={"peer2": other})) == [
        "peer2 is caught: evidence",
        "peer2 is slashed on chain: evidence",
    ]


def test_a_ban_that_the_scenario_does_not_expect_is_noticed() -> None:
    assert failures(summary_of(caught={})) == ["other Byzantine peers banned"]


def ban_peer0(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*events, {"event": "ban", "round": 5, "member": ADDRESSES["peer0"], "evidence": "guilty"}]


def test_a_banned_honest_peer_is_noticed() -> None:
    summary = summary_of(replaced("peer1", a_record("peer1", ban_peer0)))
    assert failures(summary) == ["honest peers banned"]
    assert summary.honest_banned == 1


def test_bans_are_taken_from_honest_peers_only() -> None:
    assert summary_of(replaced("peer2", a_record("peer2", ban_peer0))).ok


def test_a_slashed_honest_peer_is_noticed() -> None:
    slash = SLASHES[0].model_copy(update={"member": ADDRESSES["peer0"]})
    assert failures(summary_of(slashes=[*SLASHES, slash])) == ["honest peers slashed"]


def test_an_honest_peer_that_stops_early_is_noticed() -> None:
    record = a_record("peer3", lambda events: events[:10])
    record.result, record.exit_code = None, 1
    summary = summary_of(replaced("peer3", record))
    assert failures(summary) == ["honest peers that did not reach the end"]
    assert summary.peers[3].ended == "stopped with exit code 1"
    assert summary_of(replaced("peer3", record), finished_peers_min=2).ok


@pytest.mark.parametrize(
    ("kind", "field", "what"),
    [
        ("beacon", "value", "rounds in which honest peers saw different beacons"),
        ("round", "head", "rounds that honest peers closed with different heads"),
    ],
)
def test_a_round_in_which_a_peer_saw_something_else_is_noticed(kind: str, field: str, what: str) -> None:
    def other(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**event, field: head(999)} if event["event"] == kind and event["round"] == 4 else event for event in events
        ]

    summary = summary_of(replaced("peer0", a_record("peer0", other)))
    assert failures(summary) == [what]
    assert [item.seen for item in summary.expected if not item.held] == [[4]]


@pytest.mark.parametrize(
    "expected", [{"accuracy_min": 0.91}, {"accuracy_max": 0.89}, {"accusations_max": 0}, {"finished_peers_min": 4}]
)
def test_what_the_scenario_states_is_judged(expected: dict[str, Any]) -> None:
    assert len(failures(summary_of(**expected))) == 1


def test_a_run_with_a_problem_is_not_ok() -> None:
    assert failures(summary_of(problems=["interrupted"])) == ["the run went through"]


def test_a_run_in_which_nothing_happened_has_a_summary_and_is_not_ok() -> None:
    records = [PeerRecord(name=name) for name in ADDRESSES]
    summary = summary_of(records, anchors=[], slashes=[], problems=["interrupted"], accuracy_min=0.5)
    assert not summary.ok
    assert summary.final_accuracy is None
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


START_S = 1000.0


def timed(name: str, *events: dict[str, Any]) -> PeerRecord:
    """A peer whose clock, in ms, was at 0 at START_S."""
    record = PeerRecord(name=name)
    lines = [{"ms": 0, "event": "started", "address": "0x" + name, "peer_id": f"id of {name}"}, *events]
    for line in lines:
        record.add(json.dumps(line).encode(), START_S + line["ms"] / 1000)
    return record


def lost(ms: int, name: str) -> dict[str, Any]:
    return {"ms": ms, "event": "lost", "peer_id": f"id of {name}"}


def closed(ms: int, round: int) -> dict[str, Any]:
    (line,) = (line for line in events_of("peer0") if line["event"] == "round" and line["round"] == round)
    return {**line, "ms": ms}


def struck(began_s: float, ended_s: float | None = None) -> Strike:
    fault = Fault(peer="peer2", kind="stop", at_round=1, seconds=5)
    return Strike(fault, began_s=START_S + began_s, ended_s=None if ended_s is None else START_S + ended_s)


def cut_of(scenario: Scenario, closed: int) -> Cut:
    return Cut(scenario.partitions[0], began_s=START_S, began_round=1, ended_s=START_S + 5, ended_round=1 + closed)


def test_a_fault_is_noticed_when_the_last_of_the_others_has_lost_the_peer() -> None:
    peer2 = timed("peer2")
    others = [
        timed("peer0", lost(1000, "peer2"), lost(7500, "peer2")),
        timed("peer1", lost(5500, "peer3"), lost(9000, "peer2"), lost(30000, "peer2")),
    ]
    assert noticed_s(struck(5), peer2, others) == 4.0
    assert noticed_s(struck(8), peer2, others) is None
    assert noticed_s(Strike(struck(5).fault), peer2, others) is None


def test_a_late_reader_does_not_shift_a_peers_clock() -> None:
    record = timed("peer0")
    record.add(json.dumps(lost(3000, "peer1")).encode(), START_S + 60)
    assert [at_s for at_s, _ in record.timed(Lost)] == [START_S + 3]


def test_who_was_started_again_has_another_clock() -> None:
    record = timed("peer0", lost(9000, "peer1"))
    record.start_again()
    record.add(json.dumps(lost(500, "peer1")).encode(), START_S + 20)
    assert [at_s for at_s, _ in record.timed(Lost)] == [START_S + 9, START_S + 20]


def test_a_peer_has_caught_up_when_it_closes_a_round_before_others_close_the_next() -> None:
    others = [timed("peer0", *(closed(2000 * round, round) for round in range(9)))]
    behind = [closed(4000, 2), closed(13000, 3), closed(13100, 4), closed(13200, 5)]
    assert caught_up_s(struck(5, 12), timed("peer2", *behind), others) is None
    level = [*behind, closed(13300, 6), closed(14500, 7)]
    assert caught_up_s(struck(5, 12), timed("peer2", *level), others) == 1.3
    assert caught_up_s(struck(5), timed("peer2", *level), others) is None


def test_a_fault_that_nobody_noticed_in_time_is_told() -> None:
    fields = {"peers": 4, "faults": ({"peer": 3, "kind": "stop", "at_round": 1, "seconds": 5},)}
    scenario = Scenario.model_validate({**a_scenario(noticed_s_max=10).model_dump(), **fields})
    summary = summarize(scenario, the_records(), ANCHORS, SLASHES, wall_seconds=1.0)
    assert failures(summary) == ["peer3's fault is noticed by all others: seconds"]


@pytest.mark.parametrize(("bound", "held"), [({"max": 1}, False), ({"min": 2}, True), ({"min": 3}, False)])
def test_rounds_closed_while_the_network_was_cut_are_judged(bound: dict[str, int], held: bool) -> None:
    [(name, count)] = bound.items()
    fields = {"peers": 4, "partitions": ({"peers": (3,), "at_round": 1, "seconds": 5},)}
    stated = a_scenario(**{f"closed_while_cut_{name}": count})
    scenario = Scenario.model_validate({**stated.model_dump(), **fields})
    summary = summarize(scenario, the_records(), ANCHORS, SLASHES, wall_seconds=1.0, cuts=[cut_of(scenario, 2)])
    assert failures(summary) == ([] if held else ["rounds closed while the network was cut"])


def test_a_cut_or_an_outage_that_never_came_or_outlived_the_run_shows_nothing() -> None:
    never, on = Cut(Partition(peers=(3,), at_round=8, seconds=5)), Outage(ChainOutage(at_round=3, seconds=6))
    on.began_s = START_S
    summary = summarize(a_scenario(), the_records(), ANCHORS, SLASHES, wall_seconds=1.0, cuts=[never], outages=[on])
    (item,) = (item for item in summary.expected if not item.held)
    assert item.what == "faults that came to nothing"
    assert item.seen == [
        "the cut at round 8: nobody came so far",
        "the chain's outage at round 3: the run was over before it ended",
    ]


def outage_failures(*told: tuple[float, int], closed: int = 6, **expected: Any) -> list[str]:
    """Of an outage from 3 s to 9 s that began when round 3 was open; told: (second, epoch) of anchors."""
    sent = {"event": "anchor", "round": 0, "head": head(0), "tx": "0x01"}
    anchors = [{**sent, "ms": int(1000 * second), "epoch": epoch} for second, epoch in told]
    records = [a_record(name, lambda events: [*events, *anchors]) for name in ADDRESSES]
    for record in records:
        record.starts_s = [START_S]
    outage = Outage(ChainOutage(at_round=3, seconds=6), began_s=START_S + 3, began_round=3)
    outage.ended_s, outage.ended_round = START_S + 9, 3 + closed
    return failures(summarize(a_scenario(**expected), records, ANCHORS, SLASHES, wall_seconds=1.0, outages=[outage]))


UNREACHED = "rounds closed while the chain was out of reach"
ANCHORED = "anchors of the epochs that ended in the outage: epoch, seconds after it"


def test_rounds_closed_while_the_chain_was_out_of_reach_are_judged() -> None:
    assert outage_failures(closed_in_outage_min=6) == []
    assert outage_failures(closed_in_outage_min=7) == [UNREACHED]


@pytest.mark.parametrize(
    ("told", "held"),
    [
        (((9.5, 0), (12.0, 1)), True),
        (((9.5, 0), (99.0, 0), (12.0, 1)), True),
        (((9.5, 0), (15.0, 1)), False),
        (((9.5, 0),), False),
        (((8.5, 0), (12.0, 1)), False),
    ],
)
def test_anchors_follow_soon_after_an_outage_and_none_comes_within_it(
    told: tuple[tuple[float, int], ...], held: bool
) -> None:
    assert outage_failures(*told, anchored_s_max=5) == ([] if held else [ANCHORED])


def test_an_outage_in_which_no_epoch_ended_shows_nothing() -> None:
    assert outage_failures(closed=0, anchored_s_max=5) == [ANCHORED]


def test_anchors_out_of_order_or_twice_are_noticed() -> None:
    order = "epochs in the order of their anchors, each once"
    assert failures(summary_of(anchors=ANCHORS[::-1])) == [order]
    assert failures(summary_of(anchors=[*ANCHORS, ANCHORS[1]])) == [order]


NO_MEMBERS = "peers that are no members, from which epoch on"


def told_members(*names: str) -> list[PeerRecord]:
    line = {"event": "members", "epoch": 1, "addresses": [ADDRESSES[name] for name in names]}
    return [a_record(name, lambda events: [*events, line]) for name in ADDRESSES]


def members_failures(records: list[PeerRecord], by_rule: set[str]) -> list[str]:
    course = Course(members={0: frozenset(ADDRESSES.values()), 1: frozenset(ADDRESSES[name] for name in by_rule)})
    return failures(summarize(a_scenario(), records, ANCHORS, SLASHES, wall_seconds=1.0, course=course))


def test_whom_an_epochs_list_names_is_held_against_the_rule() -> None:
    records = told_members("peer0", "peer3")
    assert members_failures(records, {"peer0", "peer3"}) == []
    assert members_failures(records, {"peer0"}) == [NO_MEMBERS]
    assert members_failures(records, {"peer0", "peer1", "peer3"}) == [NO_MEMBERS]


def test_a_list_that_cannot_be_followed_or_that_nobody_told_of_is_noticed() -> None:
    assert failures(summary_of(told_members("peer0"))) == [NO_MEMBERS]
    assert members_failures(the_records(), {"peer0"}) == [NO_MEMBERS]


def test_of_lists_only_changes_are_shown() -> None:
    lists = {1: ["peer0", "peer1", "peer2"], 2: ["peer0", "peer1", "peer2"], 3: ["peer0", "peer1", "peer2", "peer3"]}
    members = {epoch: frozenset(ADDRESSES[name] for name in names) for epoch, names in lists.items()}
    lines = [{"event": "members", "epoch": epoch, "addresses": sorted(found)} for epoch, found in members.items()]
    records = [a_record(name, lambda events: [*events, *lines]) for name in ADDRESSES]
    course = Course(members={0: frozenset(ADDRESSES.values()), **members})
    summary = summarize(a_scenario(), records, ANCHORS, SLASHES, wall_seconds=1.0, course=course)
    (item,) = (item for item in summary.expected if item.what == NO_MEMBERS)
    assert (item.held, item.expected, item.seen) == (True, {1: ["peer3"], 3: []}, {1: ["peer3"], 3: []})


def test_a_member_that_is_no_peer_of_the_run_is_noticed() -> None:
    line = {"event": "members", "epoch": 1, "addresses": [*ADDRESSES.values(), "0x" + "ee" * 20]}
    records = [a_record(name, lambda events: [*events, line]) for name in ADDRESSES]
    assert members_failures(records, set(ADDRESSES)) == [NO_MEMBERS]


def test_a_peer_that_does_not_take_part_again_is_told() -> None:
    assert summary_of(all_commit_at_end=True).ok

    def without_one(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**event, "commits": 3} if event.get("round") == ROUNDS - 1 else event for event in events]

    records = [a_record(name, without_one) for name in ADDRESSES]
    assert failures(summary_of(records, all_commit_at_end=True)) == ["COMMITs in the last round"]
    assert summary_of(records).missing_commits == 1
