"""When a run ends: early stopping on validations of changed weights, and a validation after the last step."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from instruct_lit.core.data.batching import Batch


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, for which a validation counts only after an optimizer step.

    A validation interval may be shorter than the micro-batches of a step; patience does not run out on unchanged
    weights.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.checked_step = 0  # the weights before the first step are not compared either

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(super().on_validation_end, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(super().on_train_epoch_end, trainer, pl_module)

    def _check(self, compare: Callable[..., None], trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare changed weights; Lightning does it in one of the two hooks: only there the result changes."""
        if trainer.global_step > self.checked_step:
            before = self.wait_count, float(self.best_score)
            compare(trainer, pl_module)
            if (self.wait_count, float(self.best_score)) != before:
                self.checked_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "checked_step": self.checked_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.checked_step = state_dict.get("checked_step", 0)
        super().load_state_dict({**state_dict, "patience": self.patience})
        if self.wait_count < self.patience and self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # this run has more patience


class ValidateAtEnd(Callback):
    """Validates after the last step of a run wherever it lies: otherwise its weights could never be the best ones."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if is_finished(trainer):
            trainer.should_stop = True  # Lightning validates before it stops, in an epoch with validations
            trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch and 1


def is_finished(trainer: Trainer) -> bool:
    """Whether a run has made all its optimizer steps."""
    return 0 < trainer.estimated_stepping_batches <= trainer.global_step
