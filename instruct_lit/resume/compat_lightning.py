"""The private state of Lightning's loops that a checkpoint between two steps needs; `tests` names each attribute."""

import math

from lightning import Trainer


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the current micro-batch; there is no hook between the step and that."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def epoch_is_complete(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of the epoch, also with `limit_train_batches`."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def count_logged_steps(trainer: Trainer) -> None:
    """Give loggers the optimizer steps made so far.

    Lightning counts them apart, and a checkpoint within a step, as at a validation, has one too few.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def count_resumed_epoch(trainer: Trainer) -> None:
    """Count the epoch that begins where a run resumes from the last step of an epoch.

    Lightning counts only the end of the epoch before. Otherwise, after a second resume of this kind, the epoch that
    has just ended would be trained again. Where the validation there was that of the end of the resumed run alone, it
    would train a further batch of that epoch: such a checkpoint is taken as one from before the validation. Of a
    stream, whose length it does not know, Lightning would count the batches of the next epoch behind the last one.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress
    last = loop.restarted_mid_epoch and loop.epoch_loop.restarted_on_last  # type: ignore[attr-defined]
    if last and epoch_is_complete(trainer) and not validation_follows(trainer):
        for batches in (loop.epoch_loop.batch_progress.total, loop.epoch_loop.batch_progress.current):
            batches.completed -= 1
        loop.reset()
    inner = loop.epoch_loop
    ended = loop.restarted_mid_epoch and inner.restarted_on_train_batch_end and epoch_is_complete(trainer)  # type: ignore[attr-defined]
    if ended and trainer.num_training_batches == math.inf:  # what `inner.reset` does for epochs of known length
        for progress in (
            inner.batch_progress,
            inner.scheduler_progress,
            inner.automatic_optimization.optim_progress,
        ):
            progress.reset_on_run()
        inner.val_loop.batch_progress.total.reset()
        inner.batch_progress.current.completed -= 1  # which `inner.reset` adds
    if loop.restarted_mid_epoch and epochs.total.ready == epochs.total.processed:  # type: ignore[attr-defined]
        epochs.increment_ready()
        epochs.increment_started()
