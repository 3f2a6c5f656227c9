"""A validation after the last step, and no further step in a run that had made all."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from instruct_lit.core.data.collate import Batch


class ValidateAtEnd(Callback):
    """Validates after the last step of a run also where `trainer.max_steps` lies between two validations.

    Otherwise the last weights could never be the best ones, and no loss would be known of them. A finished run that is
    resumed makes no further step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_finished(trainer):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if is_finished(trainer):
            trainer.should_stop = True  # Lightning validates before it stops


def is_finished(trainer: Trainer) -> bool:
    """Whether a run has made all its optimizer steps."""
    return 0 < trainer.estimated_stepping_batches <= trainer.global_step
