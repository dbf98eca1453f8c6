"""The same bits everywhere, and the bounds that rules are there for; `test_byzfl` compares them with others' code."""

import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base.task import RULES
from p2pdfl.learning import aggregate as rules
from p2pdfl.learning.aggregate import aggregate, byzantine_count_max, gram, selection_network
from p2pdfl.learning.quantize import INT4, INT8, Coding, Header, Quantized, encode, parse

CHUNK = INT8.chunk
DIMENSION = 5 * CHUNK + 100  # more than a block, and a last chunk that is not full

both_codings = pytest.mark.parametrize("coding", [INT8, INT4], ids=["int8", "int4"])


def quantized(vector: np.ndarray, coding: Coding = INT8) -> Quantized:
    header = Header(task_id=bytes(32), round=0, author=bytes(20), dimension=vector.size)
    return parse(encode(vector, header, coding), header, coding)


def updates_around(
    direction: np.ndarray, count: int, seed: int = 0, noise: float = 0.5, coding: Coding = INT8
) -> list[Quantized]:
    draw = np.random.default_rng(seed)
    return [quantized(direction + noise * draw.standard_normal(direction.size), coding) for _ in range(count)]


def naive_clip_nnm_trimmed_mean(updates: list[Quantized]) -> np.ndarray:
    x = np.stack([update.values() for update in updates])
    count, f = len(x), (len(x) - 1) // 2
    norms = np.linalg.norm(x, axis=1)
    bound = np.sort(norms)[(count - 1) // 2]
    x = x * np.minimum(1, bound / np.where(norms == 0, 1, norms))[:, None]
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : count - f]
    mixed = x[nearest].mean(axis=1)
    trimmed: np.ndarray = np.sort(mixed, axis=0)[f : count - f].mean(axis=0)
    return trimmed


def relative_difference(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


@both_codings
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
def test_default_rule_agrees_with_the_naive_one(count: int, coding: Coding) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), count, noise=0.02, coding=coding)
    updates[-1] = quantized(updates[-1].values() * -1000, coding)
    result = aggregate("clip_nnm_trimmed_mean", updates)
    assert relative_difference(result, naive_clip_nnm_trimmed_mean(updates)) <= 1e-12


@pytest.mark.parametrize("count", [1, 2, 7])
def test_mean_agrees_with_the_naive_one(count: int) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), count)
    result = aggregate("mean", updates)
    assert relative_difference(result, np.mean([update.values() for update in updates], axis=0)) <= 1e-12


@both_codings
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_gram_is_exact(coding: Coding, count: int, dimension: int, seed: int) -> None:
    """Also over chunks whose scales lie far apart: every product here is an integer that float64 holds."""
    draw = np.random.default_rng(seed)
    largest = coding.code_max
    vectors = draw.integers(-largest, largest, (count, dimension), endpoint=True) * 2.0 ** draw.integers(
        0, 9, (count, 1)
    )
    vectors[:, 0] = largest
    updates = [quantized(vector, coding) for vector in vectors]
    exact = [[sum(int(a) * int(b) for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    decoded = [update.values() for update in updates]
    if all((decoded[i] == vectors[i]).all() for i in range(count)):
        assert gram(updates).tolist() == exact


@both_codings
def test_gram_of_extreme_codes_is_exact(coding: Coding) -> None:
    """The worst case of the bound 127^2 * 1024 < 2^24."""
    full = quantized(np.full(3 * CHUNK, float(coding.code_max)), coding)
    assert gram([full, full])[0][1] == 3 * CHUNK * coding.code_max**2


@pytest.mark.parametrize("rule", RULES)
def test_what_both_codings_can_say_has_one_aggregate(rule: str) -> None:
    """Up to the order of sums over chunks: int4 has four times as many."""
    fine = updates_around(np.full(DIMENSION, 0.01), 7)
    coarse = [quantized(update.values(), INT4) for update in fine]
    same = [quantized(update.values()) for update in coarse]
    assert all((a.values() == b.values()).all() for a, b in zip(coarse, same, strict=True))
    assert relative_difference(aggregate(rule, coarse), aggregate(rule, same)) <= 1e-12


@both_codings
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [4, 5, 8])
def test_another_order_gives_the_same_up_to_rounding(rule: str, count: int, coding: Coding) -> None:
    """Not always the same bits: that is why the order of members is fixed."""
    updates = updates_around(np.full(DIMENSION, 0.01), count, coding=coding)
    # outliers far apart, so that no other choice is as good: between equals the order decides
    for place in range(byzantine_count_max(count)):
        updates[place] = quantized(-(3.0 ** (place + 1)) * updates[place].values(), coding)
    assert relative_difference(aggregate(rule, updates[::-1]), aggregate(rule, updates)) <= 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_the_same_order_gives_the_same_bits(rule: str) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), 5)
    assert aggregate(rule, updates).tobytes() == aggregate(rule, updates).tobytes()


