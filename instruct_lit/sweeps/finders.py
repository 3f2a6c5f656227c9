"""Short runs that find a setting instead of training: a learning rate, and the largest batch size that fits."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from instruct_lit.accel.estimate import kept_bytes, train_step
from instruct_lit.accel.memory import free_memory, limited_memory, out_of_memory
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.errors import ConfigError, TrainingError


class LearningRateRange:
    """Trains `n_steps` steps with a learning rate that grows from `min_lr` to `max_lr`, and suggests one.

    The suggestion is a tenth of the rate at which the moving average of the steps' losses is lowest (the steepest
    descent follows the noise where few losses are averaged). Writes `lr_range.json` and `lr_range.png`; the weights are
    those after the last step.
    Raises: TrainingError when the loss never falls.
    Source: Smith 2017, section 3.3.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 1.0, n_steps: int = 100) -> None:
        if not 0 < min_lr < max_lr or n_steps < 20:
            given = f"min_lr={min_lr}, max_lr={max_lr}, n_steps={n_steps}"
            raise ConfigError(f"finder: {given}; needs 0 < min_lr < max_lr and n_steps of at least 20")
        self.min_lr, self.max_lr, self.n_steps = min_lr, max_lr, n_steps

    def __call__(self, trainer: Trainer, tuner: InstructionTuner, data: InstructionData, run_dir: Path) -> float:
        """Run, print, and return the suggestion."""
        tuner.ends_when_not_finite = False  # a rate that is too large is part of the range
        tuner.make_scheduler = self._growing
        averages = _Averages(self.n_steps)
        bars = [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]  # type: ignore[attr-defined]
        trainer.callbacks, trainer.loggers = [averages, *bars], []  # type: ignore[attr-defined]
        trainer.fit(tuner, data)
        rates, losses = averages.rates, averages.losses
        found = suggested(rates, losses)
        content = {"suggestion": found, "lr": rates, "loss": [x if math.isfinite(x) else None for x in losses]}
        (run_dir / "lr_range.json").write_text(json.dumps(content, indent=1) + "\n")
        from instruct_lit.reports import plots

        plots.save(plots.learning_rate_range(rates, losses, found), run_dir / "lr_range.png")
        print(f"\n{run_dir / 'lr_range.png'}\na tenth of the rate at the lowest loss: optimizer.lr={found:.2g}")
        return found

    def _growing(self, optimizer: Optimizer, _: int) -> LambdaLR:
        for group in optimizer.param_groups:
            group["lr"] = self.min_lr
        return LambdaLR(optimizer, lambda step: (self.max_lr / self.min_lr) ** (step / (self.n_steps - 1)))


class _Averages(Callback):
    """The rate of each step and the moving average of the losses up to it; four times the lowest ends the fit."""

    def __init__(self, n_steps: int, beta: float = 0.98) -> None:
        self.n_steps, self.beta = n_steps, beta
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._sum = 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if len(self.rates) == len(self.losses):  # within a step of several micro-batches
            return
        loss = float(trainer.callback_metrics.get("train/loss", math.nan))  # over all tokens of the step
        self._sum = self.beta * self._sum + (1 - self.beta) * loss
        self.losses.append(self._sum / (1 - self.beta ** len(self.rates)))
        if len(self.losses) == self.n_steps or not self.losses[-1] <= 4 * min(self.losses):
            trainer.should_stop = True


