"""The private state of Lightning's loops that exact resume and logging need; `tests` names each attribute."""

from __future__ import annotations

from lightning import Trainer


def step_is_complete(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of its optimizer step; the public `batch_idx` ignores resumes."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the current micro-batch; there is no hook between the step and that."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def epoch_is_complete(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of the epoch, also with `limit_train_batches`."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def logs_this_step(trainer: Trainer) -> bool:
    """Whether loggers get a row of the current step; spares the norm of the gradients elsewhere."""
    return trainer._logger_connector.should_update_logs


def log_interval(trainer: Trainer) -> int:
    """Optimizer steps between two rows of the loggers (an attribute that Lightning sets outside its constructor)."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]


def count_resumed_epoch(trainer: Trainer) -> None:
    """Count the epoch that begins where a run resumes from the last step of an epoch.

    Lightning counts only the end of the epoch before. Otherwise, after a second resume of this kind, the epoch that
    has just ended would be trained again.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress
    if loop.restarted_mid_epoch and epochs.total.ready == epochs.total.processed:  # type: ignore[attr-defined]
        epochs.increment_ready()
        epochs.increment_started()
