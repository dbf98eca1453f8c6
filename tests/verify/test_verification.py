"""A run as it was passes; each single thing tampered with is found, and named as what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pdfl.base import codec
from p2pdfl.base.types import (
    Accuse,
    Ballot,
    Certificate,
    Close,
    Contents,
    Envelope,
    Head,
    Judge,
    Kind,
    Outcome,
    Packet,
    Payload,
    Propose,
    UpdateEntry,
    VerdictProof,
)
from p2pdfl.crypto.envelope import Signer, head_digest, recover
from p2pdfl.learning import compression
from p2pdfl.learning.compression import shorten
from p2pdfl.learning.learner import Learner, State, load_state, save_state
from p2pdfl.verify.files import Unusable
from p2pdfl.verify.findings import Check, CheckResult, Report, Status, lines
from p2pdfl.verify.verification import verify

from .runs import EQUIVOCATOR, FLIPPER, LEAVER, RunFiles, TrainingWorld, leave_behind, run_to_the_end

pytestmark = pytest.mark.slow
"""The run that all of them check takes seconds to make."""


def result(report: Report, check: Check) -> CheckResult:
    return next(result for result in report.checks if result.check is check)


def failures(report: Report) -> dict[Check, str]:
    """Failed checks, with the first problem of each."""
    return {result.check: result.problems[0] for result in report.checks if result.status is Status.FAILED}


def verified(files: RunFiles, replays: int = 0) -> dict[Check, str]:
    report = verify(files.path, replays=replays)
    assert report.ok == (not failures(report))
    return failures(report)


def signed(world: TrainingWorld, index: int, payload: Payload, kind: Kind, *, round: int, view: int = 0) -> Packet:
    envelope = Envelope(
        task=world.task.task_id(),
        epoch=world.task.epoch_of(round),
        round=round,
        view=view,
        kind=int(kind),
        body=codec.body_digest(payload),
    )
    signature = Signer(world.peers[index].keys.chain_secret).sign(world.config.domain, envelope)
    return Packet(envelope=envelope, signature=signature, payload=codec.encode(payload))


def certified_by_all(world: TrainingWorld, files: RunFiles, head: Head, contents: Contents, propose: Propose) -> None:
    """The last round of an epoch closed otherwise, as if every member had signed it."""
    index = files.index(head.round)
    epoch = world.peers[0].run.epochs[head.epoch]
    close = Close(head=head_digest(head))
    ballots = []
    for place, address in enumerate(epoch.addresses):
        packet = signed(world, _index_of(world, address), close, Kind.CLOSE, round=head.round)
        ballots.append(Ballot(member=place, signature=packet.signature))
    certificate = Certificate(
        epoch=head.epoch, round=head.round, view=0, kind=int(Kind.CLOSE), head=close.head, ballots=tuple(ballots)
    )
    old = next(entry for entry in index["packets"] if entry["kind"] == "propose")
    proposed = files.wire(Packet, old["digest"])
    leader = _index_of(world, recover(world.config.domain, proposed.envelope, proposed.signature))
    packet = signed(world, leader, propose, Kind.PROPOSE, round=head.round)

    def change(index: Any) -> None:
        index["head"] = {name: value.hex() if isinstance(value, bytes) else value for name, value in head}
        index["contents"] = files.put(contents)
        index["certificate"] = files.put(certificate)
        index["packets"] = [entry for entry in index["packets"] if entry["kind"] != "propose"]
        index["packets"].append({**old, "digest": files.put(packet)})

    files.edit(files.round(head.round), change)


def _index_of(world: TrainingWorld, address: bytes) -> int:
    return next(index for index in range(len(world.peers)) if world.address(index) == address)


# --- as it was -------------------------------------------------------------------------------------------------------


def test_the_run_has_what_there_is_to_check(world: TrainingWorld) -> None:
    run = world.peers[0].run
    assert run.banned == {world.address(FLIPPER): "guilty", world.address(EQUIVOCATOR): "equivocation"}
    assert world.address(LEAVER) in run.epochs[0].addresses
    assert world.address(LEAVER) not in run.epochs[1].addresses


def test_a_run_as_it_was_passes(honest_run: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(honest_run, on_round=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert seen == [(done, 8) for done in range(1, 9)]
    status = {item.check: item.status for item in report.checks}
    assert status == {check: Status.UNCHECKED if check is Check.REPLAYS else Status.OK for check in Check}
    assert all(item.confirmed for item in report.checks if item.check is not Check.REPLAYS)
    assert "word of whoever ran the chain" in report.caveats[0]


def test_accusations_and_judgements_are_in_the_transcript(honest_run: Path) -> None:
    kinds = {
        entry["kind"]
        for path in (honest_run / "transcript" / "rounds").iterdir()
        for entry in json.loads(path.read_bytes())["packets"]
    }
    assert kinds == {"commit", "propose", "accuse", "judge"}


def test_replays_tell_honest_updates_from_those_of_the_banned(honest_run: Path, world: TrainingWorld) -> None:
    report = verify(honest_run, replays=1_000)
    assert report.ok
    replays = result(report, Check.REPLAYS)
    assert replays.confirmed == sum(len(closed.contents.updates) for closed in world.peers[0].closed.values())
    assert any("a replay finds as the jury did: guilty" in remark for remark in replays.remarks)
    assert all(world.address(FLIPPER).hex() in remark for remark in replays.remarks)


def test_the_same_updates_are_sampled_every_time(honest_run: Path) -> None:
    assert verify(honest_run, replays=3) == verify(honest_run, replays=3)
    # and the one that a verdict is about, unless it is among them
    assert result(verify(honest_run, replays=3), Check.REPLAYS).confirmed in (3, 4)


def test_an_update_that_cheats_and_was_never_caught_is_found_by_a_replay(tmp_path: Path) -> None:
    world = run_to_the_end(audit_fraction=0)
    leave_behind(world, tmp_path / "run")
    assert verify(tmp_path / "run").ok
    report = verify(tmp_path / "run", replays=1_000)
    assert failures(report).keys() == {Check.REPLAYS}
    found = result(report, Check.REPLAYS)
    assert found.failed == world.task.training_rounds - 1
    assert all(world.address(FLIPPER).hex() in problem for problem in found.problems)


def test_a_run_under_tolerant_is_replayed_by_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a machine that computes none of its bytes."""
    train = Learner.train

    def otherwise(learner: Learner, state: State, *, seed: bytes, **header: Any) -> bytes:
        vector = learner.decode(train(learner, state, seed=seed, **header), **header)
        return learner.encode(vector * 1.005, learner.header(**header))

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(Learner, "train", otherwise)
        world = run_to_the_end(profile="tolerant")
    leave_behind(world, tmp_path / "run")
    report = verify(tmp_path / "run", replays=1_000)
    assert report.ok
    replays = result(report, Check.REPLAYS)
    assert replays.confirmed == sum(len(closed.contents.updates) for closed in world.peers[0].closed.values())
    assert any("a replay finds as the jury did: guilty" in remark for remark in replays.remarks)


