"""Means with 95 % intervals, and paired differences with p-values.

numpy alone, except the permutation test of differences of several sizes, which is scipy's (extra `judge`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from instruct_lit.optional_imports import load

Interval = dict[str, Any]  # mean, low, high, n; low and high are None where there are too few values
MIN_N = 10  # values of an interval that is estimated by resampling
N_RESAMPLES = 2000
N_PERMUTATIONS = 9999
Z_95 = 1.959964


def interval(values: Sequence[float], seed: int = 0, weights: Sequence[float] | None = None) -> Interval:
    """Mean, weighted where weights are given, and its 95 % interval.

    Unweighted values of 0 and 1 get the exact interval of a proportion, others the 2.5th and 97.5th percentile of
    resampled means (Efron 1979), and none where there are fewer than `MIN_N`.
    """
    sample = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    mean, n = float(np.average(sample, weights=weight)), len(sample)
    if weights is None and np.isin(sample, (0, 1)).all():
        low, high = clopper_pearson(int(sample.sum()), n)
        return {"mean": mean, "low": low, "high": high, "n": n}
    if n < MIN_N:
        return {"mean": mean, "low": None, "high": None, "n": n}
    random = np.random.default_rng(seed)
    means = np.empty(N_RESAMPLES)
    n_at_once = max(1, 2**20 // n)  # resamples, in some tens of megabytes
    for i in range(0, N_RESAMPLES, n_at_once):
        drawn = random.integers(0, n, (len(means[i : i + n_at_once]), n))
        means[i : i + n_at_once] = np.average(sample[drawn], axis=1, weights=weight[drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high), "n": n}


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


def difference(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of paired differences with its 95 % interval, and the two-sided p-value `p` of a mean of 0.

    The p-value is the share of sign assignments whose mean is at least as far from 0 (Fisher's randomisation test for
    pairs). For differences of one size that is the sign test, which is exact; otherwise assignments are drawn, or
    enumerated for few pairs. Differences of -1, 0 and 1 have the interval of Agresti and Min (2005).
    """
    sizes = np.unique(np.abs(values[values != 0]))
    n_up, n_down = int((values > 0).sum()), int((values < 0).sum())
    if len(sizes) > 1:
        test = load("scipy.stats", "compare", "judge").permutation_test
        options = {"permutation_type": "samples", "n_resamples": N_PERMUTATIONS, "rng": np.random.default_rng(seed)}
        p = float(test((values,), np.mean, **options).pvalue)
    else:
        n = n_up + n_down
        p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(n_up, n_down) + 1)) / 2**n)
    if set(sizes) - {1.0}:
        return {**interval(values.tolist(), seed), "p": p}
    n, mean = len(values) + 2, (n_up - n_down) / (len(values) + 2)
    spread = Z_95 * math.sqrt((n_up + n_down + 1) / n - mean**2) / math.sqrt(n)
    bounds = {"low": max(-1.0, mean - spread), "high": min(1.0, mean + spread)}
    return {"mean": float(values.mean()), **bounds, "n": len(values), "p": p}
