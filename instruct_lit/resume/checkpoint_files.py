"""Checkpoint files to resume from: how they survive a fault while they are written, and which one is meant."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from instruct_lit.core.training.checkpoints import LAST, read_checkpoint
from instruct_lit.core.training.history import History
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import CheckpointError

RESUMABLE: dict[str, Any] = {
    "global_step": int, "epoch": int, "loops": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict,
    "identity": dict, "tokens_seen": (int, float), "random_states": list,
}  # fmt: skip


class DurableIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it and renames it, so that it is complete or absent.

    A checkpoint to resume from keeps the previous one beside it, in case the disk damages the newer one. Raises
    CheckpointError if it cannot be written; existing files stay.
    """

    def __init__(self, sharding: Sharding | None = None) -> None:
        super().__init__()
        self.sharding = sharding or Sharding()

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
    ckpt_path: str, run_dir: Path, own_only: bool = False, sharding: Sharding | None = None, resumes: bool = False
) -> Path | None:
    """The file that `ckpt_path` means: a checkpoint, the last one of a run folder, or `last`.

    `last` is the run's own if it has one, otherwise that of the newest run beside it. A file that cannot be read is
    replaced by the previous one, with a warning. Raises CheckpointError if there is none.

    Args:
        own_only: `last` is the run's own, or None before its first checkpoint: for a run folder with a given name.
        resumes: Whether training continues from it, which takes more than weights.
    """
    read = partial(_readable, sharding=sharding or Sharding(), resumes=resumes)
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