def test_a_library_that_compresses_otherwise_verifies_and_replays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = run_to_the_end(compression="zstd", codes="int4")
    leave_behind(world, tmp_path / "run")
    assert any(len(update) < world.learner.update_bytes_max for update in world.updates.values())
    before = verify(tmp_path / "run", replays=1_000)
    monkeypatch.setattr(compression, "shorten", lambda update: shorten(update, 19))
    again = verify(tmp_path / "run", replays=1_000)
    assert before.ok
    assert again == before


def test_nothing_is_written_to_the_runs_directory(files: RunFiles) -> None:
    before = {path: path.stat().st_mtime_ns for path in files.path.rglob("*")}
    verify(files.path, replays=1)
    assert {path: path.stat().st_mtime_ns for path in files.path.rglob("*")} == before


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["updates", "contents", "certificate", "packets"])
def test_a_flipped_byte_in_any_blob_is_found(files: RunFiles, part: str) -> None:
    entry = files.index(2)[part]
    digest = entry if isinstance(entry, str) else entry[0]["digest"]
    data = bytearray(files.blob(digest).read_bytes())
    data[-1] ^= 1
    files.blob(digest).write_bytes(data)
    assert f"blob {digest}: its content has another digest" in verified(files)[Check.FILES]


def test_a_missing_update_leaves_what_does_not_need_it_checked(files: RunFiles) -> None:
    files.blob(files.index(3)["updates"][0]["digest"]).unlink()
    report = verify(files.path)
    assert failures(report).keys() == {Check.FILES}
    assert report.rounds == 8
    assert result(report, Check.STATES).status is Status.PARTLY
    assert result(report, Check.CERTIFICATES).confirmed == 8


