"""The throughput of a training: tokens per second, time spent waiting for data, the cost of the batch layout."""

import math
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.training.history import logs
from instruct_lit.core.training.loss import sum_over_ranks

STATE = ("n_tokens", "n_supervised", "n_positions", "training_s", "waiting_s")


class Throughput(Callback):
    """Measures the throughput of training batches, without validation, checkpoints and generation.

    `tokens_per_s` counts the examples' own tokens, without padding. A GPU is synchronised at logging steps, before a
    validation and at the end. `waiting_s` is the time the loop waited for data.
    """

    def __init__(self) -> None:
        self.n_tokens = 0  # input tokens of the examples
        self.n_supervised = 0
        self.n_positions = 0  # computed for them: padding adds positions, a shared prefix removes some
        self.training_s = 0.0
        self.waiting_s = 0.0
        self._batch_start: float | None = None
        self._batch_end: float | None = None
        self._last = (0, 0.0)

    def tokens_per_s(self) -> float:
        """Useful tokens per second of training so far; NaN before the first batch."""
        return self.n_tokens / self.training_s if self.training_s else math.nan

    def figures(self) -> dict[str, float]:
        """Throughput of the run for its metrics.

        `positions_per_token` is the cost of the layout: 1.24 means 24 % padding, 0.7 a shared prefix computed once.
        """
        return {
            "tokens_per_s": self.tokens_per_s(),
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
        at_logging_step = logs(trainer)
        if at_logging_step:
            synchronize(pl_module.device)
        self._batch_end = time.perf_counter()
        self.training_s += self._batch_end - self._batch_start
        counts = (batch.n_tokens, batch.n_supervised, batch.input_ids.numel())
        n_tokens, n_supervised, n_positions = sum_over_ranks(trainer, counts)
        self.n_tokens += n_tokens
        self.n_supervised += n_supervised
        self.n_positions += n_positions
        if at_logging_step:
            n_tokens, seconds = self._last
            rate = (self.n_tokens - n_tokens) / max(1e-9, self.training_s - seconds)
            self._last = (self.n_tokens, self.training_s)
            pl_module.log("train/tokens_per_s", rate)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what a GPU still computes; the time until the next batch is then no wait for data."""
        if self._batch_end is not None and pl_module.device.type != "cpu":
            synchronize(pl_module.device)
            self.training_s += time.perf_counter() - self._batch_end
        self._batch_end = None

    on_train_end = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["callbacks"]  # older checkpoints have these figures among those of the history
        if self.state_key not in states and "n_tokens" in states.get("History", {}):
            states[self.state_key] = states["History"]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
