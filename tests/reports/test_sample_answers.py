"""Sample answers while a model trains: one engine for the run, whose recorded steps read the current weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from textwrap import indent
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from instruct_lit.accel.decode_loop import DeviceLoop
from instruct_lit.core.generation.engine import Engine
from instruct_lit.reports import sample_answers
from instruct_lit.reports.sample_answers import SampleAnswers
from tests.accel.emulated_graphs import EmulatedGraph, emulated_cuda

__all__ = ["emulated_cuda"]


class Compared(SampleAnswers):
    """Changes the weights, and compares the answers with those of a new engine without recorded steps."""

    expected: list[str]

    def __init__(self) -> None:
        super().__init__(max_new_tokens=12)
        self.make_loops, self.expected, self.n_recorded = [partial(DeviceLoop, with_graphs=True)], [], []
        self.pool: list[EmulatedGraph] = []

    def _write(self, trainer: Trainer, pl_module: LightningModule, loggers: Any) -> None:
        torch.manual_seed(len(self.n_recorded))
        for parameter in pl_module.parameters():
            parameter.data += torch.randn_like(parameter)
        super()._write(trainer, pl_module, loggers)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        store, indices = data.examples_of("val")
        model: Any = pl_module.model
        prompts = [store[int(i)].prompt_ids for i in indices[: self.n_examples]]
        self.expected += [r.text for r in Engine(model, data.tokenizer, make_loops=()).generate(prompts, self.settings)]
        self.n_recorded.append(len(self.pool))


def test_steps_are_recorded_at_the_first_validation_alone(
    make_data: Callable, make_tuner: Callable, fit: Callable, emulated_cuda: list[EmulatedGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    texts: list[str] = []
    monkeypatch.setattr(sample_answers, "takes_text", lambda logger: True)
    monkeypatch.setattr(sample_answers, "log_text", lambda logger, tag, text, step: texts.append(text))
    answers = Compared()
    answers.pool = emulated_cuda
    tuner, data = make_tuner(lr=0.0), make_data()
    trainer = fit(tuner, data, answers, limit_val_batches=1, max_epochs=3, logger=True)
    trainer.validate(tuner, data)
    assert answers.n_recorded[0] > 0 and answers.n_recorded == answers.n_recorded[:1] * 4
    assert len(answers.expected) == 12 and len(set(answers.expected)) > 8
    for text, expected in zip(texts, answers.expected, strict=True):
        assert text.endswith("**Answer**\n\n" + indent(expected, "    "))
