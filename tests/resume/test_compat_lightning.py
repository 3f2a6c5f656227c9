"""The private attributes of Lightning that `resume` uses exist; the resume tests show that they mean the same."""

import inspect

import pytest
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


@pytest.mark.parametrize(
    "name", ["_should_check_val_fx", "_num_ready_batches_reached", "restarted_on_last", "restarted_on_train_batch_end"]
)
def test_the_epoch_loop_has(name: str) -> None:
    assert hasattr(_TrainingEpochLoop, name), f"_TrainingEpochLoop.{name} is gone"


def test_the_epoch_loop_counts_the_last_batch_before_it_resets() -> None:
    source = inspect.getsource(_TrainingEpochLoop.reset)
    counts = "if self.restarted_on_train_batch_end:\n            self.batch_progress.increment_completed()"
    assert counts in source, "_TrainingEpochLoop.reset has changed"
    resets = ("batch_progress", "scheduler_progress", "automatic_optimization.optim_progress")
    for line in (*(f"self.{name}.reset_on_run()" for name in resets), "self.val_loop.batch_progress.total.reset()"):
        assert line in source, line


def test_the_epoch_loop_counts_steps_for_loggers() -> None:
    assert "self._batches_that_stepped" in inspect.getsource(_TrainingEpochLoop.__init__), (
        "_batches_that_stepped is gone"
    )


def test_the_fit_loop_has() -> None:
    assert "_data_fetcher" in inspect.getsource(_FitLoop.__init__), "_FitLoop._data_fetcher is gone"
    assert hasattr(_FitLoop, "restarted_mid_epoch"), "_FitLoop.restarted_mid_epoch is gone"
