"""Checkpoint files of a run: how they are written and read, which one a run resumes from, and what it belongs to."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.history import History
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.core.training.trainable_state import completed, fingerprint
from instruct_lit.errors import CheckpointError

LAST = Path("checkpoints") / "last.ckpt"
WHOLE = Sharding()
LATER = ("seed", "optimizer", "best checkpoint", "weight averaging")  # parts of an identity that old checkpoints lack
RESUMABLE = {
    "global_step": int, "epoch": int, "loops": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict,
    "identity": dict, "tokens_seen": int, "random_states": list,
}  # fmt: skip


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose best score and files follow a run that is resumed in another folder.

    With `save_top_k` other than 1 the file names get the step (`best-step=12.ckpt`).
    """

    sharding = WHOLE

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.save_top_k not in (0, 1) and self.filename is not None and "{" not in self.filename:
            self.filename += "-{step}"  # under one name the last of the best would replace the best

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.sharding = pl_module.sharding  # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, here = Path(state_dict["dirpath"]), Path(self.dirpath or state_dict["dirpath"])
        if before != here:
            moved = {path: str(here / Path(path).name) for path in state_dict["best_k_models"] if Path(path).is_file()}
            here.mkdir(parents=True, exist_ok=True)
            for old, new in moved.items() if getattr(rank_zero_only, "rank", 0) == 0 else ():
                self.sharding.copy_shards(read_checkpoint(Path(old)), Path(old), Path(new))
                shutil.copyfile(old, new)
            state_dict = {**state_dict, "dirpath": str(here)}
            state_dict["best_k_models"] = {moved[p]: s for p, s in state_dict["best_k_models"].items() if p in moved}
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state_dict[name] = moved.get(state_dict[name], "")
        super().load_state_dict(state_dict)


def best_of(trainer: Trainer) -> Path | None:
    """The checkpoint with the best weights of this run; None when none was kept, whatever an earlier run left there."""
    for callback in trainer.checkpoint_callbacks:
        path = Path(getattr(callback, "best_model_path", ""))
        if getattr(callback, "monitor", None) is not None and path.is_file():
            return path
    return None


class DurableIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it and renames it, so that it is complete or absent.

    A checkpoint to resume from keeps the previous one beside it, in case the disk damages the newer one. Raises
    CheckpointError if it cannot be written; existing files stay.
    """

    sharding = WHOLE

    def __init__(self, sharding: Sharding = WHOLE) -> None:
        self.sharding = sharding

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.part")
        with explained_write(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if "optimizer_states" in checkpoint and path.is_file():
                kept = previous_of(path)
                kept.unlink(missing_ok=True)
                try:  # the newest stays under its own name until the next one takes it
                    os.link(path, kept)
                except OSError:  # exFAT and some network drives have no hard links
                    shutil.copyfile(path, kept)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        self.sharding.remove_unused(path.parent)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return self.sharding.whole(super().load_checkpoint(path, *arguments, **options), Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(path)
        self.sharding.remove_unused(Path(path).parent)


@contextmanager
def explained_write(path: Path, unfinished: Path) -> Iterator[None]:
    """Turn an error of the disk into a CheckpointError with the remedy, and remove the unfinished file or folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch wraps the error of the file
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({_reason(error)}); {_last_good(path)}") from error


