"""The private attributes of Lightning that `resume` uses exist; the resume tests show that they mean the same."""

import inspect

import pytest
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


@pytest.mark.parametrize("name", ["_should_check_val_fx", "_num_ready_batches_reached"])
def test_the_epoch_loop_has(name: str) -> None:
    assert hasattr(_TrainingEpochLoop, name), f"_TrainingEpochLoop.{name} is gone"


def test_the_fit_loop_has() -> None:
    assert "_data_fetcher" in inspect.getsource(_FitLoop.__init__), "_FitLoop._data_fetcher is gone"
    assert hasattr(_FitLoop, "restarted_mid_epoch"), "_FitLoop.restarted_mid_epoch is gone"
