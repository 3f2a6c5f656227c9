"""What a run resumes from, and what it refuses to resume from."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from instruct_lit.core.training.checkpoints import read_checkpoint
from instruct_lit.core.training.run import Run
from instruct_lit.errors import CheckpointError
from instruct_lit.resume import checkpoint_files
from instruct_lit.resume.checkpoint_files import DurableIO, find_checkpoint, previous_of
from instruct_lit.resume.resumption import Resumption
from tests.core.training.test_run import Parts, parts  # noqa: F401
from tests.core.training.test_run_end import small

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*")
Make = Callable[..., Parts]


def resumption(ckpt_path: str | None = None) -> Resumption:
    return Resumption(ckpt_path, own_only=False, identity={})


def test_a_disk_without_hard_links_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
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

    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0), [resumption()])()
    path = tmp_path / "checkpoints" / "last.ckpt"
    previous_of(path).unlink(missing_ok=True)
    for name, (spoil, message) in MALFORMED.items():
        spoilt = tmp_path / "spoilt.ckpt"
        content = torch.load(path)
        spoil(content)
        torch.save(content, spoilt)
        with pytest.raises(CheckpointError, match=message) as caught:
            Run(parts(max_steps=4), small(tmp_path, n_test_responses=0), [resumption(str(spoilt))])()
        assert str(spoilt) in str(caught.value), name


def test_rows_that_a_later_run_in_the_folder_has_removed_are_missed_by_name(parts: Make, tmp_path: Path) -> None:
    Run(parts(max_steps=3), small(tmp_path, n_test_responses=0), [resumption()])()
    history, last = tmp_path / "history.jsonl", tmp_path / "checkpoints" / "last.ckpt"
    rows = history.read_text().splitlines(keepends=True)
    n_rows = read_checkpoint(last)["callbacks"]["History"]["n_rows"]
    history.write_text(rows[0])  # of a run that began anew in this folder and was killed
    missing = f"{history}: has 1 of the {n_rows} rows up to the checkpoint; a later run began in this folder"
    with pytest.warns(UserWarning, match=missing):
        Run(parts(max_steps=4), small(tmp_path, n_test_responses=0), [resumption(str(last))])()


def test_weights_alone_are_tested_but_not_resumed(parts: Make, tmp_path: Path) -> None:
    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0), [resumption()])()
    best = tmp_path / "checkpoints" / "weights.ckpt"
    content = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    DurableIO().save_checkpoint({"state_dict": content["state_dict"], "global_step": 2}, best)
    assert find_checkpoint(str(best), tmp_path) == best
    with pytest.raises(CheckpointError, match=r"give the checkpoints/last.ckpt of a run \(one with weights alone is"):
        find_checkpoint(str(best), tmp_path, resumes=True)
    Run(parts(), small(tmp_path, fit=False, n_test_responses=0), [resumption(str(best))])()


@pytest.mark.parametrize("name", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_weights_tested_with_another_template_than_they_were_trained_with(
    name: str, parts: Make, tmp_path: Path
) -> None:
    """The best weights have no identity; that of the last checkpoint beside them is theirs."""
    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0), [resumption()])()
    path, tested = tmp_path / "checkpoints" / f"{name}.ckpt", small(tmp_path, fit=False, n_test_responses=0)
    if name == "best":
        DurableIO().save_checkpoint({"state_dict": read_checkpoint(path)["state_dict"], "global_step": 2}, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ckpt_path")
        Run(parts(), tested, [resumption(str(path))])()
    other = Resumption(str(path), own_only=False, identity={"template": "other-0123"})
    with pytest.warns(UserWarning, match=rf"{name}.ckpt: template \S+ of its run, other-0123 here; give the values of"):
        Run(parts(), tested, [other])()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "0123"}, "split 0123 of its run, .*; examples that it was trained on may be in the test set; give"),
        pytest.param(
            {"data": "fixture-0123"},
            "data fixture-0123 of its run, .*; examples that it was trained on may be in the",
            marks=pytest.mark.slow,
        ),
        ({"data": "another-0123", "split": "0123"}, None),  # other data are tested on purpose
        pytest.param({"data.seed": "7"}, None, marks=pytest.mark.slow),  # which has left the split as it was
        (
            {"model": "GPTConfig(n_heads=1)"},
            r"model GPTConfig\(n_heads=1\) of its run, GPTConfig.* here; give the values",
        ),
        pytest.param(
            {"adapter.alpha": "4"},
            "adapter.alpha 4 of its run, 32 here; give the values of its run's config.yaml",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_tested_on_another_split_of_their_data(
    change: dict[str, str], message: str | None, parts: Make, tmp_path: Path
) -> None:
    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0), [resumption()])()
    path, tested = tmp_path / "checkpoints" / "last.ckpt", small(tmp_path, fit=False, n_test_responses=0)
    checkpoint = read_checkpoint(path)
    name = checkpoint["identity"]["data"].rpartition("-")[0]
    change = {key: value.replace("fixture", name) for key, value in change.items()}
    checkpoint["identity"] |= change
    DurableIO().save_checkpoint(checkpoint, path)
    again = Resumption(str(path), own_only=False, identity={"adapter.alpha": "32"})
    if message is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="ckpt_path")
            Run(parts(), tested, [again])()
    else:
        with pytest.warns(UserWarning, match=f"ckpt_path=.*last.ckpt: {message.replace('fixture', name)}"):
            Run(parts(), tested, [again])()


def test_whole_weights_are_tested_whatever_is_frozen(parts: Make, tmp_path: Path) -> None:
    """The weights that are not trained here are read from the checkpoint too, so that none differ from its run's."""
    Run(parts(max_steps=2), small(tmp_path, n_test_responses=0), [resumption()])()
    path, own = tmp_path / "checkpoints" / "last.ckpt", parts()
    own.adapt = lambda model: model.blocks.requires_grad_(False)  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ckpt_path")
        run = Run(own, small(tmp_path, fit=False, n_test_responses=0), [resumption(str(path))])
        run()
    saved = read_checkpoint(path)["state_dict"]
    assert all(value.equal(saved[f"model.{name}"]) for name, value in run.model.state_dict().items())


