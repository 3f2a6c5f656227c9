"""Reports a trial's validation metric to its Optuna study, and ends the trial when the study's pruner says so."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.errors import TrialPruned
from instruct_lit.optional_imports import load
from instruct_lit.sweeps.compat_optuna import running_trial
from instruct_lit.sweeps.study import make_pruner, open_storage


@dataclass(eq=False)
class Pruning(Callback):
    """Reports `monitor` after every validation.

    The sweeper sets `storage`, `study_name` and `trial_number`, and the pruner that the sweep is configured with;
    without a trial number the callback does nothing.
    Raises: TrialPruned when the pruner ends the trial.
    """

    monitor: str = "val/loss"
    pruner: str = "median"
    n_startup_trials: int = 5
    n_warmup_steps: int = 0
    storage: str | None = None
    study_name: str | None = None
    trial_number: int | None = None
    _trial: Any = field(default=None, init=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.trial_number is None or not trainer.is_global_zero or self._trial is not None:
            return
        assert self.storage is not None and self.study_name is not None
        optuna = load("optuna", "callbacks.pruning", "sweep")
        pruner = make_pruner(self.pruner, self.n_startup_trials, self.n_warmup_steps)
        study = optuna.load_study(study_name=self.study_name, storage=open_storage(self.storage), pruner=pruner)
        self._trial = running_trial(study, self.trial_number)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trial_number is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        prune = False
        if self._trial is not None and math.isfinite(value):
            reported = self._trial.study.get_trials(deepcopy=False)[self.trial_number].intermediate_values
            if trainer.global_step not in reported:  # a resumed trial reaches a step again
                self._trial.report(value, trainer.global_step)
            prune = self._trial.should_prune()
        if trainer.strategy.broadcast(prune):
            raise TrialPruned(
                f"pruned at step {trainer.global_step} with {self.monitor}={value:.4g}: "
                "other trials of the study were better at this step"
            )
