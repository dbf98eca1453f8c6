"""What each numeric profile promises: equal bytes, or that nobody honest loses by what machines round differently."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learning import rounds
from p2pdfl.base import params
from p2pdfl.base.task import Task, TaskError
from p2pdfl.base.types import Outcome
from p2pdfl.byzantine.machine import Poison
from p2pdfl.byzantine.updates import Poisoner, WithBackdoor
from p2pdfl.learning import replay
from p2pdfl.learning.learner import Learner, ReplayMismatch, State, TooNoisy, measure
from p2pdfl.learning.profiles import arithmetic
from p2pdfl.learning.quantize import INT8, Header, encode

AUTHOR = bytes(20)
CHAOTIC = {"learning_rate": 1.0, "local_steps": 100}
"""Each rounding error grows by orders of magnitude."""


@pytest.fixture(scope="module")
def tolerant() -> Iterator[Learner]:
    learner = Learner(Task(profile="tolerant"))
    yield learner
    # all other tests compute as under exact
    arithmetic("exact").enter()


@pytest.fixture(scope="module")
def state(tolerant: Learner) -> State:
    """After one round."""
    update = tolerant.train(tolerant.initial_state(), **rounds.assignment(0, AUTHOR))
    return tolerant.aggregate(tolerant.initial_state(), [update])


ASSIGNMENT = rounds.assignment(3, AUTHOR)


def vector(learner: Learner, update: bytes) -> np.ndarray:
    return learner.decode(update, task_id=bytes(32), round=3, author=AUTHOR)


def sent(learner: Learner, values: np.ndarray) -> bytes:
    return learner.encode(values, learner.header(task_id=bytes(32), round=3, author=AUTHOR))


# --- exact: the same bytes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, list[str]]]]:
    """By environment, what `rounds` finds."""
    environments = {
        "one thread": {},
        "three threads": {
            "OMP_NUM_THREADS": "3",
            "MKL_NUM_THREADS": "3",
            "OPENBLAS_NUM_THREADS": "3",
            # threads that spin while others wait for a processor take minutes
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        "AVX2": {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
        },
        "SSE": {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_CBWR": "COMPATIBLE",
            "NPY_DISABLE_CPU_FEATURES": "X86_V4",
            "OPENBLAS_CORETYPE": "Nehalem",
        },
    }
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE"}
    tests = Path(__file__).parent.parent
    directory = tmp_path_factory.mktemp("rounds")
    results = {}
    for name, environment in environments.items():
        path = directory / name
        subprocess.run(
            [sys.executable, "-m", "learning.rounds", path],
            cwd=tests,
            env=os.environ | one | environment | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
            timeout=300,
            check=True,
        )
        results[name] = json.loads(path.read_bytes())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("model", rounds.MODELS)
def test_twenty_rounds_of_updates_and_states_are_the_same_bytes_everywhere(
    found: dict[str, dict[str, dict[str, list[str]]]], model: str
) -> None:
    expected = found["one thread"][model]["exact"]
    assert len(set(expected)) == rounds.ROUNDS * (len(rounds.TRAINERS) + 1)
    for environment, results in found.items():
        assert results[model]["exact"] == expected, environment


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instruction sets are those of x86-64")
@pytest.mark.parametrize("model", rounds.TOLERANT)
def test_control__in_float32_the_same_environments_differ(
    found: dict[str, dict[str, dict[str, list[str]]]], model: str
) -> None:
    assert len({tuple(results[model]["unquantized"]) for results in found.values()}) > 1


# --- tolerant: honest noise ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", rounds.TOLERANT)
def test_what_other_threads_and_instruction_sets_make_of_float32_is_accepted(
    found: dict[str, dict[str, dict[str, list[str]]]], model: str, tolerant: Learner
) -> None:
    exact, auditor = Learner(rounds.task(model, "exact")), Learner(rounds.task(model, "tolerant"))
    state = exact.initial_state()
    for round in range(rounds.ROUNDS):
        assignment = rounds.assignment(round, rounds.TRAINERS[0])
        reference = exact.train(state, **assignment)
        for results in found.values():
            update = bytes.fromhex(results[model]["tolerant"][round])
            assert auditor.audit(update, state, **assignment) is Outcome.FALSE
            assert replay.relative_distance(update, reference, INT8) < 0.002
        updates = [exact.train(state, **rounds.assignment(round, author)) for author in rounds.TRAINERS]
        state = exact.aggregate(state, updates)
        assert state.digest().hex() == found["one thread"][model]["exact"][4 * round + 3]


def test_float64_is_accepted_by_float32(learner: Learner, tolerant: Learner, state: State) -> None:
    assert tolerant.audit(learner.train(state, **ASSIGNMENT), state, **ASSIGNMENT) is Outcome.FALSE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_gpu_and_the_processor_accept_each_others_updates(
    tolerant: Learner, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    processor = Learner(tolerant.task)
    assert (tolerant.arithmetic.device.type, processor.arithmetic.device.type) == ("cuda", "cpu")
    for author, auditor in ((processor, tolerant), (tolerant, processor)):
        assert auditor.audit(author.train(state, **ASSIGNMENT), state, **ASSIGNMENT) is Outcome.FALSE
    assert tolerant.reference_replay() == processor.reference_replay()
    assert tolerant.evaluate(state) == pytest.approx(processor.evaluate(state), abs=0.01)


def test_updates_and_states_are_the_same_kind_under_both(learner: Learner, tolerant: Learner) -> None:
    """The state is float64 and common to all; only training is in float32."""
    assert tolerant.initial_state().digest() == learner.initial_state().digest()
    updates = [tolerant.train(tolerant.initial_state(), **rounds.assignment(0, author)) for author in rounds.TRAINERS]
    states = [one.aggregate(one.initial_state(), updates).digest() for one in (learner, tolerant)]
    assert states[0] == states[1]


# --- tolerant: attacks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backdoor(tolerant: Learner, state: State) -> np.ndarray:
    """Where an update to install it points, beside the honest one: of length 1."""
    difference = vector(tolerant, WithBackdoor(tolerant.task).train(state, **ASSIGNMENT)) - vector(
        tolerant, tolerant.train(state, **ASSIGNMENT)
    )
    return np.asarray(difference / float(np.linalg.norm(difference)))


@pytest.mark.parametrize(
    ("share", "outcome"),
    [
        (0.5, Outcome.GUILTY),
        (0.3, Outcome.GUILTY),
        # the least of which colluders had any use: a backdoor's success of 9 %
        (0.2, Outcome.GUILTY),
        (0.1, Outcome.GUILTY),
        (0.03, Outcome.GUILTY),
        (0.015, Outcome.VOID),
        (0.005, Outcome.FALSE),
    ],
)
def test_a_backdoor_within_a_share_of_the_honest_update(
    tolerant: Learner, state: State, backdoor: np.ndarray, share: float, outcome: Outcome
) -> None:
    honest = vector(tolerant, tolerant.train(state, **ASSIGNMENT))
    claimed = sent(tolerant, honest + share * float(np.linalg.norm(honest)) * backdoor)
    assert tolerant.audit(claimed, state, **ASSIGNMENT) is outcome


@pytest.mark.parametrize(
    ("behaviour", "factor"),
    [
        ("sign_flip", None),
        ("noise", 0.1),
        ("ipm", 0.1),
        ("alie", 0.76),
        ("alie", 1.5),
        ("mimic", None),
        ("zero", None),
        ("label_flip", None),
        ("backdoor", 0.5),
    ],
)
def test_attacks_are_guilty(tolerant: Learner, state: State, behaviour: str, factor: float | None) -> None:
    effect = Poison(
        round=3,
        parent_state=state.digest(),
        seed=ASSIGNMENT["seed"],
        behaviour=behaviour,  # type: ignore[arg-type]
        factor=factor,
        is_active=True,
        others=tuple((bytes([other]) * 20, bytes([other]) * 32) for other in (1, 2, 3)),
    )

    def honest(author: bytes, seed: bytes) -> bytes:
        return tolerant.train(state, seed=seed, task_id=bytes(32), round=3, author=author)

    claimed = Poisoner(tolerant, bytes(32)).train(effect, state, AUTHOR, honest)
    assert tolerant.audit(claimed, state, **ASSIGNMENT) is Outcome.GUILTY


@pytest.mark.parametrize("claimed", [b"", b"junk", bytes(17311)])
def test_what_does_not_decode_is_guilty(tolerant: Learner, state: State, claimed: bytes) -> None:
    assert tolerant.audit(claimed, state, **ASSIGNMENT) is Outcome.GUILTY


# --- nobody honest loses -------------------------------------------------------------------------------------------

CODES = np.random.default_rng(0).integers(-100, 101, 4096).astype(np.float64)
CODES[::1024] = 127.0
HEADER = Header(task_id=bytes(32), round=0, author=AUTHOR, dimension=CODES.size)
PLACES = 200
"""So many codes, each one off, are nearly AUDIT_NOISE_MAX."""
places = st.integers(0, PLACES)
one_off = st.integers(-1, 1)


def moved_by(codes: int, count: int) -> bytes:
    """All along one line, where differences add up."""
    values = CODES.copy()
    values[1 : 1 + count] += codes
    return encode(values, HEADER, INT8)


@given(st.integers(-12, 12), places, one_off, one_off)
def test_who_accuses_by_an_honest_replay_is_never_found_to_have_accused_falsely(
    authors: int, count: int, auditors: int, jurors: int
) -> None:
    """However the author chose its update: two replays that are as far apart as noise may be do not disagree so."""
    claimed, auditor, juror = (moved_by(codes, count) for codes in (authors, auditors, jurors))
    for one in (auditor, juror):
        assert replay.relative_distance(one, moved_by(0, 0), INT8) <= params.AUDIT_NOISE_MAX
    found = {replay.compare(claimed, replayed, INT8, "tolerant") for replayed in (auditor, juror)}
    assert not found >= {Outcome.GUILTY, Outcome.FALSE}


@given(one_off, one_off, places)
def test_an_honest_update_is_false_to_accuse_on_every_machine(authors: int, jurors: int, count: int) -> None:
    found = replay.compare(moved_by(authors, count), moved_by(jurors, count), INT8, "tolerant")
    assert found is Outcome.FALSE


@pytest.mark.slow
def test_where_rounding_decides_nobody_is_guilty() -> None:
    """Two honest machines are further apart than any attack has to be."""
    single, double = Learner(Task(profile="tolerant", **CHAOTIC)), Learner(Task(**CHAOTIC))
    state = double.initial_state()
    distances = []
    for round in range(6):
        assignment = rounds.assignment(round, AUTHOR)
        update = double.train(state, **assignment)
        distances.append(replay.relative_distance(single.train(state, **assignment), update, INT8))
        assert single.audit(update, state, **assignment) is not Outcome.GUILTY
        state = double.aggregate(state, [update])
    assert max(distances) > params.AUDIT_TOLERANCE


@pytest.mark.slow
def test_where_rounding_decides_nobody_is_guilty_under_exact() -> None:
    """Of a processor of another kind there is only this here: one that rounds each parameter to its neighbour."""
    learner = Learner(Task(learning_rate=1.0, local_steps=150))
    state = learner.initial_state()
    distances = []
    for round in range(8):
        assignment = rounds.assignment(round, AUTHOR)
        rounded = State(parameters=np.nextafter(state.parameters, np.inf), momentum=state.momentum)
        claimed, update = learner.train(rounded, **assignment), learner.train(state, **assignment)
        distances.append(replay.relative_distance(claimed, update, INT8))
        assert learner.audit(claimed, state, **assignment) is not Outcome.GUILTY
        state = learner.aggregate(state, [update])
    assert max(distances) > params.AUDIT_TOLERANCE


# --- what is checked at the start ----------------------------------------------------------------------------------


def test_a_task_is_measured_and_checked_in_float64_under_both() -> None:
    task = measure(Task(profile="tolerant", local_steps=3))
    assert task.reference_replay == measure(Task(local_steps=3)).reference_replay
    Learner(task).check_reference()
    with pytest.raises(ReplayMismatch, match="reference_replay: the task says 00"):
        Learner(task.model_copy(update={"reference_replay": bytes(32)})).check_reference()


def test_tolerant__reject__rounding_alone_changes_the_reference_replay() -> None:
    with pytest.raises(TooNoisy, match=r"^profile: by rounding alone this task's updates are .* need 0.004"):
        measure(Task(profile="tolerant", **CHAOTIC))


def test_tolerant__reject__max_pooling() -> None:
    model = "learning.custom:relu_and_max_pool"
    with pytest.raises(TaskError, match=r"^model: layer '3' \(MaxPool2d\) jumps where machines round differently"):
        Learner(Task(model=model, profile="tolerant"))
    assert Learner(Task(model=model)).dimension > 0


def test_what_each_profile_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(arithmetic("exact")) == "float64 on the processor, 1 thread"
    assert str(arithmetic("tolerant")).startswith("float32 on the processor, ")


def test_a_learner_computes_in_its_own_profiles_arithmetic_whatever_was_before(
    learner: Learner, tolerant: Learner, state: State
) -> None:
    before = learner.train(state, **ASSIGNMENT)
    tolerant.train(state, **ASSIGNMENT)
    assert sha256(learner.train(state, **ASSIGNMENT)).digest() == sha256(before).digest()
    assert torch.get_num_threads() == 1
