"""Two ranks with batches of 4 are one with batches of 8: parameters after the steps, metrics, every example once."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.core.training.optimizer import parameter_groups, schedule
from instruct_lit.datasets.demo import DemoSource
from tests.fixtures.data import settings


class Report(Callback):
    """Writes what a rank has seen and come to."""

    def __init__(self, path: str) -> None:
        self.path, self.seen = path, list[int]()

    def on_validation_batch_start(
        self, trainer: Trainer, tuner: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.seen += batch.example_ids.tolist()

    def on_fit_end(self, trainer: Trainer, tuner: LightningModule) -> None:
        assert isinstance(tuner, InstructionTuner)
        norms = {n: [p.double().sum().item(), p.double().norm().item()] for n, p in tuner.model.named_parameters()}
        metrics = {
            k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/") or k == "train/loss"
        }
        found = {"parameters": norms, "seen": self.seen, "tokens": tuner.tokens_seen, "steps": trainer.global_step}
        Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps({**found, "metrics": metrics}))


def fit(folder: Path, layout: str, n_ranks: int) -> None:
    model = GPT(GPTConfig(context_length=64, d_model=16, n_layers=1, n_heads=2))
    model.init_weights(0)
    template = Template("t", "{{ instruction }} {{ input }}: {{ response }}")
    data = InstructionData(
        DemoSource(30), template, GPT2Tokenizer(), folder, **settings(max_length=64, split={"train": 19, "val": 7, "test": 4},
        seed=1, batch_size=8 // n_ranks, eval_batch_size=2, layout=layout, shared_prefix=layout == "packed"),
    )  # fmt: skip
    tuner = InstructionTuner(
        model,
        lambda model: torch.optim.SGD(parameter_groups(model.named_parameters(), 0.0), lr=0.1),
        lambda optimizer, n: schedule(optimizer, n, 0, "constant"),
    )
    Trainer(
        accelerator="cpu", devices=n_ranks, strategy="ddp_fork" if n_ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, max_epochs=2, check_val_every_n_epoch=2, log_every_n_steps=1,
        callbacks=[Report(f"{folder}/{n_ranks}")],
    ).fit(tuner, data)  # fmt: skip


def fits(folder: Path, layout: str) -> None:
    """In a process that may fork, since it has not computed anything itself."""
    torch.set_num_threads(1)
    for n_ranks in (2, 1):
        fit(folder, layout, n_ranks)


@pytest.mark.parametrize("layout", [pytest.param("padded", marks=pytest.mark.slow), "packed"])
def test_trap_7_and_14_two_ranks_are_one(tmp_path: Path, layout: str) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=fits, args=(tmp_path, layout))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert sorted(first["seen"] + second["seen"]) == sorted(one["seen"]) and len(set(one["seen"])) == 7
    assert first["tokens"] == one["tokens"] and first["steps"] == one["steps"] == 6
    for name, (total, norm) in one["parameters"].items():
        assert first["parameters"][name] == pytest.approx([total, norm], rel=1e-5, abs=1e-5), name
        assert second["parameters"][name] == first["parameters"][name]
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