@both_codings
@pytest.mark.parametrize("rule", RULES)
def test_block_and_batch_sizes_do_not_change_the_bits(
    rule: str, coding: Coding, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), 5, coding=coding)
    before = aggregate(rule, updates)
    monkeypatch.setattr(rules, "_BLOCK_BYTES", 1)
    assert aggregate(rule, updates).tobytes() == before.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_no_aggregate_is_a_negative_zero(rule: str) -> None:
    """minimum and maximum may take either of two zeros, so -0.0 must not come up."""
    updates = [quantized(np.zeros(3)), quantized(np.array([-1.0, 0.0, 1.0])), quantized(np.zeros(3))]
    result = aggregate(rule, updates)
    assert not np.signbit(result[result == 0]).any()


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign flip": lambda update: -update,
    "sign flip times 1000": lambda update: -1000 * update,
    "times 1000": lambda update: 1000 * update,
    "zero": lambda update: 0 * update,
    "saturated": lambda update: np.full_like(update, 1e300),
    "saturated the other way": lambda update: np.full_like(update, -1e300),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("count", [3, 4, 7, 8])
def test_a_minority_of_outliers_moves_the_aggregate_less_than_the_honest_spread(attack: str, count: int) -> None:
    direction = np.random.default_rng(5).standard_normal(DIMENSION)
    honest = updates_around(direction, count - byzantine_count_max(count), noise=0.3)
    bad = [quantized(ATTACKS[attack](honest[0].values())) for _ in range(byzantine_count_max(count))]
    result = aggregate("clip_nnm_trimmed_mean", [*bad, *honest])
    values = [update.values() for update in honest]
    spread = max(np.linalg.norm(x - y) for x, y in itertools.combinations(values, 2))
    # clipping shortens honest updates to the lower median as well, hence the small allowance
    assert np.linalg.norm(result - np.mean(values, axis=0)) <= 1.05 * spread


@pytest.mark.parametrize("count", [3, 4, 9])
def test_the_aggregate_is_not_longer_than_the_longest_honest_update(count: int) -> None:
    honest = updates_around(np.ones(DIMENSION), count - byzantine_count_max(count))
    bad = [quantized(np.full(DIMENSION, 1e300)) for _ in range(byzantine_count_max(count))]
    result = aggregate("clip_nnm_trimmed_mean", [*honest, *bad])
    # each coordinate is a median of means of clipped updates: at most sqrt(2) longer than those for an even count
    assert np.linalg.norm(result) <= 2**0.5 * max(np.linalg.norm(update.values()) for update in honest)


def test_the_mean_is_moved_anywhere_by_one() -> None:
    honest = updates_around(np.ones(DIMENSION), 7)
    assert aggregate("mean", [quantized(-1000 * honest[0].values()), *honest]).mean() < -100


@pytest.mark.parametrize("rule", RULES)
def test_zero_updates_give_zero(rule: str) -> None:
    for count in (1, 2, 3, 4):
        zeros = [quantized(np.zeros(10))] * count
        assert aggregate(rule, zeros).tolist() == [0.0] * 10


def test_a_majority_of_zeros_clips_the_rest_to_zero() -> None:
    updates = [quantized(np.zeros(10)), quantized(np.zeros(10)), quantized(-np.ones(10))]
    assert aggregate("clip_nnm_trimmed_mean", updates).tolist() == [0.0] * 10


