"""Checkpoint files of a run: how they are kept, which one a run resumes from, what it belongs to, and its weights."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from instruct_lit.data.datamodule import InstructionData
from instruct_lit.errors import CheckpointError
from instruct_lit.model.causal import CausalLM

LAST = Path("checkpoints") / "last.ckpt"


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose best score and files follow a run that is resumed in another folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, here = Path(state_dict["dirpath"]), Path(self.dirpath or state_dict["dirpath"])
        if before != here:
            moved = {path: str(here / Path(path).name) for path in state_dict["best_k_models"] if Path(path).is_file()}
            here.mkdir(parents=True, exist_ok=True)
            for old, new in moved.items():
                shutil.copyfile(old, new)
            state_dict = {**state_dict, "dirpath": str(here)}
            state_dict["best_k_models"] = {moved[p]: s for p, s in state_dict["best_k_models"].items() if p in moved}
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state_dict[name] = moved.get(state_dict[name], "")
        super().load_state_dict(state_dict)


def find_checkpoint(ckpt_path: str, run_dir: Path) -> Path:
    """The file that `ckpt_path` means: a checkpoint, the last one of a run folder, or `last`.

    `last` is this run's own (where a scheduler starts the same run folder again), otherwise that of the newest run
    that lies beside it. Raises CheckpointError when there is none or it cannot be read.
    """
    if ckpt_path == "last":
        own = run_dir / LAST
        others = run_dir.parent.parent.glob(f"*/*/{LAST}")
        candidates = [own] if own.is_file() else sorted(others, key=lambda path: path.stat().st_mtime)
        if not candidates:
            raise CheckpointError(f"ckpt_path=last: no {LAST} in {run_dir} nor in a run beside it")
        path = candidates[-1]
    else:
        path = Path(ckpt_path).expanduser()
        path = path / LAST if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(f"ckpt_path={ckpt_path}: no such checkpoint ({path})")
    read_checkpoint(path)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file; nothing in it is executed. Raises CheckpointError when it is no checkpoint."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint, it is cut off or of another kind ({kind})"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: a checkpoint of Lightning has a state_dict, this file has none")
    return checkpoint


def load_weights(path: Path, module: nn.Module) -> None:
    """Load the weights of a checkpoint; CheckpointError lists what does not fit."""
    try:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model\n  {error}") from error


def identity_of(model: CausalLM, data: InstructionData) -> dict[str, str]:
    """What a run must have in common with a checkpoint to resume it."""
    split = hashlib.sha256(b"".join(data.examples_of(name)[1].tobytes() for name in ("train", "val", "test")))
    return {
        "model": str(model.config),
        "data, template, tokenizer and lengths": data.fingerprint,
        "split": split.hexdigest()[:16],
        "data.mask_prompt": str(data.collator.mask_prompt),
    }


def check_identity(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Raise CheckpointError that lists what differs between a checkpoint's run and this one."""
    different = [
        f"{name}: {saved.get(name)} there, {value} here" for name, value in present.items() if saved.get(name) != value
    ]
    if different:
        raise CheckpointError("ckpt_path: the checkpoint belongs to another run\n  " + "\n  ".join(different))