@pytest.mark.parametrize("round", [0, 3, 7])
def test_a_dropped_round_is_found(files: RunFiles, round: int) -> None:
    files.round(round).unlink()
    report = verify(files.path)
    assert f"{round:06}.json: No such file" in failures(report)[Check.FILES]
    assert report.rounds == round


def test_swapped_rounds_are_found(files: RunFiles) -> None:
    first, second = files.round(2).read_bytes(), files.round(3).read_bytes()
    files.round(2).write_bytes(second)
    files.round(3).write_bytes(first)
    assert "says that it is round 3" in verified(files)[Check.FILES]


def test_swapped_rounds_that_say_they_are_not_are_found(files: RunFiles) -> None:
    first, second = files.index(2), files.index(3)
    files.round(2).write_text(json.dumps(second | {"round": 2}))
    files.round(3).write_text(json.dumps(first | {"round": 3}))
    assert verified(files)[Check.HEADS] == "round 2: the head's round, parent is another"


def test_a_round_too_many_is_found(files: RunFiles) -> None:
    files.round(8).write_bytes(files.round(7).read_bytes())
    assert "000008.json: is no round of the task" in verified(files)[Check.FILES]


# --- heads and votes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["state", "next_members", "chain_block"])
def test_a_changed_word_of_a_head_is_another_head(files: RunFiles, word: str) -> None:
    def change(index: Any) -> None:
        index["head"][word] = "07" * 32

    files.edit(files.round(3), change)
    assert "round 3: the certificate is for another head" in verified(files)[Check.CERTIFICATES]


def test_a_changed_parent_is_found(files: RunFiles) -> None:
    files.edit(files.round(3), lambda index: index["head"].update(parent="07" * 32))
    assert verified(files)[Check.HEADS] == "round 3: the head's parent is another"


def test_an_update_exchanged_with_all_digests_made_again_lacks_the_signatures(files: RunFiles) -> None:
    """Whoever keeps the record can compute every digest again, but signs for nobody."""

    def change(index: Any) -> None:
        update = index["updates"][0]
        data = bytearray(files.blob(update["digest"]).read_bytes())
        data[-1] ^= 1
        update["digest"] = files.put(bytes(data))
        contents = files.wire(Contents, index["contents"])
        changed = contents.updates[0].replace(update=bytes.fromhex(update["digest"]))
        contents = contents.replace(updates=(changed, *contents.updates[1:]))
        index["contents"] = index["head"]["contents"] = files.put(contents)

    files.edit(files.round(2), change)
    assert verified(files)[Check.CERTIFICATES] == "round 2: the certificate is for another head"


def test_a_false_signature_in_a_certificate_is_found(files: RunFiles) -> None:
    def change(index: Any) -> None:
        certificate = files.wire(Certificate, index["certificate"])
        first = certificate.ballots[0]
        false = first.replace(signature=first.signature[:-1] + bytes([first.signature[-1] ^ 1]))
        index["certificate"] = files.put(certificate.replace(ballots=(false, *certificate.ballots[1:])))

    files.edit(files.round(4), change)
    report = verify(files.path)
    assert failures(report) == {Check.CERTIFICATES: "round 4: the certificate has no quorum of valid signatures"}
    assert report.rounds == 8


