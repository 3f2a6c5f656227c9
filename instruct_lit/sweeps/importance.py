"""How much each hyper-parameter of a sweep explains of the metric: fANOVA through Optuna, for grids as for studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.sweeps.trials import Trial

LOG_RATIO = 30  # a parameter that spans more than this is laid out on a logarithmic scale


def importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the metric's variance by parameter, the largest first (Hutter et al. 2014).

    Empty when fewer than four trials have a value or none differs. Raises ConfigError when Optuna or scikit-learn is
    not installed.
    """
    done = [trial for trial in trials if trial.value is not None]
    values = {trial.value for trial in done}
    names = [name for name in done[0].parameters if len({t.parameters[name] for t in done}) > 1] if done else []
    if len(done) < 4 or len(values) < 2 or not names:
        return {}
    try:
        import optuna
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError("the importance of hyper-parameters needs pip install 'instruct-lit[sweep]'") from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {name: [t.parameters[name] for t in done] for name in names}
    distributions = {name: _distribution(column) for name, column in columns.items()}
    study = optuna.create_study()
    for place, trial in enumerate(done):
        given: dict[str, Any] = {
            name: number(column[place]) if all_numbers(column) else column[place] for name, column in columns.items()
        }
        study.add_trial(optuna.trial.create_trial(params=given, distributions=distributions, value=trial.value))
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def number(text: str) -> float:
    """The number that an override's value is; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def all_numbers(column: Sequence[str]) -> bool:
    """Whether a parameter is a number in every trial."""
    return all(math.isfinite(number(text)) for text in column)


def is_logarithmic(column: Sequence[str]) -> bool:
    """Whether a parameter spans orders of magnitude."""
    numbers = [number(text) for text in column]
    return min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_RATIO


def _distribution(column: Sequence[str]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all_numbers(column):
        return CategoricalDistribution(sorted(set(column)))
    numbers = [number(text) for text in column]
    return FloatDistribution(min(numbers), max(numbers), log=is_logarithmic(column))
