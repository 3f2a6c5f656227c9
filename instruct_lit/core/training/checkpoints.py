"""Checkpoint files of a run: the best of the weights that are trained are kept, and read again for the test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import CheckpointError

LAST = Path("checkpoints") / "last.ckpt"  # the file to resume from, in a run folder


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint; with `save_top_k` other than 1 file names get the step (`best-step=12.ckpt`)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.save_top_k not in (0, 1) and self.filename is not None and "{" not in self.filename:
            self.filename += "-{step}"  # under one name the last of the best would replace the best


def best_of(trainer: Trainer) -> Path | None:
    """The checkpoint with the best weights of this run; None when none was kept, whatever an earlier run left there."""
    monitoring = (c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None))
    return next((path for c in monitoring if (path := Path(getattr(c, "best_model_path", ""))).is_file()), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file; nothing in it is executed. Raises: CheckpointError for any other file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({kind}); give the path of another") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: no state_dict in it; a checkpoint of Lightning has one")
    return checkpoint


def load_weights(path: Path, module: nn.Module, sharding: Sharding | None = None) -> None:
    """Load the weights of a checkpoint into a module. Raises: CheckpointError with what does not fit."""
    checkpoint, sharding = read_checkpoint(path), sharding or Sharding()
    sharding.check(checkpoint, path)
    try:
        if not sharding.load(module, checkpoint, path):
            module.load_state_dict(completed(sharding.whole(checkpoint, path)["state_dict"], module))
    except RuntimeError as error:
        why, remedy = str(error).splitlines()[-1].strip(), "give model=, adapter= and trainable= as its run did"
        raise CheckpointError(f"{path}: does not fit this model ({why:.150}); {remedy}") from error


def trained_part(state_dict: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The part of a state that training changes: all of it, or where parameters are frozen the trained ones alone."""
    if all(p.requires_grad for p in module.parameters()):
        return dict(state_dict)
    # Both names of a tied matrix: loading the old value under one of them would undo the other.
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {name: value for name, value in state_dict.items() if name in trained}


def completed(state_dict: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The state with the module's own frozen parameters, which a checkpoint does not hold."""
    own = module.state_dict()
    # The scales of 4-bit weights are in the state too, but nothing loads them there.
    loadable = {n for n, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    frozen = (own.keys() & loadable) - trained_part(own, module).keys()
    return {**{name: own[name] for name in frozen}, **state_dict}
