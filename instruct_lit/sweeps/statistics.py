"""Statistics over the seeds of a sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from instruct_lit.core.optional_imports import load
from instruct_lit.sweeps.trials import SEEDS, Trial


@dataclass(frozen=True)
class Setting:
    """Trials that differ only in their seeds; `half_width` is that of the 95 % interval of their mean."""

    parameters: dict[str, str]
    values: list[float]
    mean: float
    half_width: float | None


def by_setting(trials: Sequence[Trial], maximize: bool = False) -> list[Setting]:
    """Means over seeds with their 95 % intervals, the best first; empty when no setting has two seeds.

    Raises: ConfigError where scipy is missing.
    """
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for trial in trials:
        if trial.value is not None:
            key = tuple((name, value) for name, value in trial.parameters.items() if name not in SEEDS)
            groups.setdefault(key, []).append(trial.value)
    if all(len(values) < 2 for values in groups.values()):
        return []
    settings = [Setting(dict(key), values, *mean_and_interval(values)) for key, values in groups.items()]
    return sorted(settings, key=lambda setting: setting.mean, reverse=maximize)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half the width of its 95 % interval by Student's t; None for a single value.

    Raises: ConfigError where scipy is missing.
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, None
    t = load("scipy.stats", "intervals over seeds", "sweep").t.ppf(0.975, n - 1)
    return mean, float(t) * statistics.stdev(values) / math.sqrt(n)
