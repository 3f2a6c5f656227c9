"""A loss that is no number, and memory that is not there: the message says where and what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback

from instruct_lit.accel.hardware import PeakMemory
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.settings import Lengths, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.training.failures import FiniteLosses, advice, explained_memory, explained_peers
from instruct_lit.errors import TrainingError

TEMPLATE = Template("short", "Do: {{ instruction }} {{ input }}\nAnswer: {{ response }}")


def test_finite_losses_pass() -> None:
    losses = FiniteLosses()
    for step in range(3):
        losses.add(step, [torch.tensor([1])], torch.tensor(2.0), str)
    assert losses._waiting == []


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_names_step_and_examples(value: str) -> None:
    with pytest.raises(
        TrainingError,
        match=f"train/loss is {value} at step 4, on examples 7, 9, 2 of the data; lower optimizer.lr, .* the last is x",
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


def test_a_fit_stops_before_the_step_changes_a_weight(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    tuner = make_tuner()
    with pytest.raises(
        TrainingError, match=r"at step 2, on examples (\d+, ){7}\d+ of the data.*no checkpoint was writ"
    ):
        fit(tuner, make_data(), Poison(1))
    assert torch.isfinite(tuner.model.wte.weight).all()


@pytest.mark.parametrize(
    ("total", "states", "peak", "batch_size", "message"),
    [
        (10e9, 4e9, 9e9, 8, r"9.0 of 10.0 GB were in use, .* 4.0 GB; the same optimizer step .* data.batch_size=4 "
                            "trainer.accumulate_grad_batches=4,"),
        (10e9, 4e9, 40e9, 8, "data.batch_size=1 trainer.accumulate_grad_batches=16,"),
        (10e9, 4e9, 9e9, 1, "data.batch_size is 1: lower data.max_length"),
        (10e9, 9.5e9, 9.6e9, 8, "a smaller batch cannot help: take a smaller model, or adapter=lora"),
    ],
)  # fmt: skip
def test_the_advice_says_by_how_much(total: float, states: float, peak: float, batch_size: int, message: str) -> None:
    assert re.search(message, advice(int(total), int(states), int(peak), batch_size, 2))


def test_memory_that_the_system_refuses_is_explained(make_tuner: Callable) -> None:
    """A real refusal: more than any machine has."""
    with pytest.raises(TrainingError, match=r"out of memory: \d+\.\d of .*data.batch_size=4"):  # noqa: SIM117
        with explained_memory(make_tuner(), PeakMemory("cpu"), 8, 1):
            torch.empty(2**62, dtype=torch.uint8)


def test_a_data_file_that_changes_during_a_run(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    """The run goes on with the tokens it has stored; a later start sees other data, which a resume refuses."""
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


def test_other_errors_stay_what_they_are(make_tuner: Callable) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained_memory(make_tuner(), PeakMemory("cpu"), 8, 1):
        raise RuntimeError("shapes do not fit")


def test_a_lost_connection_is_the_other_processes_fault_and_said_so() -> None:
    closed = RuntimeError(
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nException raised"
    )
    told = r"another process of this job has ended.*ckpt_path=last .*pair\.cc:547"
    with pytest.raises(TrainingError, match=told), explained_peers(2):
        raise closed
    for world_size, error in ((1, closed), (2, RuntimeError("shape mismatch"))):
        with pytest.raises(RuntimeError) as caught, explained_peers(world_size):
            raise error
        assert caught.value is error
