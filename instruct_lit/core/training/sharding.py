"""Where the weights of a model are while several processes train it: here whole in each of them.

`instruct_lit.distributed` has a subclass for weights in shards, which may write checkpoints as a file that names a
folder of shards beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from instruct_lit.errors import CheckpointError

SHARDS = "shards"  # key of a checkpoint: the folder beside the file that holds its weights and moments


class Sharding:
    """A model of which every process holds all weights, and checkpoints of one file."""

    def applies_to(self, strategy: Any) -> bool:
        """Whether a strategy of Lightning trains a model in shards; `shard` then leaves each process its share."""
        return False

    def shard(self, model: nn.Module, strategy: Any) -> None: ...

    def gather(self, model: nn.Module) -> None:
        """Let every process hold all weights until `scatter`, so that each can evaluate alone; all must call it."""

    def scatter(self, model: nn.Module) -> None: ...

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """`gather` before and `scatter` after the block."""
        self.gather(model)
        try:
            yield
        finally:
            self.scatter(model)

    def copy_whole(self, trained: nn.Module, whole: nn.Module) -> None:
        """Copy the weights of the model that was trained into `whole` on the first process; all must call it."""

    def load(self, module: nn.Module, checkpoint: dict[str, Any], path: Path) -> bool:
        """Load the weights of the checkpoint at `path` into a module in shards; False for a module that is whole."""
        return False

    def check(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Raise CheckpointError if the tensors that the file at `path` names are damaged or missing."""
        if SHARDS in checkpoint:
            raise CheckpointError(f"{path}: its tensors are in shards, which need the folder instruct_lit/distributed")

    def whole(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
        """The checkpoint with all its tensors, also those in shards beside the file at `path`."""
        return checkpoint

    # Shards of the file at `old` are copied beside `new`; those that no file of a folder names are removed.
    def copy_shards(self, checkpoint: dict[str, Any], old: Path, new: Path) -> None: ...
    def remove_unused(self, folder: Path) -> None: ...
