"""One member cheats in one way; the others agree on every round and, where it can be proven, ban it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from p2pdfl.base.codec import decode_payload
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Close,
    Commit,
    CommitEntry,
    Contents,
    Digest,
    Judge,
    Kind,
    Notarize,
    Outcome,
    Packet,
    Propose,
    UpdateEntry,
)
from p2pdfl.protocol.assignment import batch_seed
from p2pdfl.protocol.events import Closed, Effect, Event, PacketReceived, Replayed, Reveal, Send
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest
from p2pdfl.protocol.run import LoadRound, Run
from p2pdfl.sim.learning import StandIn, honest_update
from p2pdfl.sim.world import Machine, World

from .byzantine import Rewrite, commit_of, on_sending, only, propose_of, signed
from .runs import a_world, bans, run_checked

pytestmark = pytest.mark.slow

CHEAT = 1


def run_with(effects: Rewrite, *, peer_count: int = 4, seed: int = 1, **task: object) -> World:
    world = a_world(peer_count, seed=seed, wrap=only(CHEAT, effects), task=dict(task))
    return run_checked(world, byzantine=[CHEAT])


# --- equivocation, every kind --------------------------------------------------------------------------------------


def test_two_commits_in_one_slot_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        return [packet, signed(run, packet, commit_of(packet).replace(update=b"\x07" * 32))]

    world = run_with(on_sending(Kind.COMMIT, twice))
    assert bans(world, CHEAT) == {"equivocation"}


def test_a_second_commit_that_would_be_refused_is_proof_all_the_same() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        return [packet, signed(run, packet, commit_of(packet).replace(parent=b"\x07" * 32))]

    world = a_world(wrap=only(CHEAT, on_sending(Kind.COMMIT, twice)), latency_ms=(5, 5))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"equivocation"}


def test_two_proposals_in_one_view_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        propose = propose_of(packet)
        return [packet, signed(run, packet, propose.replace(head=propose.head.replace(state=b"\x07" * 32)))]

    world = run_with(on_sending(Kind.PROPOSE, twice))
    assert bans(world, CHEAT) == {"equivocation"}


def test_two_notarizations_in_one_view_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        return [packet, signed(run, packet, Notarize(head=b"\x07" * 32))]

    world = run_with(on_sending(Kind.NOTARIZE, twice))
    assert bans(world, CHEAT) == {"equivocation"}


def test_finalize_and_skip_in_one_view_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        return [packet, signed(run, packet, Close(head=ZERO_DIGEST))]

    world = run_with(on_sending(Kind.CLOSE, twice))
    assert bans(world, CHEAT) == {"equivocation"}


def test_two_judgements_of_one_case_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        judge = decode_payload(packet)
        assert isinstance(judge, Judge)
        return [packet, signed(run, packet, judge.replace(outcome=Outcome.VOID))]

    forger = 2
    world = a_world(
        5,
        seed=2,
        wrap=only(CHEAT, on_sending(Kind.JUDGE, twice)),
        learning=StandIn(lambda index, update: _flip(update) if index == forger else update),
        task={"audit_fraction": 1.0, "training_rounds": 1},
    )
    run_checked(world, byzantine=[CHEAT, forger])
    assert bans(world, CHEAT) == {"equivocation"}


def test_two_accusations_in_one_slot_are_banned() -> None:
    def twice(run: Run, packet: Packet) -> Sequence[Packet]:
        accuse = decode_payload(packet)
        assert isinstance(accuse, Accuse)
        return [packet, signed(run, packet, accuse.replace(accused=(accuse.accused + 1) % 4))]

    world = a_world(wrap=only(CHEAT, on_sending(Kind.ACCUSE, twice), _always_guilty), task={"training_rounds": 4})
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) <= {"equivocation", "false"}
    assert bans(world, CHEAT) != {None}


@dataclass
class Split:
    """Each honest member is sent another body in the cheat's slots; the rest it can only get from others."""

    bodies: dict[Digest, int] = field(default_factory=dict)
    """Body -> the only member that it is sent to."""
    count: int = 0

    def variants(self, run: Run, packet: Packet) -> Sequence[Packet]:
        packets = []
        for receiver, fill in ((0, 7), (2, 8), (3, 9)):
            payload = decode_payload(packet)
            if isinstance(payload, Commit):
                payload = payload.replace(update=bytes([fill]) * 32)
            elif isinstance(payload, Propose):
                commits = payload.contents.commits
                left = tuple(entry for entry in commits if entry.member != receiver)
                if len(left) < 3:
                    return [packet]
                payload = _with_contents(payload, payload.contents.replace(commits=left))
            other = signed(run, packet, payload)
            self.bodies[other.envelope.body] = receiver
            packets.append(other)
        return packets

    def wrap(self, kind: Kind) -> Callable[[int, Run], Machine]:
        cheat = only(CHEAT, on_sending(kind, self.variants))

        def wrap(index: int, run: Run) -> Machine:
            return cheat(index, run) if index == CHEAT else _Deaf(run=run, index=index, split=self)

        return wrap


