"""The private attributes of Lightning that `core.training` uses exist; the resume tests show that they mean the same."""

from lightning import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector


def test_the_epoch_loop_and_the_logger_connector_have() -> None:
    assert hasattr(_TrainingEpochLoop, "_should_accumulate"), "_TrainingEpochLoop._should_accumulate is gone"
    assert hasattr(_LoggerConnector, "should_update_logs"), "_LoggerConnector.should_update_logs is gone"


def test_the_trainer_has() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=7)
    assert hasattr(trainer, "_logger_connector"), "Trainer._logger_connector is gone"
    assert trainer.log_every_n_steps == 7, "Trainer.log_every_n_steps is gone"
