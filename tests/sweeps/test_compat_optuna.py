"""The private names of Optuna still mean what the program takes them for."""

import pytest

from instruct_lit.sweeps.compat_optuna import running_trial

optuna = pytest.importorskip("optuna")


def test_a_trial_is_resumed_by_its_number_where_ids_differ() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="other", storage=storage).ask()  # ids count over all studies of a storage
    study = optuna.create_study(study_name="this", storage=storage)
    asked = study.ask()
    assert hasattr(study.trials[0], "_trial_id"), "optuna.trial.FrozenTrial has no _trial_id"
    resumed = running_trial(study, asked.number)
    resumed.report(0.5, step=3)
    study.tell(resumed, 0.25)
    assert study.trials[0].intermediate_values == {3: 0.5} and study.trials[0].value == 0.25
