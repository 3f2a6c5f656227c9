"""A NaN or infinite loss ends a run with the step, its examples and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from instruct_lit.errors import TrainingError


class FiniteLosses:
    """Checks the loss of every step: at once on a CPU, where that is free, and every `every` steps on a GPU.

    Raises TrainingError with the step and its examples for a NaN or infinite loss; on a CPU before the step changes a
    weight.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._waiting: list[tuple[int, list[Tensor], Tensor]] = []

    def add(self, step: int, example_ids: list[Tensor], loss: Tensor, last_good: Callable[[], str]) -> None:
        """Add the mean loss of a step over the examples of its micro-batches; `last_good` completes the message."""
        self._waiting.append((step, example_ids, loss))
        if loss.device.type == "cpu" or len(self._waiting) >= self.every:
            self.check(last_good)

    def check(self, last_good: Callable[[], str]) -> None:
        """Check all losses that were added."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        losses = torch.stack([loss for _, _, loss in waiting]).tolist()
        for (step, example_ids, _), loss in zip(waiting, losses, strict=True):
            if not math.isfinite(loss):
                ids = torch.cat(example_ids).tolist()
                examples = ", ".join(map(str, ids[:16])) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
                place = f"at step {step}, on examples {examples} of the data"
                raise TrainingError(not_finite("train/loss", loss, place, last_good()))


def not_finite(metric: str, value: float, place: str, last_good: str) -> str:
    """The message of a NaN or infinite loss."""
    advice = "lower optimizer.lr, or set trainer.precision=32-true"
    return f"{metric} is {value} {place}; {advice}; {last_good}"
