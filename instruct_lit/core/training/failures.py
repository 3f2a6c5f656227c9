"""A NaN or infinite loss ends a run with the step, its examples and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from instruct_lit.errors import TrainingError


class FiniteLosses:
    """Checks the mean losses of steps: at once on a CPU, where that is free, every `every` steps on a GPU."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._waiting: list[tuple[int, list[Tensor], Tensor]] = []

    def add(self, step: int, example_ids: list[Tensor], loss: Tensor, last_good: Callable[[], str]) -> None:
        """Add the loss of a step over the examples of its micro-batches.

        Raises: TrainingError that `last_good` completes; on a CPU before the step changes a weight.
        """
        self._waiting.append((step, example_ids, loss))
        if loss.device.type != "cpu" and len(self._waiting) < self.every:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.stack([loss for _, _, loss in waiting]).tolist()
        for (step, example_ids, _), value in zip(waiting, values, strict=True):
            if not math.isfinite(value):
                ids = torch.cat(example_ids).tolist()
                examples = ", ".join(map(str, ids[:16])) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
                place = f"at step {step}, on examples {examples} of the data"
                raise TrainingError(not_finite("train/loss", value, place, last_good()))


def not_finite(metric: str, value: float, place: str, last_good: str) -> str:
    """The message of a NaN or infinite loss."""
    advice = "lower optimizer.lr, or set trainer.precision=32-true"
    return f"{metric} is {value} {place}; {advice}; {last_good}"