def test_too_few_signatures_are_no_certificate(files: RunFiles) -> None:
    def change(index: Any) -> None:
        certificate = files.wire(Certificate, index["certificate"])
        index["certificate"] = files.put(certificate.replace(ballots=certificate.ballots[:2]))

    files.edit(files.round(0), change)
    assert verified(files).keys() == {Check.CERTIFICATES}


def test_a_proposal_that_is_not_there_is_found(files: RunFiles) -> None:
    def change(index: Any) -> None:
        index["packets"] = [entry for entry in index["packets"] if entry["kind"] != "propose"]

    files.edit(files.round(1), change)
    assert verified(files) == {Check.PROPOSALS: "round 1: there is no proposal of this head"}


# --- commits, cases --------------------------------------------------------------------------------------------------


def test_a_commit_under_a_false_signature_is_found(files: RunFiles) -> None:
    def change(index: Any) -> None:
        entry = next(entry for entry in index["packets"] if entry["kind"] == "commit")
        packet = files.wire(Packet, entry["digest"])
        entry["digest"] = files.put(packet.replace(signature=bytes(64)))

    files.edit(files.round(2), change)
    assert "its signature does not verify" in verified(files)[Check.COMMITS]


def test_a_commit_that_is_not_there_is_found(files: RunFiles) -> None:
    def change(index: Any) -> None:
        index["packets"].remove(next(entry for entry in index["packets"] if entry["kind"] == "commit"))

    files.edit(files.round(5), change)
    assert "round 5: no valid COMMIT" in verified(files)[Check.COMMITS]


def test_an_accusation_by_another_than_the_auditor_is_found(files: RunFiles, world: TrainingWorld) -> None:
    accuse = Accuse(accused=0, audited_round=2)  # round 3 audits round 1
    packets = [signed(world, index, accuse, Kind.ACCUSE, round=3) for index in range(6)]

    def change(index: Any) -> None:
        for packet in packets:
            index["packets"].append({"kind": "accuse", "round": 3, "view": 0, "digest": files.put(packet)})

    files.edit(files.round(3), change)
    report = verify(files.path)
    assert failures(report).keys() == {Check.CASES}
    assert result(report, Check.CASES).failed == 6
    assert "by another than the assigned auditor" in failures(report)[Check.CASES]


def test_a_judgement_without_a_case_is_found(files: RunFiles, world: TrainingWorld) -> None:
    judge = Judge(accused=0, accuser=0, audited_round=2, outcome=Outcome.GUILTY)
    packet = signed(world, 4, judge, Kind.JUDGE, round=3)
    files.edit(
        files.round(3),
        lambda index: index["packets"].append({"kind": "judge", "round": 3, "view": 0, "digest": files.put(packet)}),
    )
    assert "judges no case there is" in verified(files)[Check.CASES]


def test_a_message_of_a_stranger_is_found(files: RunFiles, world: TrainingWorld) -> None:
    packet = signed(world, 4, Accuse(accused=0, audited_round=1), Kind.ACCUSE, round=3)
    stranger = Signer(b"\x07" * 32).sign(world.config.domain, packet.envelope)
    digest = files.put(packet.replace(signature=stranger))
    files.edit(
        files.round(3),
        lambda index: index["packets"].append({"kind": "accuse", "round": 3, "view": 0, "digest": digest}),
    )
    assert "signed by no member" in verified(files)[Check.CASES]


# --- what not even a quorum can sign into being ----------------------------------------------------------------------


def _last(files: RunFiles) -> tuple[Head, Contents, Propose]:
    index = files.index(7)
    words: dict[str, Any] = {name: bytes.fromhex(v) if isinstance(v, str) else v for name, v in index["head"].items()}
    head = Head(**words)
    contents = files.wire(Contents, index["contents"])
    propose = codec.decode_payload(files.packets(7, "propose")[0])
    assert isinstance(propose, Propose)
    return head, contents, propose


