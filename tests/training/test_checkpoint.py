"""Which checkpoint a run resumes from, and which it refuses."""

import os
from pathlib import Path

import pytest
import torch

from instruct_lit.errors import CheckpointError
from instruct_lit.training.checkpoint import (
    LAST,
    Checkpoint,
    check_identity,
    find_checkpoint,
    load_weights,
    read_checkpoint,
)


def save(run: Path, **content: object) -> Path:
    path = run / LAST
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, **content}, path)
    return path


def test_a_file_a_run_folder_or_last(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs" / "train" / "2026-01-01"
    old, new = save(outputs / "1"), save(outputs / "2")
    os.utime(old, (1, 1))
    run = outputs / "3"
    assert find_checkpoint(str(old), run) == old
    assert find_checkpoint(str(outputs / "1"), run) == old
    assert find_checkpoint("last", run) == new
    own = save(run)
    os.utime(own, (0, 0))
    assert find_checkpoint("last", run) == own


def test_the_best_checkpoint_follows_a_run_that_is_resumed_elsewhere(tmp_path: Path) -> None:
    old = Checkpoint(tmp_path / "old", filename="best", monitor="val/loss")
    best = tmp_path / "old" / "best.ckpt"
    best.parent.mkdir()
    best.write_bytes(b"weights")
    old.best_k_models, old.best_model_path, old.kth_best_model_path = (
        {str(best): torch.tensor(0.5)},
        str(best),
        str(best),
    )
    old.best_model_score = torch.tensor(0.5)
    new = Checkpoint(tmp_path / "new", filename="best", monitor="val/loss")
    new.load_state_dict(old.state_dict())
    assert (tmp_path / "new" / "best.ckpt").read_bytes() == b"weights" == best.read_bytes()
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt") and new.best_model_score == 0.5
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.5)}


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ckpt_path=last: no checkpoints/last.ckpt in"):
        find_checkpoint("last", tmp_path / "a" / "b")
    with pytest.raises(CheckpointError, match=r"no such checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path)
    whole = save(tmp_path / "run").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"cut.ckpt: cannot be read as a checkpoint, it is cut off or of another kind"
    ):
        find_checkpoint(str(cut), tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="a checkpoint of Lightning has a state_dict, this file has none"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3, 2)}}, tmp_path / "w.ckpt")
    with pytest.raises(
        CheckpointError, match=r"w.ckpt: does not fit the model[\s\S]*weight[\s\S]*bias|bias[\s\S]*weight"
    ):
        load_weights(tmp_path / "w.ckpt", torch.nn.Linear(2, 2))


def test_a_checkpoint_of_another_run_is_refused_with_what_differs() -> None:
    check_identity({"model": "a", "split": "s"}, {"model": "a", "split": "s"})
    with pytest.raises(CheckpointError) as caught:
        check_identity({"model": "a", "split": "s"}, {"model": "b", "split": "s", "data": "d"})
    assert "model: a there, b here" in str(caught.value) and "data: None there, d here" in str(caught.value)
    assert "split" not in str(caught.value)