@dataclass
class _Deaf:
    """Does not hear the gossip of a body meant for another; only a resync shows it."""

    run: Run
    index: int
    split: Split
    heard: set[Digest] = field(default_factory=set)

    def start(self, now_ms: int) -> list[Effect]:
        return self.run.start(now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        if isinstance(event, PacketReceived):
            body = event.packet.envelope.body
            if self.split.bodies.get(body, self.index) != self.index and body not in self.heard:
                self.heard.add(body)
                return []
        return self.run.handle(event, now_ms)

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        return self.run.resync_reply(request, load)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_another_commit_to_each_member_cannot_keep_a_round_open(seed: int) -> None:
    """ATTACK: everyone knows two of three bodies and would ignore the one that the leader names."""
    split = Split()
    world = a_world(seed=seed, wrap=split.wrap(Kind.COMMIT))
    run_checked(world, byzantine=[CHEAT])
    assert split.bodies
    assert bans(world, CHEAT) == {"equivocation"}


# --- commits -------------------------------------------------------------------------------------------------------


def test_a_commit_without_its_share_counts_as_absent_and_the_beacon_goes_on() -> None:
    def without(run: Run, packet: Packet) -> Sequence[Packet]:
        return [signed(run, packet, commit_of(packet).replace(share=None))]

    world = run_with(on_sending(Kind.COMMIT, without, from_round=1))
    closed = world.peers[0].closed
    assert all(CHEAT not in _committed(closed[round]) for round in range(1, world.task.total_rounds))
    assert len({closed[round].beacon for round in closed}) == len(closed)


def test_no_commit_at_all_costs_one_deadline() -> None:
    world = run_with(on_sending(Kind.COMMIT, lambda run, packet: []))
    assert CHEAT not in _committed(world.peers[0].closed[0])
    assert world.now_ms < 2 * (world.task.commit_ms + world.task.grace_ms)


@pytest.mark.parametrize("part", ["dealing", "share"])
def test_an_invalid_dealing_or_share_is_an_objective_fault(part: str) -> None:
    def broken(run: Run, packet: Packet) -> Sequence[Packet]:
        commit = commit_of(packet)
        if part == "share":
            assert commit.share is not None
            commit = commit.replace(share=commit.share.replace(response=b"\x01" * 32))
        else:
            commit = commit.replace(dealing=commit.dealing.replace(response=(b"\x01" * 32, b"\x02" * 32)))
        return [signed(run, packet, commit)]

    world = run_with(on_sending(Kind.COMMIT, broken, from_round=1))
    assert bans(world, CHEAT) == {"objective"}
    assert CHEAT not in _committed(world.peers[0].closed[1])


class Copier:
    """Signs the victim's payload as its own, as soon as it sees it."""

    def __init__(self, run: Run, victim: int) -> None:
        self.run, self.victim = run, victim
        self._copied: set[int] = set()

    def start(self, now_ms: int) -> list[Effect]:
        return self._without_own(self.run.start(now_ms))

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        effects = self._without_own(self.run.handle(event, now_ms))
        if isinstance(event, PacketReceived) and event.packet.envelope.kind == Kind.COMMIT:
            packet, round = event.packet, event.packet.envelope.round
            unverified = [held.packet for held in self.run.open_round.unverified_commits if held.member == self.victim]
            if round not in self._copied and packet in unverified:
                self._copied.add(round)
                effects.append(Send(packet=signed(self.run, packet, commit_of(packet))))
        return effects

    def resync_reply(self, request: ResyncRequest, load: LoadRound) -> ResyncReply:
        return ResyncReply(packets=(), certificates=())

    def _without_own(self, effects: list[Effect]) -> list[Effect]:
        return [
            effect
            for effect in effects
            if not (isinstance(effect, Send) and effect.packet.envelope.kind == Kind.COMMIT)
        ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_copied_commit_neither_displaces_the_victims_nor_is_summed_twice(seed: int) -> None:
    """ATTACK: both have the same body digest, and arrive in another order at everyone."""
    victim = 2
    world = a_world(
        seed=seed,
        latency_ms=(1, 4),
        wrap=lambda index, run: Copier(run, victim) if index == CHEAT else run,
    )
    run_checked(world, byzantine=[CHEAT])
    assert all(victim in _committed(closed) for closed in world.peers[0].closed.values())
    assert bans(world, CHEAT) == {"objective"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_copied_update_digest_does_not_keep_the_victims_update_out(seed: int) -> None:
    """ATTACK: under the copier's header the bytes do not decode; under the author's they do."""
    victim = 2
    seen: dict[int, Digest] = {}

    def copy(run: Run, packet: Packet) -> Sequence[Packet]:
        """Data and seeds are public: it computes the victim's update as fast as the victim."""
        context = run.open_round.context
        if victim not in context.assignment.trainers:
            return [packet]
        trained_on = batch_seed(context.beacon, run.config.task_id, context.round, world.address(victim))
        seen[context.round] = honest_update(context.parent_state, trained_on)
        return [signed(run, packet, commit_of(packet).replace(update=seen[context.round]))]

    world = a_world(
        seed=seed, wrap=only(CHEAT, on_sending(Kind.COMMIT, copy)), task={"audit_fraction": 0.1, "training_rounds": 4}
    )
    run_checked(world, byzantine=[CHEAT])
    assert seen
    for round, digest in seen.items():
        assert UpdateEntry(member=victim, update=digest) in world.peers[0].closed[round].contents.updates


# --- updates -------------------------------------------------------------------------------------------------------


def test_a_withheld_update_is_left_out_and_waited_for_once() -> None:
    def withhold(run: Run, effect: Effect) -> Sequence[Effect]:
        return [] if isinstance(effect, Reveal) else [effect]

    world = a_world(wrap=only(CHEAT, withhold), task={"training_rounds": 5, "audit_fraction": 0.2})
    world.peers[CHEAT].is_serving = False
    run_checked(world, byzantine=[CHEAT])
    closed = world.peers[0].closed.values()
    assert all(CHEAT not in {entry.member for entry in each.contents.updates} for each in closed)
    assert world.now_ms < 3 * (world.task.reveal_ms + world.task.grace_ms) + 14 * 200


def test_a_forged_update_is_found_by_an_audit_and_its_author_banned_everywhere() -> None:
    world = a_world(learning=StandIn(lambda index, update: _flip(update) if index == CHEAT else update))
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"guilty"}
    for peer in world.peers[:CHEAT]:
        (ban,) = (notice.fields for notice in peer.notices if notice.name == "ban")
        (verdict,) = (
            notice.fields
            for notice in peer.notices
            if notice.name == "verdict" and notice.fields["round"] == ban["verdict_round"]
        )
        assert (ban["accuser"], ban["audited_round"]) == (verdict["accuser"], verdict["audited_round"])
        assert ban["member"] == verdict["accused"]
        audited, verdict_round = ban["audited_round"], ban["verdict_round"]
        assert isinstance(verdict_round, int)
        assert audited == verdict_round - 2


@pytest.mark.parametrize("seed", range(4))
def test_who_forges_in_the_last_training_round_is_still_audited_and_banned(seed: int) -> None:
    world = a_world(
        seed=seed,
        task={"audit_fraction": 1.0, "training_rounds": 1},
        learning=StandIn(lambda index, update: _flip(update) if index == CHEAT else update),
    )
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"guilty"}


def test_an_update_that_does_not_decode_is_an_objective_fault() -> None:
    def forge(index: int, update: Digest) -> Digest:
        if index != CHEAT:
            return update
        stand_in.undecodable.add(_flip(update))
        return _flip(update)

    stand_in = StandIn(forge)
    world = a_world(learning=stand_in)
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"objective"}
    assert all(
        CHEAT not in {entry.member for entry in closed.contents.updates} for closed in world.peers[0].closed.values()
    )