def previous_of(path: Path) -> Path:
    """Where the previous checkpoint of the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives sync no folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _last_good(path: Path) -> str:
    last = path.parent / LAST.name
    if not last.is_file():
        return "there is no checkpoint yet"
    step = read_checkpoint(last).get("global_step", "?")
    return f"the last good one is {last.name} of step {step}: free disk space, then add ckpt_path={last.parent.parent}"


def find_checkpoint(
    ckpt_path: str, run_dir: Path, own_only: bool = False, sharding: Sharding = WHOLE, resumes: bool = False
) -> Path | None:
    """The file that `ckpt_path` means: a checkpoint, the last one of a run folder, or `last`.

    `last` is the run's own if it has one, otherwise that of the newest run beside it. A file that cannot be read is
    replaced by the previous one, with a warning. Raises CheckpointError if there is none.

    Args:
        own_only: `last` is the run's own, or None before its first checkpoint: for a run folder with a given name.
        resumes: Whether training continues from it, which takes more than weights.
    """
    read = partial(_readable, sharding=sharding, resumes=resumes)
    if ckpt_path == "last":
        own = run_dir / LAST
        if own.is_file() or previous_of(own).is_file():
            return read(own)
        if own_only:
            return None
        candidates = sorted(run_dir.parent.parent.glob(f"*/*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not candidates:
            raise CheckpointError(f"ckpt_path=last: no {LAST} in {run_dir} nor in a run beside it")
        return read(candidates[-1])
    path = Path(ckpt_path).expanduser()
    path = path / LAST if path.is_dir() else path
    if not path.is_file() and not previous_of(path).is_file():
        raise CheckpointError(f"ckpt_path={ckpt_path}: no such checkpoint ({path})")
    return read(path)


def _readable(path: Path, sharding: Sharding, resumes: bool) -> Path:
    """The path, or that of the previous checkpoint if this one cannot be read."""
    try:
        checkpoint = read_checkpoint(path)
        sharding.check(checkpoint, path)
        if resumes:
            check_resumable(checkpoint, path)
    except CheckpointError as error:
        before = previous_of(path)
        if not before.is_file():
            raise
        step = read_checkpoint(before).get("global_step", "?")
        warnings.warn(f"{error}; resuming from the previous one, {before} of step {step}", stacklevel=2)
        return before
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file; nothing in it is executed. Raises CheckpointError for any other file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({kind}); give the path of another") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: no state_dict in it; a checkpoint of Lightning has one")
    return checkpoint


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for a checkpoint without all the states that training continues from."""
    values = {name: checkpoint.get(name) for name in RESUMABLE}
    bad = [name for name, value in values.items() if not isinstance(value, RESUMABLE[name]) or value in ([], {})]
    bad += [f"callbacks.{History.__name__}"] if not bad and History.__name__ not in checkpoint["callbacks"] else []
    if bad:
        raise CheckpointError(
            f"{path}: cannot be resumed, {', '.join(bad)} missing, empty or of another type; give the {LAST} of a run "
            "(one with weights alone is for fit=false)"
        )


def load_weights(path: Path, module: nn.Module, sharding: Sharding = WHOLE) -> None:
    """Load the weights of a checkpoint into a module. Raises CheckpointError that lists what does not fit."""
    checkpoint = read_checkpoint(path)
    sharding.check(checkpoint, path)
    try:
        if not sharding.load(module, checkpoint, path):
            module.load_state_dict(completed(sharding.whole(checkpoint, path)["state_dict"], module))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model\n  {error}") from error


def identity_of(model: CausalLM, data: InstructionData, trainer: Trainer) -> dict[str, str]:
    """What a run must have in common with a checkpoint to resume it: what it learns, and in which order.

    Batches are counted over all processes: two processes with batches of 4 may resume a run of one with batches of 8.
    """
    n_processes, max_tokens = trainer.world_size, data.batching.max_tokens
    named = list(model.named_parameters())
    return {
        "model": str(model.config),
        "trained parameters": str(sum(p.numel() for _, p in named if p.requires_grad)),
        "frozen weights": fingerprint((name, p) for name, p in named if not p.requires_grad),
        **data.facts(),
        "data.batch_size over all processes": str(data.batching.batch_size * n_processes),
        "batching.max_tokens over all processes": str(max_tokens and max_tokens * n_processes),
        "trainer.accumulate_grad_batches": str(trainer.accumulate_grad_batches),
    }


def check_identity(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Raise CheckpointError that lists what differs between a checkpoint's run and this one."""
    different = [
        f"{name}: {saved.get(name)} in the checkpoint, {value} in this run"
        for name, value in present.items()
        if saved.get(name, value if name in LATER else None) != value
    ]
    if different:
        raise CheckpointError("ckpt_path: the checkpoint belongs to another run\n  " + "\n  ".join(different))
