"""Intervals that cover, tests without false alarms, and the library's figures."""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from instruct_lit.evaluation.statistics import (
    MIN_N,
    clopper_pearson,
    clustered_error,
    difference,
    holm,
    interval,
    paired_interval,
)


@pytest.mark.parametrize(("n_hits", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (17, 110), (7000, 14042)])
def test_the_interval_of_a_proportion_is_scipys(n_hits: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(n_hits, n).proportion_ci(method="exact")
    assert clopper_pearson(n_hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("n", "p"), [(20, 0.05), (40, 0.025), (20, 0.5), (20, 0.95), (60, 0.99)])
def test_the_interval_of_a_rare_event_covers_it(n: int, p: float) -> None:
    """The exact probability that the interval of a sample contains the true proportion."""
    covered = 0.0
    for k in range(n + 1):
        found = interval([1.0] * k + [0.0] * (n - k))
        assert found["low"] < found["high"]
        covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (found["low"] <= p <= found["high"])
    assert covered >= 0.95


def test_the_interval_of_a_mean_covers_it() -> None:
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        found = interval(random.normal(1.0, 2.0, 60).tolist(), seed=trial)
        hits += found["low"] <= 1.0 <= found["high"]
    assert 0.9 <= hits / 200 <= 0.99
    assert interval([0.5] * MIN_N + [0.1], seed=3) == interval([0.5] * MIN_N + [0.1], seed=3)


def test_few_values_other_than_0_and_1_have_no_interval() -> None:
    assert interval([0.5] * (MIN_N - 1)) == {"mean": 0.5, "low": None, "high": None, "n": MIN_N - 1}
    assert interval([0.5, 0.7] * (MIN_N // 2))["low"] is not None
    assert interval([80.0] * 20)["low"] is None and interval([1.0] * 20, weights=range(1, 21))["low"] is None
    assert interval([0.5, 0.7])["low"] is None and interval([1.0] * 20, shares=False)["low"] is None
    assert paired_interval(np.zeros(20), shares=False)["low"] is None and paired_interval(np.zeros(20))["low"] < 0
    assert interval([1.0]) == {"mean": 1.0, "low": pytest.approx(0.025), "high": 1.0, "n": 1}


def test_weights_make_the_mean_that_of_tokens() -> None:
    found = interval([1.0, 4.0] * 5, weights=[3, 1] * 5)
    assert found["mean"] == pytest.approx(1.75) and 1 <= found["low"] < 1.75 < found["high"] <= 4
    assert interval([1.0, 0.0], weights=[3, 1]) == {"mean": 0.75, "low": None, "high": None, "n": 2}


def test_differences_of_one_size_have_the_exact_sign_test() -> None:
    values = np.array([1.0] * 10 + [0.0] * 20)
    assert difference(values)["p"] == difference(-values / 2)["p"] == 2 / 2**10  # 10 of 30 differ, all one way
    assert difference(np.array([1.0] * 4 + [-1.0]))["p"] == 12 / 32  # 5 and 1 of 32 assignments on each side
    nothing = difference(np.zeros(5))
    assert nothing["p"] == 1 and nothing["low"] < 0 < nothing["high"]


def test_differences_of_several_sizes_have_the_permutation_test() -> None:
    pytest.importorskip("scipy")
    assert difference(np.array([1.0, 2.0, 3.0]))["p"] == 2 / 8
    random = np.random.default_rng(0)
    assert difference(random.normal(1, 1, 60))["p"] < 0.001
    assert np.mean([difference(random.normal(0, 1, 20), trial)["p"] < 0.05 for trial in range(100)]) <= 0.1


@functools.cache
def of_pairs(n_up: int, n_down: int, n: int) -> dict:
    """The difference of `n` pairs, of which so many went each way."""
    return difference(np.repeat([1.0, -1.0, 0.0], [n_up, n_down, n - n_up - n_down]))


def test_paired_proportions_are_covered_without_false_alarms() -> None:
    """The exact probabilities over all outcomes of 20 pairs but those of less than one in a million."""
    covered = alarms = 0.0
    for up, down in itertools.product(range(21), repeat=2):
        if up + down > 20:
            continue
        n_ways = math.comb(20, up) * math.comb(20 - up, down) * 0.8 ** (20 - up - down)
        if (likely := n_ways * 0.15**up * 0.05**down) > 1e-6:
            covered += likely * (of_pairs(up, down, 20)["low"] <= 0.1 <= of_pairs(up, down, 20)["high"])
        if (likely := n_ways * 0.1 ** (up + down)) > 1e-6:
            alarms += likely * (of_pairs(up, down, 20)["p"] < 0.05)
    assert covered >= 0.93 and alarms <= 0.05


@pytest.mark.parametrize("sizes", [[0.5], [0.25, 0.5], None])
@pytest.mark.parametrize("n", [20, *(pytest.param(n, marks=pytest.mark.slow) for n in (10, 50))])
def test_the_interval_of_few_differing_pairs_covers_their_mean(n: int, sizes: list[float] | None) -> None:
    """One pair of twenty had an interval on its side of 0, at a p-value of 1."""
    random, hits = np.random.default_rng(0), 0
    for trial in range(300):
        changed = random.uniform(-1, 1, n) if sizes is None else random.choice([*sizes, *(-s for s in sizes)], n)
        found = paired_interval(np.where(random.random(n) < 0.07, changed, 0.0), trial)
        hits += found["low"] <= 0 <= found["high"]
    assert hits / 300 >= 0.95
    one = difference(np.array([0.5] + [0.0] * 19))
    assert one["p"] == 1 and one["low"] < 0 < one["mean"] == 0.025 < one["high"]


@pytest.mark.parametrize("n", [100, 14_042])
def test_the_sign_test_of_many_pairs_is_scipys(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.array([1.0, -1.0, -1.0, 0.0] * n)[:n]
    n_up, n_down = int((values > 0).sum()), int((values < 0).sum())
    assert difference(values)["p"] == pytest.approx(stats.binomtest(n_up, n_up + n_down).pvalue, abs=1e-12)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda random: random.exponential(1.0, 20), 1.0),
        pytest.param(lambda random: random.lognormal(0, 0.7, 20), math.exp(0.245), marks=pytest.mark.slow),
        pytest.param(lambda random: random.beta(8, 1, 20), 8 / 9, marks=pytest.mark.slow),
        (lambda random: np.where(random.random(20) < 0.7, 1.0, random.beta(2, 2, 20)), 0.85),
    ],
)
def test_the_interval_of_a_skewed_mean_covers_it_at_20_values(draw: Callable, mean: float) -> None:
    random, hits = np.random.default_rng(0), 0
    for trial in range(600):
        values = draw(random)
        found = interval(values.tolist(), seed=trial)
        hits += found["low"] <= mean <= found["high"]
        assert values.min() <= found["low"] <= found["high"] <= values.max()
    assert hits / 600 >= 0.93


def test_the_error_of_items_that_share_a_passage_is_that_of_clusters() -> None:
    random, covered = np.random.default_rng(0), [0, 0]
    passages = np.repeat(np.arange(20), 4)  # of different difficulty, four questions each
    for _ in range(1000):
        values = (random.random(80) < np.repeat(random.beta(1, 1, 20), 4)).astype(float)
        for place, clusters in enumerate((passages.tolist(), range(80))):
            covered[place] += abs(values.mean() - 0.5) <= 2.093 * clustered_error(values.tolist(), clusters)
    assert covered[0] / 1000 >= 0.93 and covered[1] / 1000 <= 0.9
    spread = np.array([1.0, 2.0, 4.0, 4.0])
    assert clustered_error(spread, "abcd") == pytest.approx(spread.std(ddof=1) / 2)


def test_holm_keeps_false_alarms_of_many_pairs_at_5_percent() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    random, alarms = np.random.default_rng(0), 0
    for _ in range(400):
        models = (random.random((4, 40)) < 0.5).astype(float)
        changes = [models[i] - models[j] for i in range(4) for j in range(i)]
        found = [of_pairs(int((values > 0).sum()), int((values < 0).sum()), 40)["p"] for values in changes]
        alarms += min(holm(found)) < 0.05
    assert alarms / 400 <= 0.05


def test_rare_values_do_not_make_the_interval_as_wide_as_the_range() -> None:
    two = interval([0.5] * 27 + [1.0] * 3)  # as exact as a proportion
    assert (two["low"], two["high"]) == pytest.approx([0.5 + bound / 2 for bound in clopper_pearson(3, 30)])
    rare = interval([0.5 + i / 1000 for i in range(27)] + [1.0] * 3)
    assert 0.5 < rare["low"] < rare["mean"] < rare["high"] < 0.95
