"""The history of a run: losses and learning rate, a row per logging step and validation."""

import json
import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.training.compat_lightning import step_is_complete

STATE = ("best_step", "best_loss", "best_value", "n_rows", "lr")


class History(Callback):
    """Appends a row to `history.jsonl` at every logging step and every validation.

    The best step is that of the lowest (or with `mode="max"` the highest) `monitor`, as for the best checkpoint.
    """

    def __init__(self, path: Path, monitor: str = "val/loss", mode: str = "min") -> None:
        self.path, self.monitor, self.sign = path, monitor, -1 if mode == "max" else 1
        self.best_step = 0
        self.best_loss = math.inf  # the validation loss there
        self.best_value = math.inf  # the monitored value there, negated with mode=max
        self.n_rows = 0
        self.lr: float | None = None  # of the last step; that of the optimizer is the next one's when a row is written

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if logs(trainer):
            self._append(trainer, pl_module, ("train/loss", "train/grad_norm", "train/tokens_per_s"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (trainer.global_step > 0 and not fitting):
            return  # the best weights, validated after fitting, belong to no step
        value = self.sign * float(trainer.callback_metrics.get(self.monitor, self.sign * math.inf))
        if fitting and value < self.best_value:
            self.best_value, self.best_step = value, trainer.global_step
            self.best_loss = float(trainer.callback_metrics["val/loss"])
        self._append(trainer, pl_module, tuple(n for n in trainer.callback_metrics if n.startswith("val/")))

    def _append(self, trainer: Trainer, pl_module: LightningModule, names: tuple[str, ...]) -> None:
        if not trainer.is_global_zero:
            return
        found = {name: trainer.callback_metrics[name] for name in names if name in trainer.callback_metrics}
        metrics = {name.replace("train/tokens_per_s", "tokens_per_s"): float(value) for name, value in found.items()}
        row = {"step": trainer.global_step, "tokens": int(pl_module.tokens_seen), **metrics}  # type: ignore[arg-type]
        if self.lr is not None:
            row["lr"] = self.lr
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.n_rows += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, {"lr": None, **state_dict}[name])  # older checkpoints are without the rate


def logs(trainer: Trainer) -> bool:
    """Whether an optimizer step was just made that the loggers get a row of."""
    interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0: never
    is_due = interval > 0 and trainer.global_step % interval == 0 and step_is_complete(trainer)
    return is_due and "train/loss" in trainer.callback_metrics
