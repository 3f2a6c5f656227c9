"""A stream trained on by two processes: every example once an epoch, the steps of one process, and an exact resume."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.module import InstructionTuner
from instruct_lit.core.training.optimizer import parameter_groups, schedule
from instruct_lit.datasets.split_groups import same_prompt
from instruct_lit.datasets.stream_datamodule import StreamedData
from tests.fixtures.data import settings

N_TRAIN, N_STEPS, N_IN_EPOCH = 19, 12, 5  # steps of an epoch: batches of 4 over all ranks


class Steps(Callback):
    """Writes what its rank was trained on, step by step, and where the run stopped."""

    def __init__(self, name: Path) -> None:
        self.name = name
        self.steps: list[tuple[list[int], float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ids = [i for i in batch.example_ids.tolist() if i >= 0]
        self.steps.append((ids, float(trainer.callback_metrics["train/loss"])))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.name.with_suffix(".ckpt"))
        Path(f"{self.name}-{trainer.global_rank}.json").write_text(json.dumps(self.steps))


def fit(folder: Path, name: str, n_ranks: int, max_steps: int, start: str | None = None) -> None:
    model = GPT(GPTConfig(context_length=64, d_model=16, n_layers=1, n_heads=2))
    model.init_weights(0)
    tuner = InstructionTuner(
        model,
        lambda m: torch.optim.SGD(parameter_groups(m.named_parameters(), 0.0), lr=0.1),
        lambda optimizer, n: schedule(optimizer, n, 0, "constant"),
    )
    data = StreamedData(
        FileSource(str(folder / "set")), Template("short", "Do: {{ instruction }}\nAnswer: {{ response }}"), GPT2Tokenizer(),
        folder / "cache", shuffle_buffer=5, **settings(max_length=64, split={"val": 3, "test": 2}, seed=3,
        batch_size=4 // n_ranks, groups=same_prompt, layout="packed"),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=n_ranks, strategy="ddp_fork" if n_ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, max_steps=max_steps, max_epochs=-1, limit_val_batches=1, val_check_interval=3,
        log_every_n_steps=1, callbacks=[Steps(folder / name)], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(tuner, data, ckpt_path=folder / f"{start}.ckpt" if start else None)


def runs(folder: Path) -> None:
    """In a process that may fork, since it has not computed anything itself: two ranks, in one go and with a stop."""
    torch.set_num_threads(1)
    fit(folder, "whole", 2, N_STEPS)
    fit(folder, "first", 2, 3)
    fit(folder, "rest", 2, N_STEPS, "first")
    fit(folder, "one", 1, N_STEPS)
    fit(folder, "rest-of-one", 1, N_STEPS, "first")


@pytest.mark.slow
def test_two_ranks_share_a_stream_without_repetition_or_loss_and_resume_exactly(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for shard in range(3):
        records = [{"instruction": f"say {shard}{n}", "output": f"{shard} {n}"} for n in range(8)]
        (tmp_path / "set" / f"part-{shard}.jsonl").write_text("\n".join(map(json.dumps, records)))
    process = multiprocessing.get_context("forkserver").Process(target=runs, args=(tmp_path,))
    process.start()
    process.join(240)
    assert process.exitcode == 0

    def steps(name: str, rank: int) -> list[tuple[list[int], float]]:
        return json.loads((tmp_path / f"{name}-{rank}.json").read_text())

    def joined(name: str) -> list[tuple[list[int], float]]:
        """The steps of both ranks: the ids of all, and the loss, which both must have."""
        both = list(zip(steps(name, 0), steps(name, 1), strict=True))
        assert all(loss == other for (_, loss), (_, other) in both)
        assert not any(set(ids) & set(others) for (ids, _), (others, _) in both)
        return [(sorted(ids + others), loss) for (ids, loss), (others, _) in both]

    def same(found: list[tuple[list[int], float]], expected: list[tuple[list[int], float]]) -> None:
        assert [sorted(ids) for ids, _ in found] == [sorted(ids) for ids, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)

    whole = joined("whole")
    for epoch in (whole[:N_IN_EPOCH], whole[N_IN_EPOCH : 2 * N_IN_EPOCH]):
        seen = [i for ids, _ in epoch for i in ids]
        assert len(seen) == len(set(seen)) == N_TRAIN
    same(joined("first") + joined("rest"), whole)
    same(steps("one", 0), whole)
    same(steps("rest-of-one", 0), whole[3:])  # also with another number of ranks
