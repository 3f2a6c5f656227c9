"""What a resumed run uses: its own hyperparameters, and from the checkpoint only the states that training continues."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from instruct_lit.config.compose import composed
from instruct_lit.config.run_hooks import identity_of
from instruct_lit.core.training.early_stopping import EarlyStopping
from instruct_lit.core.training.history import History
from instruct_lit.core.training.optimizer import adamw, parameter_groups, schedule
from instruct_lit.errors import CheckpointError
from instruct_lit.resume.identity import check_identity
from instruct_lit.resume.last_checkpoint import LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*")


class Rates(Callback):
    """The hyperparameters that each step is made with."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.groups.append(dict(trainer.optimizers[0].param_groups[0]))


@pytest.fixture
def resumed(make_tuner: Callable, make_data: Callable, fit: Callable, tmp_path: Path) -> Callable[..., list[dict]]:
    """The hyperparameters of steps 4 to 6 with `values`, after three steps with the defaults."""

    def run(steps: int = 6, **values: Any) -> list[dict]:
        def go(
            n: int, ckpt_path: Path | None, lr=0.1, decay=0.01, betas=(0.9, 0.999), shape=("constant", 0), n_steps=6
        ):
            tuner, rates = make_tuner(), Rates()
            groups = lambda model: parameter_groups(model.named_parameters(), decay)  # noqa: E731
            tuner.make_optimizer = lambda model: adamw(groups(model), lr=lr, betas=betas)
            tuner.make_scheduler = lambda optimizer, n: schedule(optimizer, n_steps, shape[1], shape[0])
            last = LastCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=1)
            history = History(tmp_path / "history.jsonl")
            fit(
                tuner, make_data(), history, rates, last, max_steps=n, max_epochs=9, ckpt_path=ckpt_path,
                enable_checkpointing=True,
            )  # fmt: skip
            return rates.groups

        go(3, None)
        return go(steps, tmp_path / "checkpoints" / "last.ckpt", **values)

    return run


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        pytest.param({}, "lr", [0.1, 0.1, 0.1], marks=pytest.mark.slow),
        ({"lr": 0.01}, "lr", [0.01, 0.01, 0.01]),
        pytest.param({"decay": 0.5}, "weight_decay", [0.5, 0.5, 0.5], marks=pytest.mark.slow),
        ({"betas": (0.8, 0.9)}, "betas", [(0.8, 0.9)] * 3),
        pytest.param({"shape": ("linear", 0)}, "lr", [0.05, 0.1 / 3, 0.1 / 6], marks=pytest.mark.slow),
        pytest.param({"shape": ("linear", 0), "lr": 0.6}, "lr", [0.3, 0.2, 0.1], marks=pytest.mark.slow),
        ({"shape": ("linear", 0), "n_steps": 12}, "lr", [0.075, 0.1 * 8 / 12, 0.1 * 7 / 12]),
        ({"shape": ("constant", 7)}, "lr", [0.05, 0.0625, 0.075]),
    ],
)
def test_the_optimizer_has_the_values_of_this_run(
    values: dict[str, Any], name: str, expected: list[Any], resumed: Callable
) -> None:
    assert [group[name] for group in resumed(**values)] == [
        pytest.approx(value) if isinstance(value, float) else value for value in expected
    ]


def test_patience_is_that_of_this_run() -> None:
    old = EarlyStopping("val/loss", patience=2)
    old.wait_count, old.best_score = 2, torch.tensor(1.0)
    old.stopping_reason = type(old.stopping_reason).PATIENCE_EXHAUSTED
    more, less = EarlyStopping("val/loss", patience=5), EarlyStopping("val/loss", patience=1)
    more.load_state_dict(old.state_dict())
    less.load_state_dict(old.state_dict())
    assert (more.patience, more.wait_count, more.stopping_reason.name) == (5, 2, "NOT_STOPPED")
    assert (less.patience, less.stopping_reason) == (1, old.stopping_reason)


@pytest.mark.parametrize("name", ["seed", "optimizer", "best checkpoint", "adapter.alpha", "weight averaging"])
def test_what_only_the_checkpoint_can_give_is_refused(name: str) -> None:
    check_identity({"model": "m"}, {"model": "m", name: "a"})  # of a checkpoint from before
    with pytest.raises(CheckpointError, match=f"{name}: a in the checkpoint, b in this run"):
        check_identity({"model": "m", name: "a"}, {"model": "m", name: "b"})


def test_the_scale_of_an_adapter_is_that_of_the_checkpoint() -> None:
    """No weight has it, so that another one would test and train another model."""
    found = [identity_of(composed("train", ["adapter=lora", f"adapter.alpha={alpha}"])) for alpha in (32, 64)]
    assert [name for name in found[0] if found[0][name] != found[1][name]] == ["adapter.alpha"]
