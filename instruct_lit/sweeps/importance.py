"""Importance of the hyper-parameters of a sweep: fANOVA through Optuna, for grids as well as for studies."""

import math
from collections.abc import Sequence
from typing import Any

from instruct_lit.optional_imports import load, need
from instruct_lit.sweeps.trials import Trial, column_of, is_logarithmic, varied


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
