"""Each rule against a plain float64 transcription of its paper, and the bounds it is there for."""

import itertools
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.learning import aggregate as rules
from p2pdfl.learning.aggregate import aggregate, byzantine_count_max, gram, selection_network
from p2pdfl.learning.quantize import CHUNK, Header, Quantized, encode, parse
from p2pdfl.task import Rule

DIMENSION = 5 * CHUNK + 100  # more than a block, and a last chunk that is not full


def quantized(vector: np.ndarray) -> Quantized:
    header = Header(task_id=bytes(32), round=0, author=bytes(20), dimension=vector.size)
    return parse(encode(vector, header), header)


def updates_around(direction: np.ndarray, count: int, seed: int = 0, noise: float = 0.5) -> list[Quantized]:
    draw = np.random.default_rng(seed)
    return [quantized(direction + noise * draw.standard_normal(direction.size)) for _ in range(count)]


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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
def test_default_rule_agrees_with_the_naive_one(count: int) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), count, noise=0.02)
    updates[-1] = quantized(updates[-1].values() * -1000)
    result = aggregate("clip_nnm_trimmed_mean", updates)
    assert relative_difference(result, naive_clip_nnm_trimmed_mean(updates)) <= 1e-12


@pytest.mark.parametrize("count", [1, 2, 7])
def test_mean_agrees_with_the_naive_one(count: int) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), count)
    result = aggregate("mean", updates)
    assert relative_difference(result, np.mean([update.values() for update in updates], axis=0)) <= 1e-12


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_gram_is_exact(count: int, dimension: int, seed: int) -> None:
    """Also over chunks whose scales lie far apart: every product here is an integer that float64 holds."""
    draw = np.random.default_rng(seed)
    vectors = draw.integers(-127, 128, (count, dimension)) * 2.0 ** draw.integers(0, 9, (count, 1))
    vectors[:, 0] = 127.0
    updates = [quantized(vector) for vector in vectors]
    exact = [[sum(int(a) * int(b) for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    decoded = [update.values() for update in updates]
    if all((decoded[i] == vectors[i]).all() for i in range(count)):
        assert gram(updates) == exact


def test_gram_of_extreme_codes_is_exact() -> None:
    """The worst case of the bound 127^2 * 1024 < 2^24."""
    full = quantized(np.full(3 * CHUNK, 127.0))
    assert gram([full, full])[0][1] == 3 * CHUNK * 127**2


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("count", [2, 3, 6])
def test_another_order_gives_the_same_up_to_rounding(rule: Rule, count: int) -> None:
    """Not the same bits: that is why the order of members is fixed."""
    updates = updates_around(np.full(DIMENSION, 0.01), count)
    assert relative_difference(aggregate(rule, updates[::-1]), aggregate(rule, updates)) <= 1e-12


@pytest.mark.parametrize("rule", get_args(Rule))
def test_the_same_order_gives_the_same_bits(rule: Rule) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), 5)
    assert aggregate(rule, updates).tobytes() == aggregate(rule, updates).tobytes()


@pytest.mark.parametrize("rule", get_args(Rule))
def test_block_and_batch_sizes_do_not_change_the_bits(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = updates_around(np.full(DIMENSION, 0.01), 5)
    before = aggregate(rule, updates)
    monkeypatch.setattr(rules, "_GRAM_CHUNKS", 1)
    monkeypatch.setattr(rules, "_BLOCK_CHUNKS", 3)
    assert aggregate(rule, updates).tobytes() == before.tobytes()


@pytest.mark.parametrize("rule", get_args(Rule))
def test_no_aggregate_is_a_negative_zero(rule: Rule) -> None:
    """minimum and maximum may take either of two zeros, so -0.0 must not come up."""
    updates = [quantized(np.zeros(3)), quantized(np.array([-1.0, 0.0, 1.0])), quantized(np.zeros(3))]
    assert not np.signbit(aggregate(rule, updates)[1])
    assert not np.signbit(aggregate("clip_nnm_trimmed_mean", updates)).any()


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


def test_zero_updates_give_zero() -> None:
    for count in (1, 2, 3, 4):
        zeros = [quantized(np.zeros(10))] * count
        assert aggregate("clip_nnm_trimmed_mean", zeros).tolist() == [0.0] * 10


def test_a_majority_of_zeros_clips_the_rest_to_zero() -> None:
    updates = [quantized(np.zeros(10)), quantized(np.zeros(10)), quantized(-np.ones(10))]
    assert aggregate("clip_nnm_trimmed_mean", updates).tolist() == [0.0] * 10


def test_equal_updates_give_that_update() -> None:
    update = updates_around(np.ones(DIMENSION), 1)[0]
    for count in (1, 2, 3, 6):
        result = aggregate("clip_nnm_trimmed_mean", [update] * count)
        assert relative_difference(result, update.values()) <= 1e-15


@pytest.mark.parametrize("count", range(1, 12))
def test_the_selection_network_puts_the_middle_where_sorting_would(count: int) -> None:
    """Knuth's 0-1 principle: right for all inputs of zeros and ones is right for all inputs."""
    f = byzantine_count_max(count)
    network = selection_network(count, f)
    for bits in range(2**count):
        row = [bits >> place & 1 for place in range(count)]
        ordered = sorted(row)
        for low, high in network:
            row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
        assert row[f : count - f] == ordered[f : count - f]


@pytest.mark.parametrize("count", [33, 64, 256])
def test_the_selection_network_works_at_full_size(count: int) -> None:
    f = byzantine_count_max(count)
    row = np.random.default_rng(count).permutation(count)
    for low, high in selection_network(count, f):
        row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
    assert row[f : count - f].tolist() == list(range(f, count - f))


def test_ties_between_neighbours_go_to_the_lower_index() -> None:
    products = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert rules.nearest_neighbours(products, [1.0] * 3, 2) == [(0, 1), (0, 1), (0, 2)]


def test_norms_are_clipped_to_the_lower_median() -> None:
    products = [[float(norm**2 if i == j else 0) for j in range(4)] for i, norm in enumerate([4, 1, 2, 0])]
    assert rules.clip_factors(products) == [0.25, 1.0, 0.5, 1.0]