class Steps(Logger):
    """Remembers the steps at which losses were logged."""

    name = version = "steps"

    def __init__(self) -> None:
        super().__init__()
        self.of_validation: list[int | None] = []
        self.of_training: list[int | None] = []

    def log_hyperparams(self, *arguments: Any, **more: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "val/loss" in metrics:
            self.of_validation.append(step)
        if "train/loss" in metrics:
            self.of_training.append(step)


def test_loggers_have_the_base_once(parts: Make, tmp_path: Path) -> None:
    """A resumed run measures it again for its metrics; another row of step 0 would draw the curve back to the left."""
    first, second = Steps(), Steps()
    for logger, max_steps, given in ((first, 2, None), (second, 4, str(tmp_path))):
        run = Run(
            parts(max_steps=max_steps, val_check_interval=1, logger=logger),
            small(tmp_path, n_test_responses=0, evaluate_base=True),
            [resumption(given)],
        )
        run()
        assert run.metrics["base/val/loss"] > run.metrics["val/loss"] and run.trainer.loggers == [logger]
    assert first.of_validation[:3] == [0, 0, 1] and second.of_validation[:2] == [2, 3]


@pytest.mark.parametrize("n_before", [3, 4])
def test_loggers_count_the_steps_of_a_resumed_run_on(n_before: int, parts: Make, tmp_path: Path) -> None:
    """A checkpoint of a validation at the end, within an epoch, left all later rows one step behind."""
    logged: list[Steps] = []
    for folder, max_steps in (("whole", 7), ("parts", n_before), ("parts", 7)):
        logged.append(Steps())
        own = parts(max_steps=max_steps, min_steps=max_steps, val_check_interval=2, logger=logged[-1])
        own.folder = tmp_path / folder
        resumes = str(own.folder) if own.folder.is_dir() else None
        own.folder.mkdir(exist_ok=True)
        Run(own, small(own.folder, n_test_responses=0), [resumption(resumes)])()
    whole, first, rest = logged
    assert first.of_training + rest.of_training == whole.of_training == list(range(7))
