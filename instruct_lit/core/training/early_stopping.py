"""Early stopping that counts validations of changed weights only."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, for which a validation counts only after an optimizer step.

    A validation interval may be shorter than the micro-batches of a step; patience does not run out on unchanged
    weights.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.checked_step = 0  # the weights before the first step are not compared either

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.checked_step:
            before = self._compared()
            super().on_validation_end(trainer, pl_module)
            self._note(before, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.checked_step:
            before = self._compared()
            super().on_train_epoch_end(trainer, pl_module)
            self._note(before, trainer.global_step)

    def _compared(self) -> tuple[int, float]:
        return self.wait_count, float(self.best_score)

    def _note(self, before: tuple[int, float], step: int) -> None:
        """Lightning checks after validations or after epochs: only then the result of the comparison changes."""
        if self._compared() != before:
            self.checked_step = step

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "checked_step": self.checked_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.checked_step = state_dict.get("checked_step", 0)
        super().load_state_dict({**state_dict, "patience": self.patience})
        if self.wait_count < self.patience and self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # this run has more patience
