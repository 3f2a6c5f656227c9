"""Checks of a run that need its data."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.check_run import check_limits, check_split
from instruct_lit.config.data_builders import data_of
from instruct_lit.config.run_hooks import Checks
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import ConfigError
from tests.configs import composed


def test_a_part_without_an_example_is_refused(make_data: Callable) -> None:
    data = make_data(split={"train": 30, "val": 0, "test": 5})
    data.prepare_data()
    data.setup()
    with pytest.raises(ConfigError, match=r"data.split=.*: no example for val, which a run needs to stop early"):
        check_split(data)


def test_a_stream_whose_epochs_end_before_its_steps_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for streaming, global_step, should_stop, warns in (
        (True, 10, False, True), (True, 10, True, False), (True, 50, False, False), (False, 10, False, False),
    ):  # fmt: skip
        config = OmegaConf.create({"data": {"streaming": streaming}})
        trainer = SimpleNamespace(global_step=global_step, max_steps=50, max_epochs=2, should_stop=should_stop)
        with Checks(config).fitting(SimpleNamespace(trainer=trainer)):  # type: ignore[arg-type]
            pass
        expected = (
            "warning: trainer.max_steps=50: trainer.max_epochs=2 ended the run after 10 steps; raise that, or -1\n"
        )
        assert capsys.readouterr().out == (expected if warns else "")


def test_a_part_of_the_split_that_is_null_is_one_that_is_not_named(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    overrides = ("data=files", f"data.path={Path(__file__)}", f"paths.cache={tmp_path}", "data.split.train=null")
    template = Template("plain", "{{ instruction }} {{ response }}")
    assert data_of(composed("train", *overrides), template, tokenizer, 96).split_spec == {"val": 0.05, "test": 0.1}


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


@pytest.mark.parametrize(
    ("interval", "accumulated", "apart"), [(0.5, 2, 1), (1, 2, 1), (2, 4, 2), (1.0, 2, 0), (3, 4, 0), (1, 1, 0)]
)
def test_several_validations_of_the_same_weights_are_warned_of(
    make_data: Callable, capsys: pytest.CaptureFixture[str], interval: float, accumulated: int, apart: int
) -> None:
    data = make_data()  # three batches
    data.prepare_data()
    data.setup()
    limits = {f"limit_{split}_batches": 1.0 for split in ("train", "val", "test")} | {"overfit_batches": 0}
    steps = {"max_epochs": 9, "max_steps": -1, "log_every_n_steps": 1, "check_val_every_n_epoch": 1}
    more = {"accumulate_grad_batches": accumulated, "world_size": 1, "is_global_zero": True}
    check_limits(data, SimpleNamespace(val_check_interval=interval, **limits, **steps, **more), fits=True)
    expected = (
        f"warning: trainer.val_check_interval={interval}: validations are {apart} micro-batch{'es' * (apart != 1)} "
        f"apart and steps {accumulated}, so the same weights are validated again, which early stopping counts; raise it\n"
    )
    assert capsys.readouterr().out == (expected if apart else "")