def test_a_state_that_all_members_sign_must_still_follow(files: RunFiles, world: TrainingWorld) -> None:
    head, contents, propose = _last(files)
    head = head.replace(state=b"\x07" * 32)
    certified_by_all(world, files, head, contents, propose.replace(head=head))
    found = verified(files)
    assert found.keys() == {Check.STATES, Check.MODEL, Check.ANCHORS}
    assert found[Check.STATES].startswith("round 7: the head's state is 0707070707070707")


def test_an_update_where_nobody_was_to_train_is_found(files: RunFiles, world: TrainingWorld) -> None:
    head, contents, propose = _last(files)
    entry = UpdateEntry(member=contents.commits[0].member, update=contents.commits[0].body)
    contents = contents.replace(updates=(entry,))
    head = head.replace(contents=codec.digest_of(contents))
    certified_by_all(world, files, head, contents, propose.replace(head=head, contents=contents))
    files.edit(
        files.round(7),
        lambda index: index.update(updates=[{"member": entry.member, "digest": entry.update.hex(), "held": True}]),
    )
    assert "round 7: not a trainer there" in verified(files)[Check.ASSIGNMENTS]


def test_another_list_for_an_epoch_that_never_comes_is_found(files: RunFiles, world: TrainingWorld) -> None:
    head, contents, propose = _last(files)
    head = head.replace(next_members=b"\x07" * 32)
    certified_by_all(world, files, head, contents, propose.replace(head=head))
    assert verified(files)[Check.MEMBERS] == "round 7: names another list or chain block than before"


def test_a_verdict_without_its_jurors_is_found(files: RunFiles, world: TrainingWorld) -> None:
    head, contents, propose = _last(files)
    (earlier,) = (
        proof
        for number in range(8)
        for packet in files.packets(number, "propose")
        if isinstance(proposed := codec.decode_payload(packet), Propose)
        for proof in proposed.verdicts
    )
    entry = earlier.entry.replace(round=7, epoch=1, accused=0, accuser=1, audited_round=5)
    contents = contents.replace(verdicts=(entry,))
    head = head.replace(contents=codec.digest_of(contents))
    proof = VerdictProof(entry=entry, ballots=earlier.ballots)
    certified_by_all(world, files, head, contents, propose.replace(head=head, contents=contents, verdicts=(proof,)))
    assert "round 7: propose: verdict" in verified(files)[Check.CASES]


# --- the chain -------------------------------------------------------------------------------------------------------


def chain(files: RunFiles, change: Callable[[list[Any]], object]) -> None:
    files.edit(files.path / "chain.json", lambda content: change(content["events"]))


def of(events: list[Any], name: str) -> Any:
    return next(event for event in events if event["event"] == name)


def test_another_anchored_head_is_found(files: RunFiles) -> None:
    chain(files, lambda events: of(events, "Anchored").update(head="0x" + "07" * 32))
    assert verified(files) == {Check.ANCHORS: "epoch 0: another head is anchored than the transcript's"}


def test_an_epoch_without_its_anchor_is_found(files: RunFiles) -> None:
    chain(files, lambda events: events.remove(of(events, "Anchored")))
    assert verified(files) == {Check.ANCHORS: "epoch 0: is not anchored"}


def test_a_ban_without_its_slash_is_found(files: RunFiles, world: TrainingWorld) -> None:
    chain(files, lambda events: events.remove(of(events, "Slashed")))
    assert "and not slashed for it" in verified(files)[Check.SLASHES]


def test_a_slash_without_a_ban_is_found(files: RunFiles, world: TrainingWorld) -> None:
    honest = "0x" + world.address(0).hex()
    chain(files, lambda events: events.append({**of(events, "Slashed"), "address": honest}))
    assert f"{honest} in block 3: slashed, and no head bans it" in verified(files)[Check.SLASHES]


def test_a_slash_of_another_amount_is_found(files: RunFiles) -> None:
    chain(files, lambda events: of(events, "Slashed").update(amount_wei=1))
    assert "another amount" in verified(files)[Check.SLASHES]


