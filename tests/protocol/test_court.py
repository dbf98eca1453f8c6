"""From an accusation to the ban: who may accuse, who replays, who judges, and what a head must list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from p2pdfl.base import params
from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import Accuse, Close, Judge, Kind, Outcome, Packet
from p2pdfl.protocol.events import CertificateReceived, Closed, Effect, Notice, Replay, Replayed, SubmitVerdict
from p2pdfl.sim.learning import StandIn
from p2pdfl.sim.sharing import StandInSharing
from p2pdfl.sim.world import World, stand_in_task

from .stage import Stage, head_of, in_commit_phase, in_propose_phase, sent, with_contents, with_state

AUDITED_ROUND, ROUND = 0, 2


@dataclass(frozen=True)
class Case:
    """An audit that the open round assigns; nothing has come of it yet."""

    stage: Stage
    accuser: int
    accused: int

    @property
    def author(self) -> bytes:
        return self.stage.run.epoch.addresses[self.accused]

    @property
    def other_juror(self) -> int:
        return next(member for member in (1, 2, 3) if member not in (self.accuser, self.accused))

    def accuse(self) -> list[Effect]:
        accuse = Accuse(accused=self.accused, audited_round=AUDITED_ROUND)
        return self.stage.take(self.stage.packet(self.accuser, accuse, round=ROUND))

    def replayed(self, outcome: Outcome) -> list[Effect]:
        return self.stage.take(Replayed(audited_round=AUDITED_ROUND, author=self.author, outcome=outcome))

    def judgement(self, juror: int, outcome: Outcome) -> Packet:
        return self.stage.packet(juror, self.judge(outcome), round=ROUND, view=self.accuser)

    def judge(self, outcome: Outcome) -> Judge:
        return Judge(accused=self.accused, accuser=self.accuser, audited_round=AUDITED_ROUND, outcome=int(outcome))


def cases(*, from_seed: int = 5) -> Iterator[Case]:
    """Somebody else leads."""
    for seed in range(from_seed, 60):
        stage = Stage(until=in_propose_phase(ROUND), seed=seed)
        if stage.leader() != 0:
            for accuser, accused in stage.open.context.assignment.audits.items():
                yield Case(stage, accuser, accused)


def a_case_to_judge() -> Case:
    """Member 0 is no party."""
    return next(case for case in cases() if 0 not in (case.accuser, case.accused))


def judgements(effects: list[Effect]) -> list[Judge]:
    return [judge for packet in sent(effects, Kind.JUDGE) if isinstance(judge := decode_payload(packet), Judge)]


# --- an accusation is accepted, and judged --------------------------------------------------------------------------


def test_a_juror_replays_what_the_auditor_accuses() -> None:
    case = a_case_to_judge()
    replays = [effect for effect in case.accuse() if isinstance(effect, Replay)]
    assert [(replay.audited_round, replay.author) for replay in replays] == [(AUDITED_ROUND, case.author)]


@pytest.mark.parametrize("outcome", [Outcome.GUILTY, Outcome.FALSE, Outcome.VOID])
def test_a_juror_judges_as_its_replay_says(outcome: Outcome) -> None:
    case = a_case_to_judge()
    assert judgements(case.accuse()) == []
    assert judgements(case.replayed(outcome)) == [case.judge(outcome)]


def test_a_juror_that_has_replayed_before_judges_at_once() -> None:
    case = a_case_to_judge()
    case.replayed(Outcome.GUILTY)
    effects = case.accuse()
    assert judgements(effects) == [case.judge(Outcome.GUILTY)]
    assert not any(isinstance(effect, Replay) for effect in effects)


def test_an_accusation_that_comes_a_round_late_is_judged_all_the_same() -> None:
    case = a_case_to_judge()
    close_with(case.stage)
    assert case.stage.run.round == ROUND + 1
    case.accuse()
    assert judgements(case.replayed(Outcome.GUILTY)) == [case.judge(Outcome.GUILTY)]


def test_a_party_judges_nothing() -> None:
    case = next(case for case in cases() if case.accused == 0)
    effects = case.accuse() + case.replayed(Outcome.FALSE)
    assert judgements(effects) == []
    assert not any(isinstance(effect, Replay) for effect in effects)


@pytest.mark.parametrize("outcome", [Outcome.GUILTY, Outcome.FALSE, Outcome.VOID])
def test_an_auditor_accuses_the_guilty_and_nobody_else(outcome: Outcome) -> None:
    case = next(case for case in cases(from_seed=11) if case.accuser == 0)
    accusations = [decode_payload(packet) for packet in sent(case.replayed(outcome), Kind.ACCUSE)]
    expected = [Accuse(accused=case.accused, audited_round=AUDITED_ROUND)] if outcome is Outcome.GUILTY else []
    assert accusations == expected


# --- a verdict -----------------------------------------------------------------------------------------------------


def listed(stage: Stage) -> list[tuple[int, int, int]]:
    """The verdicts in a proposal of member 0: accuser, accused, outcome."""
    return [(proof.entry.accuser, proof.entry.accused, proof.entry.outcome) for proof in stage.proposal().verdicts]


@pytest.mark.parametrize("outcome", [Outcome.GUILTY, Outcome.FALSE])
def test_half_the_members_with_one_finding_are_a_verdict_to_list(outcome: Outcome) -> None:
    case = a_case_to_judge()
    case.accuse()
    case.stage.take(case.judgement(case.other_juror, outcome))
    assert listed(case.stage) == []
    case.replayed(outcome)
    assert listed(case.stage) == [(case.accuser, case.accused, outcome)]


def test_two_findings_are_no_verdict() -> None:
    case = a_case_to_judge()
    case.accuse()
    case.replayed(Outcome.GUILTY)
    case.stage.take(case.judgement(case.other_juror, Outcome.FALSE))
    assert listed(case.stage) == []


@pytest.mark.parametrize("outcome", [Outcome.GUILTY, Outcome.FALSE])
def test_the_head_that_lists_a_verdict_bans_its_loser_and_slashes_it(outcome: Outcome) -> None:
    case = a_case_to_judge()
    case.accuse()
    case.replayed(outcome)
    case.stage.take(case.judgement(case.other_juror, outcome))
    effects = close_with(case.stage)
    loser = case.stage.run.epoch.addresses[case.accused if outcome is Outcome.GUILTY else case.accuser]
    assert case.stage.run.banned.keys() == {loser}
    assert case.stage.open.context.banned == {loser}
    proofs = [effect.proof.entry for effect in effects if isinstance(effect, SubmitVerdict)]
    assert [(entry.accused, entry.accuser, entry.outcome) for entry in proofs] == [
        (case.accused, case.accuser, outcome)
    ]
    addresses = case.stage.run.epoch.addresses
    assert bans_said(effects) == [
        {
            "round": ROUND,
            "member": "0x" + loser.hex(),
            "evidence": "guilty" if outcome is Outcome.GUILTY else "false",
            "accuser": "0x" + addresses[case.accuser].hex(),
            "audited_round": AUDITED_ROUND,
            "verdict_round": ROUND,
        }
    ]


def bans_said(effects: Iterable[Effect]) -> list[dict[str, object]]:
    return [dict(effect.fields) for effect in effects if isinstance(effect, Notice) and effect.name == "ban"]


def test_an_observer_sees_a_ban_and_slashes_nobody() -> None:
    task = stand_in_task(training_rounds=1, epoch_rounds=9, members_min=4, audit_fraction=1.0)
    world = World(task, 5, seed=1, late_count=1, sharing=StandInSharing())
    [observer] = world.late
    cheat = min(set(range(5)) - world.late)
    world.learning = StandIn(lambda index, update: update[::-1] if index == cheat else update)
    run = world.peers[observer].run
    world.run(until_ms=600_000, until=lambda: bool(run.banned))
    assert run.banned == {world.address(cheat): "guilty"}
    assert [ban["member"] for ban in bans_said(world.peers[observer].notices)] == ["0x" + world.address(cheat).hex()]
    assert world.peers[observer].submitted == []


def close_with(stage: Stage) -> list[Effect]:
    """The round closes with all that member 0 holds."""
    propose = with_state(stage)
    certificate = stage.certificate(Close(head=head_of(propose)), [1, 2, 3])
    effects = stage.take(stage.packet(stage.leader(), propose), CertificateReceived(certificate=certificate))
    assert any(isinstance(effect, Closed) for effect in effects)
    return effects


# --- what is overdue -----------------------------------------------------------------------------------------------


def with_overdue_case(kind: str, seed: int) -> Stage | None:
    """Round 2; member 0 alone has known since round 1 that member 3 is guilty, and round 1's leader left it out.
    None if member 0 leads one of the two."""
    stage = Stage(until=in_commit_phase(1), seed=seed, audit_fraction=0.0)
    if stage.leader() == 0:
        return None
    if kind == "verdict":
        judge = Judge(accused=3, accuser=3, audited_round=1, outcome=int(Outcome.OBJECTIVE))
        proof = [stage.packet(juror, judge, view=params.MEMBER_COUNT_MAX + 3) for juror in (1, 2)]
    else:
        proof = [stage.packet(3, Close(head=bytes([fill]) * 32), view=1) for fill in (1, 2)]
    stage.take(*proof)
    has_come = in_propose_phase(2)
    stage.world.run(until_ms=600_000, until=lambda: has_come(stage.open))
    stage.now_ms = stage.world.now_ms
    return None if stage.leader() == 0 else stage


@pytest.mark.parametrize("kind", ["verdict", "equivocation"])
def test_a_proposal_that_omits_an_overdue_case_is_not_notarized(kind: str) -> None:
    stage = next(filter(None, (with_overdue_case(kind, seed) for seed in range(7, 60))))
    assert stage.run.banned == {}
    lists = with_state(stage)
    assert (len(lists.verdicts), len(lists.equivocations)) == ((1, 0) if kind == "verdict" else (0, 1))
    omits = with_contents(lists, verdicts=(), evidence=()).replace(verdicts=(), equivocations=())
    assert sent(stage.take(stage.packet(stage.leader(), omits)), Kind.NOTARIZE) == []
    assert sent(stage.take(stage.packet(stage.leader(), lists)), Kind.NOTARIZE) != []


def test_a_verdict_that_came_after_the_round_had_opened_may_wait_for_the_next() -> None:
    """Not every member has it in time; a leader is not to blame for what only others hold."""
    case = a_case_to_judge()
    omits = with_state(case.stage)
    case.accuse()
    case.replayed(Outcome.GUILTY)
    case.stage.take(case.judgement(case.other_juror, Outcome.GUILTY))
    assert listed(case.stage) != []
    assert sent(case.stage.take(case.stage.packet(case.stage.leader(), omits)), Kind.NOTARIZE) != []
