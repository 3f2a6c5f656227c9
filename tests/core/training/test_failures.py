"""A NaN or infinite loss ends a run: the message names the place and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.settings import Lengths, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.training.loss import FiniteLosses
from instruct_lit.errors import TrainingError

TEMPLATE = Template("short", "Do: {{ instruction }} {{ input }}\nAnswer: {{ response }}")


def test_finite_losses_pass() -> None:
    losses = FiniteLosses()
    for step in range(3):
        losses.add(step, [torch.tensor([1])], torch.tensor(2.0), str)
    assert losses._waiting == []


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_nan_or_infinite_loss_names_step_and_examples(value: str) -> None:
    with pytest.raises(
        TrainingError,
        match=f"train/loss is {value} at step 4, on examples 7, 9, 2 of the data; lower optimizer.lr, .*; the last is x",
    ):
        FiniteLosses().add(
            4, [torch.tensor([7, 9]), torch.tensor([2])], torch.tensor(float(value)), lambda: "the last is x"
        )


class Poison(Callback):
    """Makes one weight infinite before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.model.ln_f.weight[0] = torch.inf


def test_a_fit_ends_before_the_step_changes_a_weight(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    tuner = make_tuner()
    with pytest.raises(
        TrainingError, match=r"at step 2, on examples (\d+, ){7}\d+ of the data.*no checkpoint was writ"
    ):
        fit(tuner, make_data(), Poison(1))
    assert torch.isfinite(tuner.model.wte.weight).all()


def test_a_data_file_that_changes_during_a_run(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    """The run continues with its stored tokens; a later run has other data, which a resume refuses."""
    file = tmp_path / "records.json"

    def write(word: str) -> None:
        file.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{word} {i}"} for i in range(12)]))

    def opened() -> InstructionData:
        split = {"train": 8, "val": 2, "test": 2}
        source = FileSource([file], name="files")
        data = InstructionData(source, TEMPLATE, tokenizer, tmp_path / "cache", Lengths(64), Splits(split))
        data.prepare_data()
        data.setup()
        return data

    write("before")
    data = opened()
    fingerprint = data.fingerprint
    first = [batch.input_ids for batch in data.train_dataloader()]
    write("after")
    for before, after in zip(first, data.train_dataloader(), strict=True):
        assert torch.equal(before, after.input_ids)
    assert opened().fingerprint != fingerprint
