"""Means with 95 % intervals, and paired differences with p-values.

numpy alone, except the permutation test of differences of several sizes, which is scipy's (extra `judge`).
"""

import math
from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from instruct_lit.optional_imports import load

Interval = dict[str, Any]  # mean, low, high, n; low and high are None where there are too few values
MIN_N = 10  # values of an interval that is estimated by resampling
N_RESAMPLES = 2000
N_PERMUTATIONS = 9999
MIN_DIFFERING = 20  # pairs of an interval that is estimated by resampling alone
FLOOR = 0.02  # of the squared standard error of a resample, as a share of the sample's
Z_95 = 1.959964


def interval(
    values: Sequence[float], seed: int = 0, weights: Sequence[float] | None = None, *, shares: bool = True
) -> Interval:
    """Mean, weighted where weights are given, and its 95 % interval.

    Unweighted values of 0 and 1, or of two other values, get the exact interval of a proportion, others the studentised
    bootstrap (Efron and Tibshirani 1993, section 12.5) within the range of the values. There is none for fewer than
    `MIN_N` values other than 0 and 1, and for equal ones, which do not show how they vary. The error of a resample is
    kept from 0 (`FLOOR`), since one without the rare values of a sample would make the interval as wide as the range.

    Args:
        shares: whether no value can be below 0 or above 1, so that equal ones of 0 or 1 are a proportion.
    """
    sample = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    mean, n = float(np.average(sample, weights=weight)), len(sample)
    of_hits = shares and bool(np.isin(sample, (0, 1)).all())
    levels = np.array([0.0, 1.0]) if of_hits else np.unique(sample)
    if weights is None and len(levels) == 2 and (of_hits or n >= MIN_N):
        bounds = clopper_pearson(int((sample == levels[1]).sum()), n)
        low, high = (float(levels[0] + (levels[1] - levels[0]) * bound) for bound in bounds)
        return {"mean": mean, "low": low, "high": high, "n": n}
    if n < MIN_N or np.ptp(sample) == 0:
        return {"mean": mean, "low": None, "high": None, "n": n}
    random, products = np.random.default_rng(seed), sample * weight
    error = _mean_and_error(products, weight)[1]
    t, floor = np.zeros(N_RESAMPLES), FLOOR * error**2
    n_at_once = max(1, 2**19 // n)  # resamples, in some tens of megabytes
    for i in range(0, N_RESAMPLES, n_at_once):
        drawn = random.integers(0, n, (len(t[i : i + n_at_once]), n))
        means, errors = _mean_and_error(products[drawn], weight[drawn])
        t[i : i + n_at_once] = (means - mean) / np.sqrt(errors**2 + floor)
    upper, lower = np.quantile(t, [0.975, 0.025], method="higher") * np.sqrt(error**2 + floor)
    low, high = np.clip([mean - upper, mean - lower], sample.min(), sample.max())
    return {"mean": mean, "low": float(low), "high": float(high), "n": n}


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean whose values depend on each other within a cluster (Miller 2024, section 2.2).

    With the factor for few clusters, so that it is the usual error where each value is a cluster.
    """
    labels = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)[1]
    n_of = np.bincount(labels).astype(float)
    return float(_mean_and_error(np.bincount(labels, values), n_of)[1] * math.sqrt(len(n_of) / max(1, len(n_of) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method (1979), in the given order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _mean_and_error(sums: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means `(…)` of weighted sums of clusters `(…, n_clusters)`, and their standard errors."""
    totals = weights.sum(-1)
    means = sums.sum(-1) / totals
    return means, np.sqrt(((sums - means[..., None] * weights) ** 2).sum(-1)) / totals


def clopper_pearson(n_hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934), which covers it at least that often."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))  # of factorials

    def low(k: int) -> float:
        """The proportion under which `k` or more hits have probability 0.025, by bisection."""
        x = np.arange(k, n + 1)
        a, b = 0.0, 1.0
        for _ in range(60 if k else 0):
            p = (a + b) / 2
            logs_of_x = logs[n] - logs[x] - logs[n - x] + x * math.log(p) + (n - x) * math.log1p(-p)
            a, b = (p, b) if np.exp(logs_of_x).sum() < 0.025 else (a, p)
        return a

    return low(n_hits), 1 - low(n - n_hits)


def paired_interval(values: np.ndarray, seed: int = 0, shares: bool = True) -> Interval:
    """Mean of paired differences with its 95 % interval.

    For -1, 0 and 1 of `shares` that of Agresti and Min (2005): a pair more in each direction counts half. The interval
    of other values contains the one with such pairs of the largest size where fewer than `MIN_DIFFERING` values differ
    from 0: few of them do not show that others would not go the other way.
    """
    of_hits = shares and bool(np.isin(values, (-1, 0, 1)).all())
    found = interval(values.tolist(), seed, shares=False)
    if not of_hits and (found["low"] is None or np.count_nonzero(values) >= MIN_DIFFERING):
        return found
    size, n = 1.0 if of_hits else float(np.abs(values).max()), len(values) + 2
    mean = float(values.sum()) / n
    spread = Z_95 * math.sqrt((float(values @ values) + size**2) / n - mean**2) / math.sqrt(n)
    low, high = max(-size, mean - spread), min(size, mean + spread)
    if not of_hits:
        low, high = min(low, found["low"]), max(high, found["high"])
    return {**found, "low": low, "high": high}


def difference(values: np.ndarray, seed: int = 0, shares: bool = True) -> Interval:
    """`paired_interval`, and the two-sided p-value `p` of a mean of 0.

    The p-value is the share of sign assignments whose mean is at least as far from 0 (Fisher's randomisation test for
    pairs). For differences of one size that is the sign test, which is exact; otherwise assignments are drawn, or
    enumerated for few pairs.
    """
    if len(np.unique(np.abs(values[values != 0]))) > 1:
        test = load("scipy.stats", "compare", "judge").permutation_test
        options = {"permutation_type": "samples", "n_resamples": N_PERMUTATIONS, "rng": np.random.default_rng(seed)}
        p = float(test((values,), np.mean, **options).pvalue)
    else:
        n_up, n_down = int((values > 0).sum()), int((values < 0).sum())
        n = n_up + n_down
        counts = accumulate(range(min(n_up, n_down)), lambda count, k: count * (n - k) // (k + 1), initial=1)
        p = min(1.0, 2 * sum(counts) / 2**n)  # of n choose 0, n choose 1, …
    return {**paired_interval(values, seed, shares), "p": p}
