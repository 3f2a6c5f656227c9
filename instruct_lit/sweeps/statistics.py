"""Statistics of a sweep: over seeds, whose trials are replicates of one setting, and the importance of parameters.

The importance is fANOVA by Optuna, for grids as well as for studies.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import load, need
from instruct_lit.reports.metrics import bounds, interval, number
from instruct_lit.reports.tables import show, show_table
from instruct_lit.sweeps.trials import SEEDS, Trial, column_of, is_logarithmic, seeds_of, short, varied


@dataclass(frozen=True)
class Setting:
    """The trials of one setting by their seeds; `parameters` are those in which settings differ."""

    parameters: dict[str, str]
    trials: dict[tuple[str, ...], Trial]

    @property
    def values(self) -> dict[tuple[str, ...], float]:
        """The metric by seed."""
        return {seeds: trial.value for seeds, trial in self.trials.items() if trial.value is not None}

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())


def by_setting(trials: Sequence[Trial], maximize: bool = False) -> list[Setting]:
    """Settings by their means over seeds, the best first, those with one seed last; empty when none has two."""
    settings: dict[tuple[tuple[str, str], ...], Setting] = {}
    for trial in trials:
        if trial.value is not None:
            own = {name: value for name, value in trial.parameters.items() if name not in SEEDS}
            settings.setdefault(tuple(own.items()), Setting(own, {})).trials[seeds_of(trial)] = trial
    if all(len(setting.trials) < 2 for setting in settings.values()):
        return []
    sign = -1 if maximize else 1
    return sorted(settings.values(), key=lambda setting: (len(setting.trials) < 2, sign * setting.mean))


def print_settings(trials: Sequence[Trial], metric: str, maximize: bool) -> None:
    """Print the settings with mean, interval and number of seeds, the best first; nothing for a sweep without seeds."""
    settings = by_setting(trials, maximize)
    try:
        found = [mean_and_interval(list(s.values.values()), bounds(metric)) for s in settings]
    except ConfigError as error:
        show(f"warning: {error}")
        return
    rows = [
        (" ".join(f"{k}={short(v)}" for k, v in setting.parameters.items()) or "the only setting",
         number(of["mean"]), interval(of, "%.4f"), of["n"])
        for setting, of in zip(settings, found, strict=True)
    ]  # fmt: skip
    show_table(("setting", f"mean {metric}", "95 % interval", "n"), rows)


def mean_and_interval(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """`mean`, `n`, and `low` and `high`, the 95 % interval by Student's t within the metric's bounds.

    None in place of the interval of a single value or of equal ones, which do not show how seeds vary.
    Raises: ConfigError where scipy is missing.
    """
    mean, n = statistics.fmean(values), len(values)
    deviation = statistics.stdev(values) if n > 1 else 0.0
    if not deviation:
        return {"mean": mean, "low": None, "high": None, "n": n}
    t = load("scipy.stats", "intervals over seeds", "sweep").t.ppf(0.975, n - 1)
    half_width = float(t) * deviation / math.sqrt(n)
    return {"mean": mean, "low": max(bounds[0], mean - half_width), "high": min(bounds[1], mean + half_width), "n": n}


def paired_difference(a: Setting, b: Setting) -> dict[str, Any] | None:
    """The mean difference `a - b` over the seeds that both have, with its interval; None for fewer than two seeds.

    Raises: ConfigError where scipy is missing.
    """
    x, y = a.values, b.values
    differences = [x[seeds] - y[seeds] for seeds in x if seeds in y]
    return mean_and_interval(differences) if len(differences) > 1 else None


def importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the metric's variance by hyper-parameter, the largest first.

    Empty when fewer than four trials have a value or all are equal.
    Raises: ConfigError where Optuna or scikit-learn is missing.
    Source: Hutter, Hoos and Leyton-Brown 2014.
    """
    done = [trial for trial in trials if trial.value is not None]
    names = varied(done)
    if len(done) < 4 or len({trial.value for trial in done}) < 2 or not names:
        return {}
    purpose = "importance of hyper-parameters"
    need("sklearn", purpose, "sweep")
    optuna = load("optuna", purpose, "sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {name: column_of(done, name) for name in names}
    distributions = {name: _distribution(column) for name, column in columns.items()}
    study = optuna.create_study()
    for row, trial in enumerate(done):
        values = {name: column[row] for name, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=trial.value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _distribution(column: Sequence[float] | Sequence[str]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [value for value in column if isinstance(value, float)]
    if len(numbers) < len(column):
        return CategoricalDistribution(sorted(set(map(str, column))))
    return FloatDistribution(min(numbers), max(numbers), log=is_logarithmic(column))
