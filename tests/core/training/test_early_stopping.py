"""What counts against patience, and which weights are the best."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch import callbacks as of_lightning

from instruct_lit.core.training.checkpoints import Checkpoint
from instruct_lit.core.training.early_stopping import EarlyStopping, ValidateAtEnd
from instruct_lit.core.training.history import History
from instruct_lit.resume.last_checkpoint import LastCheckpoint

VALIDATED = {"limit_val_batches": 1.0, "val_check_interval": 0.34}  # after each of three batches


@pytest.mark.parametrize(("kind", "n_steps"), [(EarlyStopping, 4), (of_lightning.EarlyStopping, 0)])
def test_validations_of_unchanged_weights_do_not_count_against_patience(
    kind: type, n_steps: int, make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    """With more micro-batches to a step than an epoch has, a step is made at the end of each epoch."""
    stopper = kind("val/loss", patience=1, check_on_train_epoch_end=False)
    trainer = fit(
        make_tuner(), make_data(), stopper, ValidateAtEnd(), accumulate_grad_batches=100, max_epochs=4, **VALIDATED
    )
    assert trainer.global_step == n_steps


def test_patience_runs_out_on_changed_weights(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    stopper = EarlyStopping("val/loss", patience=2, min_delta=99, check_on_train_epoch_end=False)
    trainer = fit(make_tuner(), make_data(), stopper, max_epochs=4, **VALIDATED)
    assert (trainer.global_step, stopper.checked_step) == (3, 3)
    again = EarlyStopping("val/loss")
    again.load_state_dict(stopper.state_dict())
    assert (again.checked_step, again.wait_count) == (3, 2)


def test_patience_0_is_no_run_without_a_step(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path
) -> None:
    stopper = EarlyStopping("val/loss", patience=0, min_delta=99, check_on_train_epoch_end=False)
    trainer = fit(
        make_tuner(), make_data(), stopper, LastCheckpoint(str(tmp_path)), enable_checkpointing=True, **VALIDATED
    )
    assert trainer.global_step == 2


@pytest.mark.parametrize("interval", [2, 0.34, 3])
def test_trap_15_a_finished_run_that_is_started_again_does_nothing(
    interval: float, make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path
) -> None:
    """Also where the interval of validations does not divide the epoch of three batches."""
    steps, losses = [], []
    for attempt in range(3):
        last = LastCheckpoint(str(tmp_path / "run" / "checkpoints"))
        tuner = make_tuner()
        trainer = fit(
            tuner, make_data(), History(tmp_path / f"{attempt}.jsonl"), ValidateAtEnd(), last,
            max_epochs=2, limit_val_batches=1.0, val_check_interval=interval, enable_checkpointing=True,
            ckpt_path=last.path if attempt else None,
        )  # fmt: skip
        steps.append(trainer.global_step)
        losses.append([p.detach().sum().item() for p in tuner.parameters()])
    assert steps == [6, 6, 6] and losses[0] == losses[1] == losses[2]


class Losses(Callback):
    """The validation loss and weights after each step."""

    def __init__(self) -> None:
        self.of: dict[int, float] = {}
        self.weights: dict[int, torch.Tensor] = {}

    def on_validation_end(self, trainer, pl_module) -> None:
        self.of[trainer.global_step] = float(trainer.callback_metrics["val/loss"])
        self.weights[trainer.global_step] = pl_module.model.wte.weight.detach().clone()


def test_the_best_of_several_checkpoints_is_the_best(
    make_data: Callable, make_tuner: Callable, fit: Callable, tmp_path: Path
) -> None:
    kept = Checkpoint(
        dirpath=tmp_path / "kept", filename="best", monitor="val/loss", mode="max", save_top_k=3, save_weights_only=True,
        enable_version_counter=False, save_on_train_epoch_end=False,
    )  # fmt: skip
    losses = Losses()
    fit(make_tuner(), make_data(), losses, kept, max_epochs=3, enable_checkpointing=True, **VALIDATED)
    ranked = sorted(losses.of, key=losses.of.__getitem__, reverse=True)
    assert ranked[0] != max(losses.of)  # the last is not the best
    assert Path(kept.best_model_path).name == f"best-step={ranked[0]}.ckpt"
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.ckpt")) == sorted(
        f"best-step={n}.ckpt" for n in ranked[:3]
    )
    saved = torch.load(kept.best_model_path, weights_only=True)
    assert saved["global_step"] == ranked[0]
    torch.testing.assert_close(saved["state_dict"]["model.wte.weight"], losses.weights[ranked[0]])