# --- audits --------------------------------------------------------------------------------------------------------


def _always_guilty(event: Event) -> Event:
    return replace(event, outcome=Outcome.GUILTY) if isinstance(event, Replayed) else event


def test_a_false_accuser_is_judged_and_banned() -> None:
    world = a_world(wrap=only(CHEAT, event=_always_guilty), task={"training_rounds": 4})
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"false"}


def test_who_replays_differently_in_between_loses_nothing() -> None:
    def unsure(event: Event) -> Event:
        return replace(event, outcome=Outcome.VOID) if isinstance(event, Replayed) else event

    world = a_world(wrap=only(CHEAT, event=unsure), task={"training_rounds": 4})
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {None}


def test_jurors_that_lie_are_too_few_to_ban_an_honest_member() -> None:
    """f = 1 of 4: a verdict takes two."""

    def accuse_all(run: Run, packet: Packet) -> Sequence[Packet]:
        lies = [
            signed(
                run,
                packet,
                Judge(accused=k, accuser=k, audited_round=packet.envelope.round, outcome=Outcome.OBJECTIVE),
                kind=int(Kind.JUDGE),
                view=k,
            )
            for k in (0, 2, 3)
        ]
        return [packet, *lies]

    world = run_with(on_sending(Kind.COMMIT, accuse_all))
    assert bans(world, CHEAT) == {None}


