"""Checks of a run that need its data."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from instruct_lit.config.check_run import check_limits, check_split
from instruct_lit.errors import ConfigError


def test_a_part_without_an_example_is_refused(make_data: Callable) -> None:
    data = make_data(split={"train": 30, "val": 0, "test": 5})
    data.prepare_data()
    data.setup()
    with pytest.raises(ConfigError, match=r"data.split=.*: no example for val, which a run needs to stop early"):
        check_split(data)


def test_a_run_that_logs_no_training_loss_is_warned_of(make_data: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    data.prepare_data()
    data.setup()
    limits = {f"limit_{split}_batches": 1.0 for split in ("train", "val", "test")} | {"overfit_batches": 0}
    steps = {"max_epochs": 1, "max_steps": 3, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}
    trainer = SimpleNamespace(world_size=1, is_global_zero=True, val_check_interval=1.0, **limits, **steps)
    for every, warns in ((3, False), (4, True)):
        trainer.log_every_n_steps = every
        check_limits(data, trainer, fits=True)
        expected = "warning: trainer.log_every_n_steps=4: the run has 3 steps, so no training loss is logged; lower it"
        assert capsys.readouterr().out == (f"{expected}\n" if warns else "")
