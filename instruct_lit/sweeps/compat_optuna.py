"""The private names of Optuna that the program uses."""

from typing import Any


def running_trial(study: Any, number: int) -> Any:
    """The `Trial` of a study that was asked for in another process, to report to and to tell the result of.

    Optuna has no public way to resume a trial elsewhere: `Trial` takes the storage's id of it, which a frozen trial has
    as `_trial_id` alone.
    """
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
