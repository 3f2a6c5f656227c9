"""Checks of a run that need its data: parts of the split without examples, and limits that leave no batch."""

import math
import sys

from lightning import Trainer

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.errors import ConfigError


def check_split(data: InstructionData) -> None:
    """Raise ConfigError if a part of the split that every run needs has no example."""
    uses = {"train": "to learn", "val": "to stop early and to find the best weights", "test": "to answer"}
    for name, use in uses.items():
        if name in data.stored_parts and len(data.examples_of(name)[1]) == 0:
            file = "" if name == "train" else f", or a separate file (data.{name}_path=)"
            raise ConfigError(
                f"data.split={data.split_spec}: no example for {name}, which a run needs {use}; "
                f"give it a fraction or a number of the records{file}"
            )


def check_limits(data: InstructionData, trainer: Trainer, fits: bool, warmup_steps: int = 0) -> None:
    """Raise ConfigError for limits of the trainer that leave no batch, and for validations that would never come.

    Warns where the run, if it `fits`, has too few steps to log a training loss, or to end its warm-up, and where there
    are several validations between two steps.
    """
    n_batches = {"train": math.ceil(min(data.n_train_batches, sys.maxsize) / trainer.world_size)}
    for split, loaders in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        n_batches[split] = min(len(loader) for loader in (loaders if isinstance(loaders, list) else [loaders]))
    for split, n in n_batches.items():
        limit = getattr(trainer, f"limit_{split}_batches")
        key = "overfit_batches" if trainer.overfit_batches and split != "test" else f"limit_{split}_batches"  # type: ignore[attr-defined]
        if isinstance(limit, float) and 0 < limit * n < 1:
            found = f"less than one of {n} batches ({split})"
            raise ConfigError(f"trainer.{key}={limit}: {found}; give a number of batches")
    limit, interval = trainer.limit_train_batches, getattr(trainer, "val_check_interval", None)  # None: by time
    n = min(n_batches["train"], limit) if isinstance(limit, int) else int(n_batches["train"] * limit)
    if fits and n > 0 and trainer.is_global_zero:
        n_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        n_steps = n_epochs * math.ceil(n / trainer.accumulate_grad_batches)
        n_steps = n_steps if trainer.max_steps == -1 else min(n_steps, trainer.max_steps)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        rate, loss = "the rate stays below optimizer.lr; lower it", "no training loss is logged; lower it"
        epochs = f"trainer.max_epochs={trainer.max_epochs} ends it before; raise that, or -1"
        for is_short, key, lost in (
            (n_steps < every, f"trainer.log_every_n_steps={every}", loss),
            (n_steps <= warmup_steps, f"scheduler.warmup_steps={warmup_steps}", rate),
            (n_steps < trainer.max_steps, f"trainer.max_steps={trainer.max_steps}", epochs),
        ):
            if is_short:
                print(f"warning: {key}: the run has {n_steps} step{'s' * (n_steps != 1)}, so {lost}", flush=True)
        apart = interval if isinstance(interval, int) else max(1, int(n * (interval or 1)))
        if trainer.limit_val_batches and apart < min(n, trainer.accumulate_grad_batches):
            batches = f"micro-batch{'es' * (apart != 1)}"
            found = f"validations are {apart} {batches} apart and steps {trainer.accumulate_grad_batches}"
            lost = "the same weights are validated again, which early stopping counts; raise it"
            print(f"warning: trainer.val_check_interval={interval}: {found}, so {lost}", flush=True)
    by_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if isinstance(interval, int) and by_epoch and interval > n:
        raise ConfigError(
            f"trainer.val_check_interval={interval}: an epoch has {n} batches; give at most that, a fraction, or "
            "trainer.check_val_every_n_epoch=null, which counts over epochs"
        )
