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


@pytest.mark.parametrize(
    ("warmup_steps", "max_steps", "max_epochs", "warning"),
    [
        (2, 3, 1, ""),
        (3, 3, 1, "scheduler.warmup_steps=3: the run has 3 steps, so the rate stays below optimizer.lr; lower it"),
        (9, 9, -1, "scheduler.warmup_steps=9: the run has 9 steps, so the rate stays below optimizer.lr; lower it"),
        (
            0,
            90,
            1,
            "trainer.max_steps=90: the run has 4 steps, so trainer.max_epochs=1 ends it before; raise that, or -1",
        ),
        (0, 90, -1, ""),
    ],
)
def test_steps_that_do_not_fit_are_warned_of(
    make_data: Callable, capsys: pytest.CaptureFixture[str],
    warmup_steps: int, max_steps: int, max_epochs: int, warning: str,
) -> None:  # fmt: skip
    data = make_data(n_train=32)
    data.prepare_data()
    data.setup()
    limits = {f"limit_{split}_batches": 1.0 for split in ("train", "val", "test")} | {"overfit_batches": 0}
    steps = {"max_epochs": max_epochs, "max_steps": max_steps, "log_every_n_steps": 1, "check_val_every_n_epoch": 1}
    more = {"accumulate_grad_batches": 1, "world_size": 1, "is_global_zero": True, "val_check_interval": 1.0}
    check_limits(data, SimpleNamespace(**limits, **steps, **more), True, warmup_steps)
    assert capsys.readouterr().out == (f"warning: {warning}\n" if warning else "")


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
