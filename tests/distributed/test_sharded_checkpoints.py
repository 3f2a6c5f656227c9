"""Tensors of checkpoints in folders of their own; several processes write them in tests/integration/test_fsdp.py."""

import copy
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from instruct_lit.core.training.checkpoints import read_checkpoint
from instruct_lit.distributed import sharded_checkpoints as shard_files
from instruct_lit.distributed.shards import Shards
from instruct_lit.errors import CheckpointError
from instruct_lit.resume.checkpoint_files import DurableIO, explained_write, find_checkpoint, previous_of

pytestmark = pytest.mark.filterwarnings("ignore:.*assuming the intent is to save in a single process")


def checkpoint(step: int) -> dict[str, Any]:
    slots = {"step": torch.tensor(float(step)), "exp_avg": torch.full((3, 2), step / 2)}
    return {
        "state_dict": {"model.w": torch.arange(6.0).reshape(3, 2) + step},
        "optimizer_states": [{"state": {0: slots}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "global_step": step,
    }


def save(step: int, path: Path) -> Path:
    content, folder = checkpoint(step), shard_files.new_folder(path, step)
    shard_files.write(shard_files.split_off(content), folder)
    assert content["state_dict"] == {} and content["optimizer_states"][0]["state"] == {}
    DurableIO(Shards()).save_checkpoint({**content, "shards": folder.name}, path)
    return folder


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    (a,), (b,) = found["optimizer_states"], wanted["optimizer_states"]
    return (
        torch.equal(found["state_dict"]["model.w"], wanted["state_dict"]["model.w"])
        and a["param_groups"] == b["param_groups"]
        and all(torch.equal(a["state"][0][slot], b["state"][0][slot]) for slot in ("step", "exp_avg"))
    )


def test_what_is_written_in_shards_is_read_as_one_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(1, path)
    assert same(DurableIO(Shards()).load_checkpoint(path, weights_only=True), checkpoint(1))
    assert read_checkpoint(path)["state_dict"] == {}


def test_the_two_names_of_a_tied_matrix_are_both_written(tmp_path: Path) -> None:
    matrix, folder = torch.arange(6.0).reshape(3, 2), shard_files.new_folder(tmp_path / "best.ckpt", 1)
    shard_files.write({"embedding": matrix, "head": matrix, "view": matrix[:2]}, folder)
    found = shard_files.read_whole(str(folder))
    assert torch.equal(found["embedding"], matrix) and torch.equal(found["head"], matrix)
    assert torch.equal(found["view"], matrix[:2])


def test_the_one_before_stays_and_what_no_file_names_goes(tmp_path: Path) -> None:
    path, best = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "best.ckpt"
    folders = [save(1, best), *(save(step, path) for step in (1, 2, 3))]
    assert [folder.is_dir() for folder in folders] == [True, False, True, True]
    assert same(DurableIO(Shards()).load_checkpoint(previous_of(path), weights_only=True), checkpoint(2))
    DurableIO(Shards()).remove_checkpoint(best)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(
        [path.name, previous_of(path).name, folders[2].name, folders[3].name]
    )


@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_damaged_shards_are_replaced_by_the_previous_checkpoint(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(1, path)
    (file,) = save(2, path).iterdir()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.warns(UserWarning, match=r"damaged shards \(.*last-2-.*resuming from the previous one, .* of step 1"):
        assert find_checkpoint(str(tmp_path), tmp_path, sharding=Shards()) == previous_of(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(1, path)
    folder = shard_files.new_folder(path, 2)

    def full(*arguments: object, **options: object) -> None:
        raise CheckpointException("save", {1: (OSError(errno.ENOSPC, "No space left on device"), None)})  # type: ignore[dict-item]

    monkeypatch.setattr(shard_files.dcp, "save", full)
    message = r"last.ckpt: cannot be written \(.*No space left on device\); the last good one is last.ckpt of step 1: free disk space"
    with pytest.raises(CheckpointError, match=message), explained_write(path, folder):
        shard_files.write(shard_files.split_off(copy.deepcopy(checkpoint(2))), folder)
    assert not folder.exists() and same(DurableIO(Shards()).load_checkpoint(path, weights_only=True), checkpoint(1))