@pytest.mark.parametrize("rule", RULES)
def test_equal_updates_give_that_update(rule: str) -> None:
    update = updates_around(np.ones(DIMENSION), 1)[0]
    for count in (1, 2, 3, 6):
        result = aggregate(rule, [update] * count)
        assert relative_difference(result, update.values()) <= 1e-15


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean", "clip_mean", "nnm_mean", "clip_nnm_mean"}))
@pytest.mark.parametrize("count", [3, 4, 7])
def test_what_a_majority_agrees_on_is_the_result(rule: str, count: int) -> None:
    update = quantized(np.arange(1.0, 101.0))
    bad = [quantized((-1000.0) ** (i + 1) * np.arange(1.0, 101.0)) for i in range(byzantine_count_max(count))]
    result = aggregate(rule, [*bad, *[update] * (count - len(bad))])
    assert relative_difference(result, update.values()) <= 1e-12


def compared(row: list[int], network: list[rules.Comparator]) -> list[int]:
    arrays = [np.array([float(value)]) for value in row]
    rules._sort(arrays, network)
    return [int(array[0]) for array in arrays]


@pytest.mark.parametrize("count", range(1, 10))
def test_the_selection_network_puts_the_middle_where_sorting_would(count: int) -> None:
    """Knuth's 0-1 principle: right for all inputs of zeros and ones is right for all inputs."""
    f = byzantine_count_max(count)
    network = selection_network(count, f)
    for bits in range(2**count):
        row = [bits >> place & 1 for place in range(count)]
        ordered = sorted(row)
        assert compared(row, network)[f : count - f] == ordered[f : count - f]


@pytest.mark.parametrize("count", [33, 64, 256])
def test_the_selection_network_works_at_full_size(count: int) -> None:
    f = byzantine_count_max(count)
    row = np.random.default_rng(count).permutation(count)
    assert compared(row.tolist(), selection_network(count, f))[f : count - f] == list(range(f, count - f))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_sums_of_rounded_weights_times_codes_need_no_rounding(data: st.DataObject) -> None:
    """So their order, and whether products are rounded before they are added, cannot matter."""
    count = data.draw(st.integers(1, 256))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spread = data.draw(st.integers(0, 300))
    weights = draw.standard_normal(count) * 2.0 ** draw.integers(-spread, spread + 1, count)
    codes = np.where(draw.random(count) < 0.5, 127.0, draw.integers(-127, 128, count))
    rounded = rules._exact_weights(weights[None, :])
    assert np.abs(rounded - weights).max() <= 2.0**-38 * np.abs(weights).max()
    exact = sum(
        (Fraction(w) * Fraction(c) for w, c in zip(rounded[0].tolist(), codes.tolist(), strict=True)), Fraction()
    )
    assert Fraction(np.matmul(rounded, codes)[0].item()) == exact


ELSEWHERE = """
import threadpoolctl
from learning.test_aggregate import digests
print(*sorted({blas.get("architecture") for blas in threadpoolctl.threadpool_info()} - {None}))
print(*digests())
"""


def aggregates(coding: Coding) -> list[bytes]:
    """By every rule, of updates some of which are outliers, copies or zero."""
    updates = updates_around(np.full(DIMENSION, 0.01), 11, noise=0.02, coding=coding)
    updates[1] = quantized(updates[0].values() * -1000, coding)
    updates[2] = updates[5]
    updates[4] = quantized(np.zeros(DIMENSION), coding)
    updates[7] = quantized(np.full(DIMENSION, 1e300), coding)
    return [aggregate(rule, updates).tobytes() for rule in RULES]


def digests() -> list[str]:
    return [sha256(aggregate).hexdigest() for coding in (INT8, INT4) for aggregate in aggregates(coding)]


OLD_X86 = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3",
    "OPENBLAS_CORETYPE": "Prescott",
    "MKL_CBWR": "COMPATIBLE",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "architecture"),
    [
        ({"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}, None),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, None),
        ({"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V4", "MKL_CBWR": "SSE4_2"}, "Nehalem"),
        ({"OPENBLAS_CORETYPE": "Sandybridge", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}, "Sandybridge"),
        (OLD_X86 | {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, None),
    ],
)
def test_threads_and_instruction_sets_do_not_change_the_bits(
    environment: dict[str, str], architecture: str | None
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    architectures, elsewhere = found.stdout.splitlines()
    if architecture and platform.machine() == "x86_64" and "openblas" in str(np.show_config(mode="dicts")):
        assert architecture in architectures
    assert elsewhere.split() == digests()
