"""The history of a run: losses, learning rate and throughput, a row per logging step and validation."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.training.compat_lightning import log_interval, step_is_complete
from instruct_lit.core.training.loss import sum_over_ranks

STATE = ("n_tokens", "n_supervised", "n_positions", "training_s", "waiting_s", "best_step", "best_loss", "best_value",
         "n_rows")  # fmt: skip


class History(Callback):
    """Appends a row to `history.jsonl` at every logging step and every validation, and measures the throughput.

    `tokens_per_s` counts the examples' own tokens, without padding, over the time spent in training batches, without
    validation, checkpoints and generation. A GPU is synchronised at logging steps, before a validation and at the end.
    `waiting_s` is the time the loop waited for data. The best step is that of the lowest (or with `mode="max"` the
    highest) `monitor`, as for the best checkpoint.
    """

    def __init__(self, path: Path, monitor: str = "val/loss", mode: str = "min") -> None:
        self.path, self.monitor, self.sign = path, monitor, -1 if mode == "max" else 1
        self.n_tokens = 0  # input tokens of the examples
        self.n_supervised = 0
        self.n_positions = 0  # computed for them: padding adds positions, a shared prefix removes some
        self.training_s = 0.0
        self.waiting_s = 0.0
        self.best_step = 0
        self.best_loss = math.inf  # the validation loss there
        self.best_value = math.inf  # the monitored value there, negated with mode=max
        self.n_rows = 0
        self._batch_start: float | None = None
        self._batch_end: float | None = None
        self._last = (0, 0.0)

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second of training so far."""
        return self.n_tokens / self.training_s if self.training_s else math.nan

    def figures(self) -> dict[str, float]:
        """Throughput of the run for its metrics.

        `positions_per_token` is the cost of the layout: 1.24 means 24 % padding, 0.7 a shared prefix computed once.
        """
        return {
            "tokens_per_s": self.tokens_per_s,
            "positions_per_token": self.n_positions / max(1, self.n_tokens),
            "training_s": self.training_s,
            "waiting_s": self.waiting_s,
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch_start = time.perf_counter()
        if self._batch_end is not None:
            self.waiting_s += self._batch_start - self._batch_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self._batch_start is not None
        interval = log_interval(trainer)  # 0: never
        logs = step_is_complete(trainer) and interval > 0 and trainer.global_step % interval == 0
        if logs:
            synchronize(pl_module.device)
        self._batch_end = time.perf_counter()
        self.training_s += self._batch_end - self._batch_start
        counts = (batch.n_tokens, batch.n_supervised, batch.input_ids.numel())
        n_tokens, n_supervised, n_positions = sum_over_ranks(trainer, counts)
        self.n_tokens += n_tokens
        self.n_supervised += n_supervised
        self.n_positions += n_positions
        if logs and "train/loss" in trainer.callback_metrics:
            n_tokens, seconds = self._last
            rate = (self.n_tokens - n_tokens) / max(1e-9, self.training_s - seconds)
            self._last = (self.n_tokens, self.training_s)
            pl_module.log("train/tokens_per_s", rate)
            self._append(trainer, pl_module, ("train/loss", "train/grad_norm"), {"tokens_per_s": rate})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_work(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_work(pl_module)

    def _finish_work(self, pl_module: LightningModule) -> None:
        """Count what a GPU still computes; the time until the next batch is then no wait for data."""
        if self._batch_end is not None and pl_module.device.type != "cpu":
            synchronize(pl_module.device)
            self.training_s += time.perf_counter() - self._batch_end
        self._batch_end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (trainer.global_step > 0 and not fitting):
            return  # the best weights, validated after fitting, belong to no step
        value = self.sign * float(trainer.callback_metrics.get(self.monitor, self.sign * math.inf))
        if fitting and value < self.best_value:
            self.best_value, self.best_step = value, trainer.global_step
            self.best_loss = float(trainer.callback_metrics["val/loss"])
        names = tuple(name for name in trainer.callback_metrics if name.startswith("val/"))
        self._append(trainer, pl_module, names, {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the rows that the run to resume had when its checkpoint was saved."""
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        before = Path(trainer.ckpt_path).resolve().parent.parent / self.path.name
        if before.is_file():
            rows = before.read_text().splitlines(keepends=True)[: self.n_rows]
            new = self.path.with_suffix(".part")
            new.write_text("".join(rows))
            os.replace(new, self.path)

    def _append(
        self, trainer: Trainer, pl_module: LightningModule, names: tuple[str, ...], extra: Mapping[str, float]
    ) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        row = {"step": trainer.global_step, "tokens": int(pl_module.tokens_seen), **metrics, **extra}  # type: ignore[arg-type]
        if trainer.optimizers:
            row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.n_rows += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