def suggested(rates: Sequence[float], losses: Sequence[float], skip: int = 5) -> float:
    """A tenth of the rate at which the loss is lowest.

    The first `skip` losses are ignored, since their average has not settled.
    Raises: TrainingError when the loss never falls.
    """
    x, y = np.log(rates[skip:]), np.asarray(losses[skip:], dtype=np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    lowest = int(np.argmin(y)) if len(y) else 0
    if lowest < 2:
        remedy = "lower finder.min_lr, or inspect the data with python -m instruct_lit.peek"
        raise TrainingError(f"lr_range: the loss never falls; {remedy}")
    return float(np.exp(x[lowest])) / 10


class LargestBatch:
    """Finds the largest `data.batch_size` whose optimizer step fits into the device's memory, by doubling and halving.

    Each batch consists of the longest training examples in the configured layout, so every later batch is smaller.
    On a CPU the limit is the memory that is free at the start: the system would kill the process rather than refuse
    memory, so the process is limited to it (Linux). On a slow device with much memory the search ends when the next
    step would take longer than `max_step_s` seconds (not below the configured size), and reports an estimate of how
    many examples would fit. Writes `batch_size.json`; the weights are those after a few steps.
    Raises: TrainingError when one example does not fit.
    """

    def __init__(self, max_size: int = 4096, max_step_s: float = 10.0) -> None:
        if max_size < 1:
            raise ConfigError(f"finder.max_size={max_size}: at least 1 is needed")
        self.max_size, self.max_step_s = max_size, max_step_s

    def __call__(self, trainer: Trainer, tuner: InstructionTuner, data: InstructionData, run_dir: Path) -> int:
        """Run, print, and return the size."""
        if data.batching.max_tokens is not None:
            raise ConfigError("sweep=batch_size: set batching.max_tokens=null, which bounds the batches already")
        store, indices = data.examples_of("train")
        longest = indices[np.argsort(-store.lengths[indices], kind="stable")][: self.max_size].tolist()
        device, bf16 = trainer.strategy.root_device, trainer.precision == "bf16-mixed"
        optimizer = tuner.make_optimizer(tuner.model.to(device).train())
        free = free_memory(device)
        seconds: dict[int, float] = {}  # per step, by batch size

        def batch_of(n: int) -> Batch:
            return data.collator([store[i] for i in longest[:n]]).to(device)

        def fits(n: int) -> bool:
            try:
                batch = batch_of(n)
                # twice, since the first step allocates the optimizer's moments
                seconds[n] = min(train_step(tuner.step, optimizer, batch, bf16) for _ in range(2))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                optimizer.zero_grad()
                print(f"{n} examples do not fit", flush=True)
                return False
            finally:
                if device.type != "cpu":
                    torch.get_device_module(device).empty_cache()
            print(f"{n} examples fit, {seconds[n]:.3g} s per step", flush=True)
            return True

        if free is not None:
            print(f"{free / 1e9:.1f} GB of free memory", flush=True)

        def slow(n: int) -> bool:
            return n >= data.batching.batch_size and 2 * seconds[n] > self.max_step_s

        with limited_memory(device, free):
            size, refused = largest(fits, len(longest), slow)
        if size == 0:
            raise TrainingError(
                "batch_size: one example does not fit; lower data.max_length, set model.activation_checkpointing=true, "
                "or choose a smaller model"
            )
        found: dict[str, Any] = {"batch_size": size, "refused": refused, "step_s": seconds[size], "free_bytes": free}
        text = ""
        if refused is not None:
            why = f"that fits ({refused} do not)"
        elif size == len(longest):
            why = "tried (all examples, or finder.max_size)"
        else:
            why, twice = "tried", f"{2 * seconds[size]:.0f} s"
            text = f"; a step with twice as many takes about {twice}, longer than finder.max_step_s={self.max_step_s:g}"
            if free is not None:  # the states of model and optimizer are allocated already
                found["by_memory"] = int(free * size / kept_bytes(tuner.step, batch_of(size), bf16))
                text += f"; the free memory would hold about {found['by_memory']:,}"
        print(f"the largest {why}: data.batch_size={size}{text}")
        (run_dir / "batch_size.json").write_text(json.dumps(found) + "\n")
        return size


def largest(
    fits: Callable[[int], bool], most: int, enough: Callable[[int], bool] = lambda n: False
) -> tuple[int, int | None]:
    """The largest of 1 … `most` that fits, and the smallest that does not (None if all do).

    A size that is `enough` is not doubled.
    """
    size, refused = 0, None
    while size < most and refused is None and not (size and enough(size)):
        n = min(most, max(1, 2 * size))
        size, refused = (n, None) if fits(n) else (size, n)
    while refused is not None and refused - size > max(1, size // 16):  # to 6 %
        n = (size + refused) // 2
        size, refused = (n, refused) if fits(n) else (size, n)
    return size, refused
