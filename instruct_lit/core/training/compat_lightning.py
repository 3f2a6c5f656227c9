"""The private state of Lightning's loops that logging needs; `tests` names each attribute."""

from lightning import Trainer


def step_is_complete(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of its optimizer step; the public `batch_idx` ignores resumes."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def logs_this_step(trainer: Trainer) -> bool:
    """Whether loggers get a row of the current step; spares the norm of the gradients elsewhere."""
    return trainer._logger_connector.should_update_logs
