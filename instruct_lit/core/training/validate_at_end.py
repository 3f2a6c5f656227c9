"""A validation after the last step."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from instruct_lit.core.data.collate import Batch


class ValidateAtEnd(Callback):
    """Validates after the last step of a run also where `trainer.max_steps` lies between two validations.

    Otherwise the last weights could never be the best ones, and no loss would be known of them.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if 0 < trainer.estimated_stepping_batches <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates before it stops
