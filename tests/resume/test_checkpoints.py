"""Which checkpoint a run resumes from, and which it refuses."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from instruct_lit.core.data.template import Template
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.checkpoints import LAST, Checkpoint, best_of, load_weights, read_checkpoint
from instruct_lit.core.training.history import History
from instruct_lit.distributed.shards import Shards
from instruct_lit.errors import CheckpointError
from instruct_lit.resume.checkpoint_files import DurableIO, find_checkpoint, previous_of
from instruct_lit.resume.identity import check_identity, identity_of
from instruct_lit.resume.resumption import RestoredState


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


def test_last_of_a_run_folder_named_by_hand_is_never_that_of_another_run(tmp_path: Path) -> None:
    save(tmp_path / "runs" / "other")
    assert find_checkpoint("last", tmp_path / "runs" / "mine", own_only=True) is None
    mine = save(tmp_path / "runs" / "mine")
    assert find_checkpoint("last", tmp_path / "runs" / "mine", own_only=True) == mine


def resumable(step: int) -> dict:
    return {"state_dict": {"w": torch.arange(1000.0)}, "optimizer_states": [], "global_step": step}


def test_the_checkpoint_before_stays_and_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / LAST
    for step in (1, 2, 3):
        DurableIO().save_checkpoint(resumable(step), path)
    assert read_checkpoint(path)["global_step"] == 3 and read_checkpoint(previous_of(path))["global_step"] == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match=r"last.ckpt: damaged, .* resuming from the previous one, .* of step 2"):
            assert find_checkpoint(str(tmp_path), tmp_path) == previous_of(path)
    path.unlink()  # between two names
    with pytest.warns(UserWarning, match="step 2"):
        assert find_checkpoint("last", tmp_path) == previous_of(path)
    previous_of(path).write_bytes(b"")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="previous.ckpt: damaged"):
        find_checkpoint("last", tmp_path)


def test_weights_alone_keep_no_second_copy(tmp_path: Path) -> None:
    for _ in range(2):
        DurableIO().save_checkpoint({"state_dict": {}}, tmp_path / "best.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / LAST
    path.parent.mkdir()
    part = path.with_name(".last.ckpt.part")
    part.symlink_to("/dev/full")
    with pytest.raises(
        CheckpointError, match=r"last.ckpt: cannot be written \(No space left on device\); there is no check"
    ):
        DurableIO().save_checkpoint(resumable(1), path)
    DurableIO().save_checkpoint(resumable(2), path)
    part.symlink_to("/dev/full")
    with pytest.raises(
        CheckpointError, match=r"No space left on device\); the last good one is last.ckpt of step 2: free disk space"
    ):
        DurableIO().save_checkpoint(resumable(3), path)
    assert read_checkpoint(path)["global_step"] == 2 and not part.is_symlink()


def restored(best: Path, here: Path, step: int, ckpt_path: Path | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """The best checkpoint and the state of the history of a run in `here` that resumes after `step`."""
    old, new = (Checkpoint(folder, filename="best", monitor="val/loss") for folder in (best.parent, here))
    old.best_k_models, old.best_model_path, old.kth_best_model_path = (
        {str(best): torch.tensor(0.5)},
        str(best),
        str(best),
    )
    old.best_model_score = torch.tensor(0.5)
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[new], is_global_zero=True, ckpt_path=ckpt_path)
    history = {"best_step": 10, "best_loss": 0.5, "best_value": 0.5, "n_rows": 3}
    checkpoint = {"global_step": step, "callbacks": {new.state_key: old.state_dict(), "History": history}}
    RestoredState(History(here / "history.jsonl"), Shards()).on_load_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    new.load_state_dict(checkpoint["callbacks"][new.state_key])  # type: ignore[index]
    return new, checkpoint["callbacks"]["History"]  # type: ignore[index]


def save_best(folder: Path, step: int) -> Path:
    (folder / "best-1.shards").mkdir(parents=True)
    save_file({"state_dict/w": torch.ones(2)}, folder / "best-1.shards" / "a.safetensors")
    torch.save({"state_dict": {}, "shards": "best-1.shards", "global_step": step}, folder / "best.ckpt")
    return folder / "best.ckpt"


def test_the_best_checkpoint_follows_a_run_that_is_resumed_elsewhere(tmp_path: Path) -> None:
    best = save_best(tmp_path / "old", 10)
    new, history = restored(best, tmp_path / "new", 15)
    assert (tmp_path / "new" / "best.ckpt").read_bytes() == best.read_bytes()
    assert (tmp_path / "new" / "best-1.shards" / "a.safetensors").is_file()
    assert new.best_model_path == str(tmp_path / "new" / "best.ckpt") and new.best_model_score == 0.5
    assert new.best_k_models == {new.best_model_path: torch.tensor(0.5)}
    assert history["best_step"] == 10 and history["best_value"] == 0.5


def test_the_best_checkpoint_of_a_folder_that_was_moved_is_that_beside_the_last(tmp_path: Path) -> None:
    best = save_best(tmp_path / "moved", 10)
    new, history = restored(tmp_path / "old" / "best.ckpt", best.parent, 15, best.with_name("last.ckpt"))
    assert new.best_model_path == str(best) and new.best_k_models == {str(best): torch.tensor(0.5)}
    assert history["best_step"] == 10 and (best.parent / "best-1.shards" / "a.safetensors").is_file()


def test_best_weights_of_a_step_that_this_run_has_not_made_are_not_its_best(tmp_path: Path) -> None:
    """A run killed between its best and its last checkpoint resumes, perhaps with another learning rate."""
    best = save_best(tmp_path, 20)
    for path in (best, tmp_path / "deleted.ckpt"):
        with pytest.warns(UserWarning, match=rf"{path.name}: missing, damaged, or of a step after 15, from which"):
            new, history = restored(path, tmp_path, 15, tmp_path / "last.ckpt")
        assert new.best_model_path == "" and new.best_k_models == {} and best.is_file()
        assert history == {"best_step": 0, "best_loss": float("inf"), "best_value": float("inf"), "n_rows": 3}


def test_the_best_weights_are_those_of_this_run(tmp_path: Path) -> None:
    """In a run folder that is used again there may be the best of another run."""
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    best, every = Checkpoint(tmp_path, filename="best", monitor="val/loss"), Checkpoint(tmp_path)
    trainer = SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(path=tmp_path / "last.ckpt"), every, best])
    assert best_of(trainer) is None  # type: ignore[arg-type]
    every.best_model_path = str(tmp_path / "best.ckpt")  # without a monitor that is the last one
    assert best_of(trainer) is None  # type: ignore[arg-type]
    best.best_model_path = str(tmp_path / "best.ckpt")
    assert best_of(trainer) == tmp_path / "best.ckpt"  # type: ignore[arg-type]


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ckpt_path=last: no checkpoints/last.ckpt in"):
        find_checkpoint("last", tmp_path / "a" / "b")
    with pytest.raises(CheckpointError, match=r"no such checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path)
    whole = save(tmp_path / "run").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut.ckpt: damaged, or not a checkpoint"):
        find_checkpoint(str(cut), tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no state_dict in it; a checkpoint of Lightning has one"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    for shape, why in (((3, 2), "size mismatch for weight: "), ((2, 2), r"Missing key\(s\) in state_dict: \"bias\"")):
        torch.save({"state_dict": {"weight": torch.zeros(shape)}}, tmp_path / "w.ckpt")
        with pytest.raises(CheckpointError, match=rf"w.ckpt: does not fit this model \({why}.*; give model=") as caught:
            load_weights(tmp_path / "w.ckpt", torch.nn.Linear(2, 2))
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs() -> None:
    check_identity({"model": "a", "split": "s"}, {"model": "a", "split": "s"})
    with pytest.raises(CheckpointError) as caught:
        check_identity({"model": "a", "split": "s"}, {"model": "b", "split": "s", "data": "d"})
    first, *rest = str(caught.value).splitlines()
    assert first == (
        "ckpt_path: the checkpoint belongs to another run; give the settings of its config.yaml, or leave out "
        "ckpt_path= to start anew"
    )
    assert (
        "  model: a in the checkpoint, b in this run" in rest
        and "data: None in the checkpoint, d in this run" in str(caught.value)
    )
    assert "split" not in str(caught.value)


def test_what_differs_is_named_one_by_one(make_data, base) -> None:
    """Two processes with batches of 4 may go on where one with 8 stopped; another order of examples may not."""

    def identity(n_processes: int = 1, model: GPT = base, accumulate: int = 1, **options: Any) -> dict[str, str]:
        data = make_data(**options)
        data.prepare_data()
        data.setup()
        trainer = SimpleNamespace(world_size=n_processes, accumulate_grad_batches=accumulate)
        return identity_of(model, data, trainer)  # type: ignore[arg-type]

    saved = identity()
    check_identity(saved, identity(n_processes=2, batch_size=4))
    other = GPT(GPTConfig(context_length=64, d_model=16, n_layers=1, n_heads=2))
    for name, changed in {
        "model": identity(model=other),
        "data": identity(n_train=25),
        "template": identity(template=Template("other", "{{ instruction }} {{ input }} = {{ response }}")),
        "data.max_length": identity(max_length=40),
        "data.seed": identity(seed=4),
        "data.mask_prompt": identity(mask_prompt=False),
        "data.batch_size over all processes": identity(n_processes=2),
        "batching.grouping": identity(grouping="length"),
        "trainer.accumulate_grad_batches": identity(accumulate=2),
    }.items():
        with pytest.raises(CheckpointError, match=f"{name}: .* in the checkpoint, .* in this run"):
            check_identity(saved, changed)