def test_a_registration_that_is_not_there_is_found(files: RunFiles) -> None:
    chain(files, lambda events: events.remove(of(events, "Registered")))
    assert "another list than was registered" in verified(files)[Check.REGISTRY]


def test_another_pvss_key_does_not_fit_what_was_dealt_to_it(files: RunFiles, world: TrainingWorld) -> None:
    other = "0x" + world.peers[1].keys.pvss_key.hex()
    chain(files, lambda events: of(events, "Registered").update(pvss_key=other))
    assert "round 0: dealing or share does not verify" in verified(files)[Check.COMMITS]


def test_another_closing_block_gives_another_first_parent(files: RunFiles) -> None:
    files.edit(files.path / "chain.json", lambda content: content["blocks"][0].update(hash="0x" + "07" * 32))
    assert verified(files) == {Check.HEADS: "round 0: the head's parent is another"}


def test_an_exit_kept_quiet_gives_another_list(files: RunFiles) -> None:
    chain(files, lambda events: events.remove(of(events, "ExitRequested")))
    assert verified(files) == {Check.MEMBERS: "round 2: names another list for epoch 1"}


def test_a_block_that_the_export_lacks_is_named(files: RunFiles) -> None:
    files.edit(files.path / "chain.json", lambda content: content["blocks"].pop())
    assert "which chain.json lacks" in verified(files)[Check.MEMBERS]


# --- the task and the outcome ----------------------------------------------------------------------------------------


def test_a_changed_task_is_another_task(files: RunFiles) -> None:
    path = files.path / "task.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.3", "learning_rate = 0.4"))
    assert verified(files).keys() == {Check.TASK}


def test_another_deployment_has_other_signatures(files: RunFiles) -> None:
    path = files.path / "task.toml"
    path.write_text(path.read_text().replace("chain_id = 1", "chain_id = 2"))
    assert Check.CERTIFICATES in verified(files)


def test_another_digest_in_the_summary_is_found(files: RunFiles) -> None:
    files.edit(files.path / "summary.json", lambda summary: summary["model_digest"].update(peer4="07" * 32))
    assert verified(files) == {Check.MODEL: "summary.json: peer4 ends with another state"}


def test_an_embellished_accuracy_is_found(files: RunFiles) -> None:
    files.edit(files.path / "summary.json", lambda summary: summary.update(final_accuracy=0.99))
    assert "says accuracy 0.99" in verified(files)[Check.MODEL]


def test_another_model_is_found(files: RunFiles, world: TrainingWorld) -> None:
    path = files.path / "model.safetensors"
    state = load_state(path, world.learner)
    save_state(path, State(parameters=np.negative(state.parameters), momentum=state.momentum), world.learner)
    assert verified(files) == {Check.MODEL: "model.safetensors: holds another state than the last head's"}


def test_what_is_not_there_to_compare_with_is_said(files: RunFiles) -> None:
    for name in ("model.safetensors", "summary.json"):
        (files.path / name).unlink()
    report = verify(files.path)
    assert report.ok
    assert result(report, Check.MODEL).status is Status.UNCHECKED
    assert len(result(report, Check.MODEL).unchecked) == 2


@pytest.mark.parametrize("name", ["task.toml", "chain.json", "transcript"])
def test_without_what_everything_rests_on_there_is_nothing_to_check(files: RunFiles, name: str) -> None:
    (files.path / name).rename(files.path / "elsewhere")
    with pytest.raises(Unusable, match=name):
        verify(files.path)


def test_code_that_the_task_brings_is_not_run_unasked(files: RunFiles) -> None:
    path = files.path / "task.toml"
    path.write_text(path.read_text().replace('model = "digits_mlp"', 'model = "antigravity:fly"'))
    with pytest.raises(Unusable, match="would run code that the task brings"):
        verify(files.path)


def test_every_check_has_a_line_for_a_person(honest_run: Path) -> None:
    told = lines(verify(honest_run))
    assert sum(line.startswith(("ok", "not checked")) for line in told) == len(Check)
