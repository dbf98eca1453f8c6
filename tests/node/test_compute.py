from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from node.nodes import keys_of, learner, measured
from p2pdfl.base import params
from p2pdfl.base.types import Commit, Outcome
from p2pdfl.crypto import pvss
from p2pdfl.learning.learner import load_state
from p2pdfl.node.compute import Compute
from p2pdfl.protocol.events import CheckCommits, Deal, DealingCheck, Decrypt, Replay, Train

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def compute() -> Compute:
    return compute_of("ada")


def compute_of(name: str) -> Compute:
    task = measured()
    return Compute(learner(task), task.task_id(), keys_of(name), secrets.token_bytes)


def train(compute: Compute, round: int = 3) -> bytes:
    state = compute.initial_state()
    return compute.train(Train(round=round, parent_state=state.digest(), seed=SEED), state)


def audit(compute: Compute, claimed: bytes, **changes: object) -> Outcome:
    state = compute.initial_state()
    effect = Replay(
        audited_round=3,
        parent_state=state.digest(),
        seed=SEED,
        author=keys_of("ada").address,
        update=bytes(32),
    )
    fields = {name: getattr(effect, name) for name in effect.__slots__} | changes
    return compute.replay(Replay(**fields), state, claimed)


def test_an_auditor_finds_what_the_author_computed(compute: Compute) -> None:
    assert audit(compute_of("bob"), train(compute)) is Outcome.FALSE


@pytest.mark.parametrize(
    "changes", [{"seed": bytes(32)}, {"audited_round": 4}, {"author": bytes(20)}], ids=["seed", "round", "author"]
)
def test_an_update_that_does_not_follow_from_its_assignment_is_found_guilty(
    compute: Compute, changes: dict[str, object]
) -> None:
    assert audit(compute, train(compute), **changes) is Outcome.GUILTY


@pytest.mark.parametrize("spoil", [lambda update: b"", lambda update: update[:-1], lambda update: bytes(len(update))])
def test_bytes_that_are_no_update_are_invalid_and_guilty(compute: Compute, spoil: Callable[[bytes], bytes]) -> None:
    update = train(compute)
    assert compute.refusal(update, 3, keys_of("ada").address) is None
    assert compute.refusal(spoil(update), 3, keys_of("ada").address) is not None
    assert audit(compute, spoil(update)) is Outcome.GUILTY


def test_an_update_is_valid_under_its_own_header_only(compute: Compute) -> None:
    update = train(compute)
    assert compute.refusal(update, 4, keys_of("ada").address) == "update is under another header"
    assert compute.refusal(update, 3, keys_of("bob").address) == "update is under another header"


def test_an_honest_update_fits_the_bound(compute: Compute) -> None:
    assert len(train(compute)) <= compute.update_bytes_max
    assert compute.update_bytes_max <= len(train(compute)) + 2 * 4096


def test_members_that_hold_the_same_updates_come_to_the_same_state(compute: Compute) -> None:
    updates = [train(compute_of(name)) for name in ("ada", "bob", "cyd")]
    state = compute.aggregate(compute.initial_state(), updates)
    assert state.digest() == compute_of("bob").aggregate(compute.initial_state(), updates).digest()
    assert state.digest() != compute.initial_state().digest()
    assert compute.aggregate(state, []).digest() == state.digest()


def test_the_saved_model_is_the_state(compute: Compute, tmp_path: Path) -> None:
    state = compute.aggregate(compute.initial_state(), [train(compute)])
    compute.save(tmp_path / "model.safetensors", state)
    assert load_state(tmp_path / "model.safetensors", learner(measured())).digest() == state.digest()


def test_dealings_and_shares_made_here_verify_and_others_are_named() -> None:
    names = ("ada", "bob", "cyd")
    members = [compute_of(name) for name in names]
    keys = tuple(keys_of(name).pvss_key for name in names)
    threshold = params.threshold(3)
    dealings = [
        member.deal(Deal(round=1, context=name.encode(), keys=keys, threshold=threshold))
        for member, name in zip(members, names, strict=True)
    ]
    summed = [pvss.sum_dealings(dealings)[index] for index in range(3)]
    shares = [
        member.decrypt(Decrypt(round=1, context=b"share " + name.encode(), summed=summed[index]))
        for index, (member, name) in enumerate(zip(members, names, strict=True))
    ]
    # cyd shows ada's dealing, bob ada's share
    dealt = [dealings[0], dealings[1], dealings[0]]
    shown = [shares[0], shares[0], shares[2]]
    checks = tuple(
        DealingCheck(
            body=name.encode().ljust(32, b"\0"),
            commit=Commit(parent=bytes(32), update=bytes(32), dealing=dealt[index], share=shown[index]),
            dealing_context=name.encode(),
            share_context=b"share " + name.encode(),
            holder_key=keys[index],
            summed=summed[index],
        )
        for index, name in enumerate(names)
    )
    invalid = members[0].find_invalid(CheckCommits(round=1, checks=checks, keys=keys, threshold=threshold))
    assert {body.rstrip(b"\0").decode() for body in invalid} == {"bob", "cyd"}