# --- leaders -------------------------------------------------------------------------------------------------------


def _garbage(what: str, propose: Propose) -> Propose:
    contents, head = propose.contents, propose.head
    match what:
        case "state":
            return propose.replace(head=head.replace(state=b"\x07" * 32))
        case "chain block":
            return propose.replace(head=head.replace(chain_block=b"\x07" * 32))
        case "next members":
            return propose.replace(head=head.replace(next_members=b"\x07" * 32))
        case "no commits":
            return _with_contents(propose, contents.replace(commits=()))
        case "too few commits":
            return _with_contents(propose, contents.replace(commits=contents.commits[:2]))
        case "an unknown commit":
            first = contents.commits[0].replace(body=b"\x07" * 32)
            return _with_contents(propose, contents.replace(commits=(first, *contents.commits[1:])))
        case "a member that does not exist":
            extra = CommitEntry(member=250, body=b"\x07" * 32)
            return _with_contents(propose, contents.replace(commits=(*contents.commits, extra)))
        case "an update that nobody promised":
            return _with_contents(propose, contents.replace(updates=(UpdateEntry(member=0, update=b"\x07" * 32),)))
        case "no updates":
            return _with_contents(propose, contents.replace(updates=()))
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "state",
        "chain block",
        "next members",
        "no commits",
        "too few commits",
        "an unknown commit",
        "a member that does not exist",
        "an update that nobody promised",
        "no updates",
    ],
)
def test_a_leader_that_proposes_garbage_costs_a_view(what: str) -> None:
    def garble(run: Run, packet: Packet) -> Sequence[Packet]:
        propose = propose_of(packet)
        if what == "no updates" and not propose.contents.updates:
            return [packet]
        garbled.add(packet.envelope.round)
        return [signed(run, packet, _garbage(what, propose))]

    garbled: set[int] = set()
    world = run_with(on_sending(Kind.PROPOSE, garble), training_rounds=6, epoch_rounds=4, audit_fraction=0.25)
    assert garbled
    views = {round: closed.certificate.view for round, closed in world.peers[0].closed.items()}
    assert all(views[round] >= 1 for round in garbled)


