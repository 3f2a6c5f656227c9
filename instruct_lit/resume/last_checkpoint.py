"""The checkpoint that a run resumes from: taken between two optimizer steps, with every state that matters."""

import random
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.core.model.causal import best_device
from instruct_lit.core.training.compat_lightning import step_is_complete
from instruct_lit.errors import CheckpointError
from instruct_lit.resume.compat_lightning import count_resumed_epoch, epoch_is_complete, validation_follows

# Ctrl-C, a request to end, what SLURM is asked to send before the time limit (submitit: SIGUSR2)
SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")]  # Windows lacks some


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` after every validation, at the end of the run, and when a signal asks the run to end.

    It is taken after a whole optimizer step, since gradients are in no checkpoint: a validation between the
    micro-batches of a step is saved when the step is complete. A signal ends the run at that moment, on all ranks after
    the same step; a second signal ends it at once, without saving. Random states of all ranks are in the checkpoint.

    Args:
        every_n_steps: Optimizer steps between further checkpoints; None for none.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._pending = False
        self._end_requested = False
        self._saved_step = -1
        self._random_states: list[dict[str, Any]] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pending = self._end_requested = False
        self._saved_step = trainer.global_step
        count_resumed_epoch(trainer)
        if self._random_states is not None:
            states, self._random_states = self._random_states, None
            set_random_state(states[trainer.global_rank % len(states)])
        stopper = trainer.early_stopping_callback
        if stopper is not None and stopper.wait_count >= max(1, stopper.patience):  # of checkpoints without a reason
            stopper.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
        if stopper is not None and stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True  # early stopping had ended the run that is resumed
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_is_complete(trainer):
            return
        ends = self._any_rank_ends(trainer)
        # The results of a validation belong into the checkpoint: if one follows, the state is saved after it.
        if validation_follows(trainer):
            self._end_requested = ends
            return
        at_limit = 0 < trainer.max_steps <= trainer.global_step
        due = self.every_n_steps is not None and trainer.global_step - self._saved_step >= self.every_n_steps
        if self._pending or ends or epoch_is_complete(trainer) or at_limit or due:
            self._save(trainer)
        if ends:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if not step_is_complete(trainer):
            self._pending = True
            return
        self._save(trainer)
        if self._any_rank_ends(trainer):  # all ranks ask: a signal may have reached one of them meanwhile
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule, *exception: BaseException) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    on_exception = on_train_end  # type: ignore[assignment]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get("random_states")

    def _save(self, trainer: Trainer) -> None:
        self._pending = False
        self._saved_step = trainer.global_step
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)

    def _any_rank_ends(self, trainer: Trainer) -> bool:
        """Whether any rank got a signal to end; the same on all ranks."""
        if trainer.world_size == 1:
            return self._end_requested
        return bool(trainer.strategy.reduce_boolean_decision(self._end_requested, all=False))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._end_requested:
            raise KeyboardInterrupt
        self._end_requested = True


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    gpu = best_device()
    return {
        "torch": torch.get_rng_state(),
        gpu.type: [] if gpu.type == "cpu" else [torch.get_device_module(gpu).get_rng_state()],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned. Raises CheckpointError for the state of another Python."""
    torch.set_rng_state(state["torch"])
    gpu = best_device()
    if of_gpus := state.get(gpu.type):  # of that of the process; earlier versions saved those of all
        own = of_gpus[torch.accelerator.current_device_index() % len(of_gpus)]
        torch.get_device_module(gpu).set_rng_state(own)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    try:
        random.setstate((version, tuple(internal.tolist()), gauss_next))
    except ValueError as error:
        found = f"random state of another Python ({error})"
        raise CheckpointError(f"ckpt_path: {found}; use the Python of before") from error
