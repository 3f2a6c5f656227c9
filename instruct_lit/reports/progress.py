"""The progress bar of a run."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn

READ_EVERY_S = 0.5  # the loss of a GPU, for which the host waits until its step is computed
Shown = dict[str, int | str | float | dict[str, float]]


class Progress(TQDMProgressBar):
    """One line that shows loss, validation loss, tokens per second and the time left."""

    def __init__(self, tokens_per_s: Callable[[], float]) -> None:
        super().__init__(refresh_rate=5)
        self.tokens_per_s = tokens_per_s  # NaN before the first batch
        self._shown: Shown = {}
        self._next_reading = 0.0

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        # Shorter than tqdm's own line, without steps per second, so that it fits 80 columns.
        bar.bar_format = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        if self.trainer.state.fn == TrainerFn.FITTING and not sys.stdout.isatty():  # it would interrupt the line
            return Tqdm(disable=True)
        return self._short_lived(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Tqdm:
        return self._short_lived(super().init_test_tqdm())

    def _short_lived(self, bar: Tqdm) -> Tqdm:
        bar.leave = False
        return bar

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.train_progress_bar.n = batch_idx + 1  # not drawn yet, but correct where the epoch ends early

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._next_reading = 0.0
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))  # type: ignore[arg-type]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Shown:
        if pl_module.device.type != "cpu" and time.perf_counter() < self._next_reading:
            return self._shown
        found, names = trainer.callback_metrics, {"loss": "train/loss", "val": "val/loss"}
        shown: Shown = {title: f"{float(found[name]):.3f}" for title, name in names.items() if name in found}
        if not math.isnan(rate := self.tokens_per_s()):
            shown["tok/s"] = f"{rate:.0f}"
        self._next_reading, self._shown = time.perf_counter() + READ_EVERY_S, shown
        return shown
