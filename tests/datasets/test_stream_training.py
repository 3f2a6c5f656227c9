"""A streamed training through the Trainer: resumed in the middle of an epoch and at its end, it is the one that would
have been."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.split_groups import same_prompt
from instruct_lit.datasets.stream_datamodule import StreamedData
from instruct_lit.resume.last_checkpoint import LastCheckpoint
from tests.fixtures.data import settings

TEMPLATE = Template("short", "Do: {{ instruction }}\nAnswer: {{ response }}")


class Seen(Callback):
    def __init__(self) -> None:
        self.steps: list[tuple[list[int], float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append((batch.example_ids.tolist(), float(trainer.callback_metrics.get("train/loss", 0))))


@pytest.mark.parametrize(
    "n_steps", [pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow), 7]
)  # an epoch has 5 batches
def test_trap_15_a_resumed_stream_is_the_run_that_would_have_been(
    tmp_path: Path, tokenizer: GPT2Tokenizer, make_tuner: Callable, fit: Callable, n_steps: int
) -> None:
    run = runs(tmp_path, tokenizer, make_tuner, fit)
    whole, first = run(12), run(n_steps)
    rest = run(12, tmp_path / f"{n_steps}.ckpt")
    assert [batch for batch, _ in first + rest] == [batch for batch, _ in whole]
    assert [loss for _, loss in first + rest] == pytest.approx([loss for _, loss in whole], rel=1e-6)
    epochs = [sorted(i for batch, _ in whole[n : n + 5] for i in batch) for n in (0, 5)]
    assert epochs[0] == epochs[1] and len(set(epochs[0])) == 19


@pytest.mark.parametrize("n_accumulated", [1, 2])
def test_trap_15_a_stream_killed_between_two_epochs(
    tmp_path: Path, tokenizer: GPT2Tokenizer, make_tuner: Callable, fit: Callable, n_accumulated: int
) -> None:
    """Saved in the last step of an epoch, before any validation: the window of its gradients ends there."""
    run = runs(tmp_path, tokenizer, make_tuner, fit)
    n_steps = -(-5 // n_accumulated)
    options = {"accumulate_grad_batches": n_accumulated, "val_check_interval": 4, "enable_checkpointing": True}
    first = run(n_steps, last=LastCheckpoint(str(tmp_path)), **options)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "killed.ckpt")
    whole = run(2 * n_steps + 1, last=LastCheckpoint(str(tmp_path)), **options)
    rest = run(2 * n_steps + 1, tmp_path / "killed.ckpt", last=LastCheckpoint(str(tmp_path)), **options)
    assert [batch for batch, _ in first + rest] == [batch for batch, _ in whole]
    assert rest[-1] == whole[-1]


def runs(tmp_path: Path, tokenizer: GPT2Tokenizer, make_tuner: Callable, fit: Callable) -> Callable[..., list[Any]]:
    """Trains on a stream of 19 examples; a run gives each batch with its loss."""
    for shard in range(3):
        records = [{"instruction": f"say {shard}{n}", "output": f"{shard} {n}"} for n in range(8)]
        (tmp_path / f"part-{shard}.jsonl").write_text("\n".join(map(json.dumps, records)))

    def run(
        max_steps: int, ckpt_path: Path | None = None, last: Callback | None = None, **options: Any
    ) -> list[tuple[list[int], float]]:
        given = settings(max_length=64, split={"val": 3, "test": 2}, seed=3, batch_size=4, groups=same_prompt)
        data = StreamedData(
            FileSource([str(tmp_path / f"part-{shard}.jsonl") for shard in range(3)]), TEMPLATE, tokenizer, tmp_path / "cache",
            shuffle_buffer=5, **given,
        )  # fmt: skip
        seen = Seen()
        trainer = fit(make_tuner(), data, seen, *([last] if last else []), max_steps=max_steps, max_epochs=-1,
                      ckpt_path=ckpt_path, **{"limit_val_batches": 1, "val_check_interval": 2, **options})  # fmt: skip
        trainer.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        assert data.counts["n_read"] > 0 and "val/loss" in trainer.callback_metrics
        return seen.steps

    return run
