"""Tells an Optuna study how a trial is doing, and ends the trial when others did better at the same point."""

from __future__ import annotations

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.errors import ConfigError, TrialPruned
from instruct_lit.sweeps.storage import open_storage


class Pruning(Callback):
    """Reports `monitor` after every validation and raises TrialPruned when the study's pruner gives the trial up.

    The sweeper fills in `storage`, `study_name` and `trial_number`; without them the callback does nothing. The pruner
    itself is the one that the sweep was configured with.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        pruner: str = "median",
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        storage: str | None = None,
        study_name: str | None = None,
        trial_number: int | None = None,
    ) -> None:
        self.monitor = monitor
        self.pruner, self.n_startup_trials, self.n_warmup_steps = pruner, n_startup_trials, n_warmup_steps
        self.storage, self.study_name, self.trial_number = storage, study_name, trial_number
        self._trial: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.trial_number is None or not trainer.is_global_zero or self._trial is not None:
            return
        assert self.storage is not None and self.study_name is not None
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("callbacks.pruning: Optuna is missing; pip install 'instruct-lit[sweep]'") from error

        pruners: dict[str, Any] = {
            "median": lambda: optuna.pruners.MedianPruner(self.n_startup_trials, self.n_warmup_steps),
            "hyperband": optuna.pruners.HyperbandPruner,
            "none": optuna.pruners.NopPruner,
        }
        study = optuna.load_study(
            study_name=self.study_name, storage=open_storage(self.storage), pruner=pruners[self.pruner]()
        )
        number_to_id = {t.number: t._trial_id for t in study.get_trials(deepcopy=False)}
        self._trial = optuna.trial.Trial(study, number_to_id[self.trial_number])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trial_number is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        hopeless = False
        if self._trial is not None and math.isfinite(value):
            # A resumed trial reports a step again; Optuna keeps the first value, which is the same.
            if trainer.global_step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
                self._trial.report(value, trainer.global_step)
            hopeless = self._trial.should_prune()
        if trainer.strategy.broadcast(hopeless):
            raise TrialPruned(
                f"pruned at step {trainer.global_step} with {self.monitor}={value:.4g}: "
                "other trials of the study were better there"
            )
