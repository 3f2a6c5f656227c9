"""Small runs of the LightningModule through a real Trainer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from instruct_lit.data.datamodule import InstructionData
from instruct_lit.data.demo import DemoSource
from instruct_lit.data.template import Template
from instruct_lit.data.tokenizer import GPT2Tokenizer
from instruct_lit.model.gpt import GPT, GPTConfig
from instruct_lit.training.module import InstructionTuner
from instruct_lit.training.optimizer import parameter_groups, schedule

TEMPLATE = Template("short", "Do: {{ instruction }} {{ input }}\nAnswer: {{ response }}")


@pytest.fixture(scope="session")
def base() -> GPT:
    model = GPT(GPTConfig(context_length=64, d_model=16, n_layers=2, n_heads=2))
    model.init_weights(seed=0)
    return model


@pytest.fixture
def make_data(tmp_path: Path, tokenizer: GPT2Tokenizer) -> Callable[..., InstructionData]:
    def make(n_train: int = 24, **options: Any) -> InstructionData:
        split = {"train": n_train, "val": 9, "test": 7}
        settings = {"max_length": 64, "split": split, "seed": 3, "batch_size": 8, **options}
        template = settings.pop("template", TEMPLATE)
        return InstructionData(DemoSource(n_train + 16), template, tokenizer, tmp_path, **settings)

    return make


@pytest.fixture
def make_tuner(base: GPT) -> Callable[..., InstructionTuner]:
    def make(lr: float = 0.1, make_optimizer: Any = None) -> InstructionTuner:
        sgd = lambda model: torch.optim.SGD(parameter_groups(model.named_parameters(), 0.0), lr=lr)  # noqa: E731
        constant = lambda optimizer, n: schedule(optimizer, n, 0, "constant")  # noqa: E731
        return InstructionTuner(copy.deepcopy(base), make_optimizer or sgd, constant)

    return make


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    def run(
        tuner: InstructionTuner, data: InstructionData, *callbacks: Callback, ckpt_path: Any = None, **options: Any
    ) -> Trainer:
        settings = {
            "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0, "max_epochs": 1,
            "use_distributed_sampler": False, "log_every_n_steps": 1, "default_root_dir": tmp_path, **options,
        }  # fmt: skip
        trainer = Trainer(callbacks=list(callbacks), **settings)  # type: ignore[arg-type]
        trainer.fit(tuner, data, ckpt_path=ckpt_path)
        return trainer

    return run