def test_a_leader_that_omits_a_commit_does_not_get_it_through() -> None:
    victim = 2

    def omit(run: Run, packet: Packet) -> Sequence[Packet]:
        propose = propose_of(packet)
        commits = tuple(entry for entry in propose.contents.commits if entry.member != victim)
        updates = tuple(entry for entry in propose.contents.updates if entry.member != victim)
        return [
            signed(run, packet, _with_contents(propose, propose.contents.replace(commits=commits, updates=updates)))
        ]

    world = run_with(on_sending(Kind.PROPOSE, omit))
    assert all(victim in _committed(closed) for closed in world.peers[0].closed.values())


def test_a_leader_that_proposes_nothing_costs_a_view() -> None:
    run_with(on_sending(Kind.PROPOSE, lambda run, packet: []))


@pytest.mark.parametrize("kind", [Kind.NOTARIZE, Kind.CLOSE])
def test_a_member_that_never_votes_is_not_needed(kind: Kind) -> None:
    run_with(on_sending(kind, lambda run, packet: []))


def test_a_member_that_always_skips_costs_nothing() -> None:
    def skip(run: Run, packet: Packet) -> Sequence[Packet]:
        return [signed(run, packet, Close(head=ZERO_DIGEST))]

    world = run_with(on_sending(Kind.CLOSE, skip))
    assert {closed.certificate.view for closed in world.peers[0].closed.values()} == {0}


# --- epochs --------------------------------------------------------------------------------------------------------


def test_a_banned_member_is_not_on_the_next_list() -> None:
    world = a_world(
        5,
        task={"training_rounds": 6, "epoch_rounds": 5},
        learning=StandIn(lambda index, update: _flip(update) if index == CHEAT else update),
    )
    run_checked(world, byzantine=[CHEAT])
    assert bans(world, CHEAT) == {"guilty"}
    assert world.address(CHEAT) in world.peers[0].run.epochs[0].addresses
    assert world.address(CHEAT) not in world.peers[0].run.epochs[1].addresses


def test_a_silent_member_is_not_on_the_next_list() -> None:
    world = a_world(5, task={"training_rounds": 6, "epoch_rounds": 5})
    world.kill(CHEAT)
    run_checked(world)
    assert world.address(CHEAT) not in world.peers[0].run.epochs[1].addresses


def test_who_exits_on_chain_leaves_with_the_epoch() -> None:
    world = a_world(5, task={"training_rounds": 6, "epoch_rounds": 5})
    leaving = tuple(
        entry.replace(exiting=True) if entry.address == world.address(CHEAT) else entry for entry in world.registrations
    )
    world.at(80, lambda: world.mine(2, leaving))
    run_checked(world)
    assert world.address(CHEAT) not in world.peers[0].run.epochs[1].addresses
    assert world.peers[CHEAT].run.is_finished


def test_all_exiting_at_once_stay_for_another_epoch() -> None:
    world = a_world(task={"training_rounds": 6, "epoch_rounds": 5})
    world.at(80, lambda: world.mine(2, tuple(entry.replace(exiting=True) for entry in world.registrations)))
    run_checked(world)
    assert world.peers[0].run.epochs[1].addresses == world.peers[0].run.epochs[0].addresses


def _flip(update: Digest) -> Digest:
    return bytes([update[0] ^ 1]) + update[1:]


def _committed(closed: Closed) -> set[int]:
    return {entry.member for entry in closed.contents.commits}


def _with_contents(propose: Propose, contents: Contents) -> Propose:
    from p2pdfl.base.codec import digest_of

    return propose.replace(contents=contents, head=propose.head.replace(contents=digest_of(contents)))
