"""The history of a run, in its file and over a resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.core.training.early_stopping import ValidateAtEnd
from instruct_lit.core.training.history import History
from instruct_lit.core.training.optimizer import schedule
from instruct_lit.resume.last_checkpoint import LastCheckpoint


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_training_and_validation(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path
) -> None:
    history = History(tmp_path / "history.jsonl")
    tuner = make_tuner()
    tuner.make_scheduler = lambda optimizer, n: schedule(optimizer, n, 2, "linear")
    data = make_data()
    fit(tuner, data, history, limit_val_batches=1.0, max_epochs=2)
    found = rows(history.path)
    rates = dict(enumerate((0.1 / 3, 0.2 / 3, 0.1, 0.075, 0.05, 0.025), start=1))
    assert {row["step"]: row["lr"] for row in found} == pytest.approx(rates), "the rate that each step was made with"
    assert [row["step"] for row in found if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    losses = {row["step"]: row["val/loss"] for row in found if "val/loss" in row}
    assert list(losses) == [3, 6]
    assert history.best_step == min(losses, key=losses.__getitem__) and history.best_loss == min(losses.values())
    assert found[-1]["tokens"] == tuner.tokens_seen > 0


@pytest.mark.parametrize(
    "stop_at", [pytest.param(3, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)]
)
def test_trap_15_a_resumed_run_is_the_run_that_would_have_been(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path, stop_at: int
) -> None:
    """Ten steps = some + resume + the rest, also in the middle of an epoch (4 steps each)."""

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    class Recorded(History):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.example_ids.tolist())

    def saving(folder: Path) -> LastCheckpoint:
        return LastCheckpoint(str(folder), every_n_steps=1)

    seen: list[list[int]] = []
    checkpoints = tmp_path / "part" / "checkpoints"
    options = {"max_epochs": 3, "limit_val_batches": 1.0, "val_check_interval": 2, "enable_checkpointing": True}
    whole = Recorded(tmp_path / "whole.jsonl")
    tuner = make_tuner(make_optimizer=adamw)
    fit(tuner, make_data(n_train=32), whole, saving(tmp_path / "w"), max_steps=10, **options)
    batches_whole, seen = seen, []

    checkpoints.mkdir(parents=True)
    save = saving(checkpoints)
    fit(
        make_tuner(make_optimizer=adamw),
        make_data(n_train=32),
        Recorded(checkpoints.parent / "history.jsonl"),
        save,
        max_steps=stop_at,
        **options,
    )
    rest_dir = tmp_path / "rest"
    rest_dir.mkdir()
    rest = Recorded(rest_dir / "history.jsonl")
    resumed = make_tuner(make_optimizer=adamw)
    fit(
        resumed,
        make_data(n_train=32),
        rest,
        saving(tmp_path / "r"),
        max_steps=10,
        ckpt_path=checkpoints / "last.ckpt",
        **options,
    )

    assert seen == batches_whole
    keys = ("step", "tokens", "train/loss", "lr", "val/loss")
    picked = [[{k: row[k] for k in keys if k in row} for row in rows(path)] for path in (whole.path, rest.path)]
    assert len(picked[1]) == len(picked[0])
    for found, wanted in zip(picked[1], picked[0], strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)
    for p, q in zip(resumed.model.parameters(), tuner.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert rest.best_step == whole.best_step


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({"max_steps": 5}, [4, 5]),  # in the middle of an epoch of four
        pytest.param({"max_steps": 5, "val_check_interval": 2}, [2, 4, 5], marks=pytest.mark.slow),
        ({"max_steps": 4}, [4]),  # validated once
        ({"max_epochs": 1, "val_check_interval": 3}, [3, 4]),
        pytest.param({"max_steps": 3, "accumulate_grad_batches": 2}, [2, 3], marks=pytest.mark.slow),
        pytest.param({"max_steps": 5, "check_val_every_n_epoch": 3}, [5], marks=pytest.mark.slow),
        ({"max_steps": 5, "limit_val_batches": 0}, []),
    ],
)
def test_the_last_step_is_validated_and_may_be_the_best(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path, options: dict, validated: list[int]
) -> None:
    history, save = History(tmp_path / "history.jsonl"), LastCheckpoint(str(tmp_path))
    given = {"max_epochs": 3, "limit_val_batches": 1.0, "enable_checkpointing": True, **options}
    trainer = fit(make_tuner(), make_data(n_train=32), history, ValidateAtEnd(), save, **given)
    losses = {row["step"]: row["val/loss"] for row in rows(history.path) if "val/loss" in row}
    assert list(losses) == validated
    assert history.best_step == min(losses, key=losses.__getitem__, default=0)
    saved = torch.load(save.path, weights_only=True)
    assert saved["global_step"] == trainer.global_step == options.get("max_steps", 4)
    states = [state for name, state in saved["callbacks"].items() if name.startswith("History")]
    assert states[0]["best_step"] == history.best_step, "what the validation found is in the checkpoint"


def test_a_run_that_ended_in_an_epoch_resumes_to_more_steps(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path
) -> None:
    """The validation at its end changes nothing that is trained afterwards."""
    seen: list[list[int]] = []

    class Recorded(History):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.example_ids.tolist())

    def run(name: str, max_steps: int, ckpt_path: Path | None = None) -> tuple[torch.nn.Module, list[int]]:
        tuner = make_tuner()
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        history, save = Recorded(tmp_path / name / "h.jsonl"), LastCheckpoint(str(tmp_path / name / "checkpoints"))
        options = {"max_epochs": 3, "limit_val_batches": 1.0, "enable_checkpointing": True, "max_steps": max_steps}
        fit(tuner, make_data(n_train=32), history, ValidateAtEnd(), save, ckpt_path=ckpt_path, **options)
        return tuner.model, [row["step"] for row in rows(history.path) if "val/loss" in row]

    whole, validated = run("whole", 10)
    assert validated == [4, 8, 10]
    batches, seen = seen, []
    _, validated = run("part", 6)
    assert validated == [4, 6]
    rest, validated = run("rest", 10, tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert validated == [4, 6, 8, 10] and seen == batches
    for p, q in zip(rest.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
