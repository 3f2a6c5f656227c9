"""The strategy for a model in shards over several devices (FSDP2 of torch, through Lightning).

Every device keeps its share of weights, gradients and moments; a block's weights are whole only while it computes.

Source: ZeRO stage 3, Rajbhandari et al. 2020; "PyTorch FSDP", Zhao et al. 2023.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.training.checkpoints import read_checkpoint, trained_part
from instruct_lit.core.training.sharding import SHARDS
from instruct_lit.distributed import sharded_checkpoints as shard_files
from instruct_lit.distributed.compat_lightning import connect
from instruct_lit.resume.checkpoint_files import explained_write


class FullySharded(ModelParallelStrategy):
    """Every device keeps its share of each weight, gradient and moment; blocks are gathered one after the other.

    A checkpoint is the file that other strategies write. With `save_distributed_checkpoint` nothing is gathered: every
    process writes its own shards beside the file. A run may resume from either with any strategy.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        self._writes_shards = save_distributed_checkpoint
        self._saved = StateDictOptions(full_state_dict=not save_distributed_checkpoint, cpu_offload=True, strict=False)

    # A checkpoint is loaded at the same time and in the same way as with other strategies.
    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        connect(self)

    def shard(self, model: CausalLM) -> None:
        """Shard every block, and the rest as the root; with `bf16-mixed` weights are gathered in bf16."""
        if isinstance(model, FSDPModule):  # in shards already
            return
        half = self.precision_plugin.precision == "bf16-mixed"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
        for part in (*model.blocks, model):
            fully_shard(part, mesh=self.device_mesh, mp_policy=policy)
        model.hidden_states = _with_gradient(model.hidden_states)  # type: ignore[method-assign]
        register_fsdp_forward_method(model, "hidden_states")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=self._saved)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state with torch's numbers of parameters: whole (empty on other ranks), or this process's shards."""
        assert self.model is not None
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        named: dict[str, Any] = get_optimizer_state_dict(self.model, inner, options=self._saved)
        names = [name for group in named.get("param_groups", ()) for name in group["params"]]
        return _renamed(named, {name: number for number, name in enumerate(names)})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._writes_shards:
            own = str(shard_files.new_folder(path, checkpoint["global_step"])) if self.is_global_zero else ""
            folder = Path(self.broadcast(own))
            with explained_write(path, folder):
                shard_files.write(shard_files.split_off(checkpoint), folder)
            checkpoint[SHARDS] = folder.name
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        return located(read_checkpoint(path), path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_shares(self.lightning_module, checkpoint)

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


def _with_gradient(hidden_states: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with states that always pass a gradient on in training, and are no views.

    Gradients of the root, which the head belongs to, are summed over the processes after a hook of its output has run:
    states of frozen blocks would have none, and no weight would be trained; a view may lose it.
    """

    def own_states(*inputs: Any, **named: Any) -> Tensor:
        states = hidden_states(*inputs, **named)
        if not torch.is_grad_enabled():
            return states
        states = states.clone()
        return states if states.requires_grad else states.requires_grad_()

    return own_states


def _renamed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names for the parameters."""
    return {
        "state": {new[name]: of_parameter for name, of_parameter in state.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [new[name] for name in group["params"]]} for group in state.get("param_groups", ())
        ],
    }


def located(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint at `path` with the full path of the shards that it names."""
    return {**checkpoint, SHARDS: str(path.parent / checkpoint[SHARDS])} if SHARDS in checkpoint else checkpoint


def load_shares(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load each process's share of a `located` checkpoint's weights, whole ones or shards."""
    if SHARDS in checkpoint:
        own = trained_part(get_model_state_dict(module), module)
        shard_files.read(checkpoint[SHARDS], {f"{shard_files.WEIGHTS}/{name}": value for name, value in own.items()})
        return
    # A DTensor is the module's own: a frozen weight that the checkpoint does not hold.
    given = {name: value for name, value in checkpoint["state_dict"].items() if not isinstance(value, DTensor)}
    set_model_state_dict(module, given, options=StateDictOptions(full_state_dict=True, strict=False))
