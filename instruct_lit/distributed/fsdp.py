"""One model over many devices: weights, gradients and moments in shards (FSDP2 of torch, through Lightning).

A block's weights are whole while it computes and at no other time (ZeRO stage 3, Rajbhandari et al. 2020; Zhao et al.
2023, "PyTorch FSDP").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.checkpoints import SHARDS, explained_write, read_checkpoint, whole
from instruct_lit.core.training.trainable_state import completed, trained_part
from instruct_lit.distributed import sharded_checkpoints as shard_files
from instruct_lit.errors import CheckpointError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)  # on the first process only


class FullySharded(ModelParallelStrategy):
    """Every device keeps its share of each weight, gradient and moment; blocks are gathered one after the other.

    A checkpoint is the ordinary file that other strategies write. With `save_distributed_checkpoint` nothing is
    gathered: every process writes its own shards beside the file. A run may go on from either with any strategy.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        self._saved = StateDictOptions(full_state_dict=not save_distributed_checkpoint, cpu_offload=True, strict=False)

    # A checkpoint is loaded when and how it is done everywhere else.
    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        """Connect the processes; unlike Lightning's, before there is a module: they wait for the first one's data."""
        self._setup_distributed()
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(
                self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",)
            )

    def shard(self, model: CausalLM) -> None:
        """Shard every block, and what is left as the root; with `bf16-mixed` weights are gathered in bf16."""
        if is_sharded(model):
            return
        half = self.precision_plugin.precision == "bf16-mixed"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
        for part in (*model.blocks, model):
            fully_shard(part, mesh=self.device_mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "hidden_states")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=self._saved)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as torch's own, which numbers parameters by their place.

        Whole, and then empty on all processes but the first, or this process's shards.
        """
        assert self.model is not None
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        named: dict[str, Any] = get_optimizer_state_dict(self.model, inner, options=self._saved)
        names = [name for group in named.get("param_groups", ()) for name in group["params"]]
        return _renamed(named, {name: number for number, name in enumerate(names)})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            mine = str(shard_files.new_folder(path, checkpoint["global_step"])) if self.is_global_zero else ""
            folder = Path(self.broadcast(mine))
            with explained_write(path, folder):
                shard_files.write(shard_files.split_off(checkpoint), folder)
            checkpoint[SHARDS] = folder.name
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return _found(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        _load(self.lightning_module, checkpoint)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        name_of = {id(p): name for name, p in self.model.named_parameters()}
        folder = checkpoint.get(SHARDS)
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            names = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
            if folder is not None:
                own = _renamed(get_optimizer_state_dict(self.model, optimizer), {n: k for k, n in enumerate(names)})
                shard_files.read(folder, shard_files.moments(own, i))
                saved = {**saved, "state": own["state"]}
            set_optimizer_state_dict(
                self.model,
                optimizer,
                _renamed(saved, dict(enumerate(names))),
                options=StateDictOptions(full_state_dict=folder is None),
            )


def _renamed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names for the parameters."""
    return {
        "state": {new[name]: of_parameter for name, of_parameter in state.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [new[name] for name in group["params"]]} for group in state.get("param_groups", ())
        ],
    }


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are in shards."""
    return isinstance(model, FSDPModule)


def load_weights(path: Path, module: nn.Module) -> None:
    """Load the weights of a checkpoint; CheckpointError lists what does not fit."""
    try:
        if any(is_sharded(part) for part in module.modules()):
            _load(module, _found(path))
        else:
            module.load_state_dict(completed(whole(read_checkpoint(path), path)["state_dict"], module))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model\n  {error}") from error


def _found(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, with the place of the shards that it names."""
    checkpoint = read_checkpoint(path)
    return {**checkpoint, SHARDS: str(path.parent / checkpoint[SHARDS])} if SHARDS in checkpoint else checkpoint


def _load(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give every process its share of a checkpoint's weights, out of whole ones or out of shards."""
    if SHARDS in checkpoint:
        own = trained_part(get_model_state_dict(module), module)
        shard_files.read(checkpoint[SHARDS], {f"{shard_files.WEIGHTS}/{name}": value for name, value in own.items()})
        return
    # What is a shard already is the module's own: a frozen weight that the checkpoint leaves out.
    given = {name: value for name, value in checkpoint["state_dict"].items() if not isinstance(value, DTensor)}
    set_model_state_dict(module, given, options=StateDictOptions(full_state_dict=True, strict=False))


def copy_whole(sharded: nn.Module, whole: nn.Module) -> None:
    """Gather the weights of a sharded model into an ordinary one of the first process; all processes must call it."""
    state = get_model_state_dict(sharded, options=WHOLE)
    if state:
        whole.load_state_dict(state)


def gather(model: nn.Module) -> None:
    """Let every process hold all weights of a sharded model until `scatter`, so that each can work with it alone.

    All processes must call it. Nothing is done for a model that is not sharded.
    """
    for part in _parts(model):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def scatter(model: nn.Module) -> None:
    """Leave every process its share of the weights again."""
    for part in _parts(model):
        part.reshard()
        part.set_reshard_after_forward(part is not model, recurse=False)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """`gather` before and `scatter` after what is inside."""
    gather(model)
    try:
        yield
    finally:
        scatter(model)


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
