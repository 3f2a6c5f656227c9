"""The private attributes of Lightning that `core.training` uses exist; the resume tests show that they mean the same."""

import inspect

import pytest
from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from instruct_lit.core.training import compat_lightning as module


@pytest.mark.parametrize("name", ["_should_accumulate", "_should_check_val_fx", "_num_ready_batches_reached"])
def test_the_epoch_loop_has(name: str) -> None:
    assert hasattr(_TrainingEpochLoop, name), f"_TrainingEpochLoop.{name} is gone"


def test_fit_loop_and_logger_connector_have() -> None:
    assert "_data_fetcher" in inspect.getsource(_FitLoop.__init__), "_FitLoop._data_fetcher is gone"
    assert hasattr(_FitLoop, "restarted_mid_epoch"), "_FitLoop.restarted_mid_epoch is gone"
    assert hasattr(_LoggerConnector, "should_update_logs"), "_LoggerConnector.should_update_logs is gone"


def test_the_trainer_has() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=7)
    assert hasattr(trainer, "_logger_connector"), "Trainer._logger_connector is gone"
    assert module.log_interval(trainer) == 7, "Trainer.log_every_n_steps is gone"
