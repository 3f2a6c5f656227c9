"""A model in shards, and checkpoints with their tensors in shards, for `core.training`."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from instruct_lit.core.training.checkpoints import read_checkpoint
from instruct_lit.core.training.sharding import SHARDS, Sharding
from instruct_lit.distributed import sharded_checkpoints as shard_files
from instruct_lit.distributed.fsdp import FullySharded, load_shares, located
from instruct_lit.errors import CheckpointError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)  # on the first process only


class Shards(Sharding):
    """A model whose weights `FullySharded` keeps in shards; any other model is whole, and left unchanged."""

    def applies_to(self, strategy: Any) -> bool:
        return isinstance(strategy, FullySharded)

    def shard(self, model: nn.Module, strategy: Any) -> None:
        if isinstance(strategy, FullySharded):
            strategy.shard(model)  # type: ignore[arg-type]

    def gather(self, model: nn.Module) -> None:
        for part in _parts(model):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def scatter(self, model: nn.Module) -> None:
        for part in _parts(model):
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)

    def copy_whole(self, trained: nn.Module, whole: nn.Module) -> None:
        state = get_model_state_dict(trained, options=WHOLE) if trained is not whole else None
        if state:
            whole.load_state_dict(state)

    def load(self, module: nn.Module, checkpoint: dict[str, Any], path: Path) -> bool:
        if not _parts(module):
            return False
        load_shares(module, located(checkpoint, path))
        return True

    def check(self, checkpoint: dict[str, Any], path: Path) -> None:
        if SHARDS in checkpoint:
            try:
                shard_files.check(path.parent / checkpoint[SHARDS])
            except OSError as error:
                raise CheckpointError(f"{path}: damaged shards ({error}); give the path of another") from error

    def whole(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
        name = checkpoint.pop(SHARDS, None)
        return checkpoint if name is None else shard_files.put_back(checkpoint, str(path.parent / name))

    def copy_shards(self, checkpoint: dict[str, Any], old: Path, new: Path) -> None:
        if SHARDS in checkpoint:
            name = checkpoint[SHARDS]
            shutil.copytree(old.parent / name, new.parent / name, dirs_exist_ok=True)

    def remove_unused(self, folder: Path) -> None:
        with suppress(CheckpointError):  # a damaged file does not name its shards
            read = [read_checkpoint(path) for path in folder.glob("*.ckpt")] if any(folder.glob("*.shards")) else []
            shard_files.remove_others(folder, (checkpoint.get(SHARDS, "") for checkpoint in read))


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
