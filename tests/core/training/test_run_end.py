"""The end of a run: loggers of every kind, limits of no batch, and failures after the training is paid for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from instruct_lit.core.training import checkpoints, run
from instruct_lit.core.training.checkpoints import DurableIO, find_checkpoint, previous_of, read_checkpoint
from instruct_lit.core.training.run import Run, RunHook
from instruct_lit.errors import CheckpointError
from tests.core.training.test_run import Parts, parts, settings  # noqa: F401

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Checkpoint directory .* exists.*", "ignore:.*does not have many workers.*"
)
Make = Callable[..., Parts]


def small(folder: Path, **values: Any) -> Any:
    return settings(folder, **{"evaluate_base": False, "n_test_responses": 2, **values})


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("kinds", [("csv",), ("csv", "tensorboard")])
def test_loggers_of_every_kind_get_hyperparameters_and_metrics(
    kinds: tuple[str, ...],
    parts: Make,
    tmp_path: Path,
) -> None:
    classes = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    own = parts(max_steps=2)
    make = own.trainer

    def with_loggers(callbacks: Any) -> Trainer:
        trainer = make(callbacks)
        trainer.loggers = [classes[kind](tmp_path, name=kind, version="") for kind in kinds]
        return trainer

    own.trainer = with_loggers  # type: ignore[method-assign]
    Run(own, small(tmp_path, hyperparameters={"optimizer.lr": "0.1"}))()
    assert "optimizer.lr: '0.1'" in (tmp_path / "csv" / "hparams.yaml").read_text()
    header, *rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert "test/exact_match" in header.split(",") and len(rows) >= 2
    assert ("tensorboard" in kinds) == any((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_limit_of_no_batch_leaves_that_split_out(split: str, parts: Make, tmp_path: Path) -> None:
    Run(parts(max_steps=2, **{f"limit_{split}_batches": 0}), small(tmp_path))()
    metrics = metrics_of(tmp_path)
    assert {f"{name}/loss" for name in ("val", "test") if f"{name}/loss" in metrics} == {"val/loss", "test/loss"} - {
        f"{split}/loss"
    }
    assert metrics["n_steps"] == 2 and (tmp_path / "bundle" / "model.safetensors").is_file()


def test_what_fails_at_the_end_leaves_the_rest_and_names_it(
    parts: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Page(RunHook):
        ended = False

        def on_tested(self, run: Run) -> None:
            raise RuntimeError("the first failure")

        def on_end(self, run: Run) -> None:
            self.ended = True

    own, page = parts(max_steps=2), Page()

    def no_bundle(run: Run) -> None:
        raise OSError(28, "No space left on device")

    own.save_bundle = no_bundle  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the first failure"):
        Run(own, small(tmp_path), [page])()
    assert page.ended and metrics_of(tmp_path)["test/loss"] > 0
    best = tmp_path / "checkpoints" / "best.ckpt"
    kept = f"kept: {tmp_path / 'metrics.json'}, {tmp_path / 'responses.jsonl'}, {best}; to test the weights, add "
    assert kept + f"fit=false ckpt_path={best}" in capsys.readouterr().err


def test_answers_that_fail_leave_metrics_and_weights(
    parts: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise ValueError("no answer")

    monkeypatch.setattr(run, "answer_split", refuse)
    with pytest.raises(ValueError, match="no answer"):
        Run(parts(max_steps=2), small(tmp_path))()
    assert metrics_of(tmp_path)["n_steps"] == 2 and metrics_of(tmp_path)["val/loss"] > 0
    assert "best.ckpt; to test the weights, add fit=false ckpt_path=" in capsys.readouterr().err


def test_a_disk_without_hard_links_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(checkpoints.os, "link", refuse)
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        DurableIO().save_checkpoint({"state_dict": {}, "optimizer_states": [], "global_step": step}, path)
    assert read_checkpoint(path)["global_step"] == 3 and read_checkpoint(previous_of(path))["global_step"] == 2


# Each changes a whole checkpoint so that it cannot be resumed.
MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "weights alone": (lambda c: c.pop("optimizer_states"), "optimizer_states missing, empty or of another type"),
    "no identity": (lambda c: c.pop("identity"), "identity missing, empty"),
    "no loops": (lambda c: c.pop("loops"), "loops missing, empty"),
    "a step of text": (lambda c: c.update(global_step="two"), "global_step missing, empty or of another type"),
    "callbacks of a list": (lambda c: c.update(callbacks=[]), "callbacks missing, empty or of another type"),
    "no callback state": (lambda c: c.update(callbacks={}), "callbacks missing, empty"),
    "other callbacks": (lambda c: c["callbacks"].pop("History"), "callbacks.History missing, empty"),
    "a history without rows": (lambda c: c["callbacks"]["History"].pop("n_rows"), r"malformed \(KeyError: 'n_rows'\)"),
    "loops without a fit": (lambda c: c.update(loops={"validate_loop": {}}), "malformed"),
    "no optimizer": (lambda c: c.update(optimizer_states=[]), "optimizer_states missing, empty"),
    "an optimizer of text": (lambda c: c.update(optimizer_states=["adam"]), "malformed"),
    "moments of nothing": (lambda c: c["optimizer_states"][0].pop("state"), "malformed"),
    "no schedule": (lambda c: c.update(lr_schedulers=[]), "lr_schedulers missing, empty"),
    "no random state": (lambda c: c.update(random_states=[]), "random_states missing, empty"),
    "half a random state": (lambda c: c["random_states"][0].pop("numpy"), "malformed"),
    "weights of text": (lambda c: c.update(state_dict="none"), "no state_dict in it"),
    "other weights": (lambda c: c["state_dict"].popitem(), "malformed"),
}


def test_malformed_checkpoints_are_refused_with_place_and_remedy(
    parts: Make,
    tmp_path: Path,
) -> None:
    import torch

    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0))()
    path = tmp_path / "checkpoints" / "last.ckpt"
    previous_of(path).unlink(missing_ok=True)
    for name, (spoil, message) in MALFORMED.items():
        spoilt = tmp_path / "spoilt.ckpt"
        content = torch.load(path)
        spoil(content)
        torch.save(content, spoilt)
        with pytest.raises(CheckpointError, match=message) as caught:
            Run(parts(max_steps=4), small(tmp_path, ckpt_path=str(spoilt), n_test_responses=0))()
        assert str(spoilt) in str(caught.value), name


def test_weights_alone_are_tested_but_not_resumed(parts: Make, tmp_path: Path) -> None:
    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0))()
    best = tmp_path / "checkpoints" / "weights.ckpt"
    content = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    DurableIO().save_checkpoint({"state_dict": content["state_dict"], "global_step": 2}, best)
    assert find_checkpoint(str(best), tmp_path) == best
    with pytest.raises(CheckpointError, match=r"give the checkpoints/last.ckpt of a run \(one with weights alone is"):
        find_checkpoint(str(best), tmp_path, resumes=True)
    Run(parts(), small(tmp_path, fit=False, ckpt_path=str(best), n_test_responses=0))()
