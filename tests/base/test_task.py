"""A task's id covers every field, and a file that cannot be used says which field is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from p2pdfl.base.task import RULES, Deployment, Task, TaskError, TaskFile, load, save

TASK = Task(data_digest=b"d" * 32, initial_state=b"i" * 32, reference_replay=b"r" * 32)
CHAIN = Deployment(rpc="http://127.0.0.1:8545", chain_id=131277322940537, contract=bytes(range(20)))

OTHER: dict[str, Any] = {
    "name": "other",
    "model": "package.module:model",
    "data": "package.module:data",
    "seed": 1,
    "profile": "tolerant",
    "training_rounds": 21,
    "epoch_rounds": 5,
    "audit_fraction": 0.5,
    "verdict_rounds": 3,
    "dirichlet": 0.3,
    "local_steps": 6,
    "batch_size": 33,
    "learning_rate": 0.1,
    "outer_learning_rate": 0.5,
    "outer_momentum": 0.9,
    "rule": "mean",
    "codes": "int4",
    "compression": "zstd",
    "members_min": 4,
    "deposit_wei": 2 * 10**18,
    "verdict_slash_wei": 1,
    "equivocation_slash_wei": 1,
    "cooldown_blocks": 21,
    "stall_blocks": 1001,
    "confirmations": 2,
    "commit_ms": 1,
    "reveal_ms": 1,
    "grace_ms": 1,
    "view_ms": 1,
    "resync_ms": 1,
    "data_digest": b"e" * 32,
    "initial_state": b"e" * 32,
    "reference_replay": b"e" * 32,
}


def changed(**fields: Any) -> Task:
    return Task.model_validate(TASK.model_dump() | fields)


def test_every_field_is_tried() -> None:
    assert set(OTHER) == set(Task.model_fields)


@pytest.mark.parametrize("field", OTHER)
def test_the_id_changes_with_every_field(field: str) -> None:
    assert getattr(TASK, field) != OTHER[field]
    assert changed(**{field: OTHER[field]}).task_id() != TASK.task_id()


def test_the_id_of_equal_tasks_is_equal() -> None:
    assert changed().task_id() == TASK.task_id()
    assert len(TASK.task_id()) == 32


def test_swapped_digests_give_another_id() -> None:
    assert changed(data_digest=b"i" * 32, initial_state=b"d" * 32).task_id() != TASK.task_id()


@pytest.mark.parametrize("field", ["data_digest", "initial_state", "reference_replay"])
def test_a_task_has_no_id_before_it_is_measured(field: str) -> None:
    task = changed(**{field: None})
    assert not task.is_measured
    with pytest.raises(AssertionError):
        task.task_id()


@pytest.mark.parametrize("chain", [CHAIN, None], ids=["published", "not yet"])
def test_a_saved_file_loads_again(tmp_path: Path, chain: Deployment | None) -> None:
    path = tmp_path / "runs" / "task.toml"
    file = TaskFile(task=changed(learning_rate=1 / 3, audit_fraction=1e-7), chain=chain)
    save(path, file)
    assert load(path) == file
    assert load(path).task.task_id() == file.task.task_id()


@pytest.mark.parametrize("apart", ["profile", "codes"])  # tolerant is not for int4
def test_every_field_survives_a_file(tmp_path: Path, apart: str) -> None:
    path = tmp_path / "task.toml"
    file = TaskFile(task=changed(**{name: value for name, value in OTHER.items() if name != apart}), chain=CHAIN)
    save(path, file)
    assert load(path) == file


def test_an_empty_task_table_is_the_default_task(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text("[task]\n")
    assert load(path) == TaskFile(task=Task())


def test_digests_may_be_written_with_0x(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text(f'[task]\ndata_digest = "0x{"ab" * 32}"\n')
    assert load(path).task.data_digest == b"\xab" * 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "task: Field required"),
        ("[task]\nseeds = 1\n", "task.seeds: there is no such field"),
        ("[task]\nseed = -1\n", "task.seed: "),
        ('[task]\nname = "No Spaces"\n', "task.name: "),
        ("[task]\nepoch_rounds = 2\n", "task.epoch_rounds: "),
        ("[task]\nmembers_min = 257\n", "task.members_min: "),
        ("[task]\naudit_fraction = 1.5\n", "task.audit_fraction: "),
        ("[task]\nlearning_rate = nan\n", "task.learning_rate: "),
        ("[task]\ndirichlet = 0\n", "task.dirichlet: "),
        ("[task]\ndirichlet = inf\n", "task.dirichlet: "),
        ("[task]\ndirichlet = 0.0005\n", "task.dirichlet: must be a whole number of thousandths"),
        ('[task]\nrule = "median of nothing"\n', "task.rule: there is mean, median, trimmed_mean, krum, "),
        ('[task]\nrule = "nnm_clip_mean"\n', "each also after nnm_, clip_ or clip_nnm_"),
        ("[task]\nrule = 7\n", "task.rule: "),
        ('[task]\ndata_digest = "abcd"\n', "task.data_digest: "),
        ('[task]\ndata_digest = "not hex"\n', "task.data_digest: "),
        ("[task]\ndata_digest = 7\n", "task.data_digest: "),
        ("[task]\nverdict_slash_wei = 2000000000000000000\n", "a slash exceeds deposit_wei"),
        ('[task]\nprofile = "tolerant"\ncodes = "int4"\n', "profile tolerant is for int8 codes"),
        ('[task]\n[chain]\nrpc = "ftp://x"\nchain_id = 1\ncontract = "0x00"\n', "chain.rpc: "),
        ("[task]\n[chain]\n", "chain.contract: Field required"),
        ("[task\n", "not readable as TOML"),
        ("[task]\nseed = 1\nseed = 2\n", "not readable as TOML"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "task.toml"
    path.write_text(text)
    with pytest.raises(TaskError) as refused:
        load(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


def test_every_rule_can_be_a_tasks() -> None:
    assert len(RULES) == 32
    assert {changed(rule=rule).rule for rule in RULES} == set(RULES)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="p2pdfl devchain"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\x00"], ids=["not UTF-8", "NUL"])
def test_binary_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(data)
    with pytest.raises(TaskError, match="not readable as TOML"):
        load(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="not readable as TOML"):
        load(tmp_path)


@pytest.mark.parametrize(("training_rounds", "epoch_rounds"), [(20, 13), (1, 3), (1, 50), (7, 13), (100, 3)])
def test_epochs_partition_the_rounds(training_rounds: int, epoch_rounds: int) -> None:
    task = changed(training_rounds=training_rounds, epoch_rounds=epoch_rounds)
    epochs = [task.epoch_of(round) for round in range(task.total_rounds)]
    assert sorted(set(epochs)) == list(range(task.epoch_count))
    assert epochs == sorted(epochs)
    for epoch in range(task.epoch_count):
        last = task.last_round_of(epoch)
        assert epochs[last] == epoch
        assert last == task.total_rounds - 1 or epochs[last + 1] == epoch + 1
        assert epochs.count(epoch) >= min(epoch_rounds, task.total_rounds)


def test_tables_are_frozen() -> None:
    assert isinstance(TASK, BaseModel)
    with pytest.raises(ValueError, match="frozen"):
        TASK.seed = 5  # type: ignore[misc]
