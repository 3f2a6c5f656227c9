"""Low-rank adapters through peft (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), on our GPT and on models of others.

An adapter is kept as a peft directory that `PeftModel.from_pretrained` opens on the base model, also for our GPT: there
the modules get Hugging Face's names for GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import hf_names
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf.model import HFModel

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model."  # peft's name for what it wraps


@dataclass(frozen=True)
class Base:
    """The model that an adapter goes on: a path or a hub id, and the revision of the latter."""

    path: str
    revision: str | None = None


class Adapter:
    """Low-rank updates on the linear layers of a model, which is changed in place; all else in it is frozen.

    `targets` are endings of module names, or one regular expression for whole names; by default every linear layer of
    the blocks. Raises ConfigError when peft is not installed or no module has such a name.
    """

    def __init__(
        self,
        model: CausalLM,
        rank: int = 16,
        alpha: float = 32,
        dropout: float = 0.0,
        targets: Sequence[str] | str | None = None,
        dora: bool = False,
    ) -> None:
        peft = check_peft()
        self.model = model
        chosen = targets if isinstance(targets, str) else list(targets or linear_names(model))
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=chosen,
            use_dora=dora,
            fan_in_fan_out=_stores_in_out(model),
            task_type="CAUSAL_LM",
        )
        try:
            self._tuner = peft.tuners.lora.LoraModel(_inner(model), {"default": config}, "default")
        except ValueError as error:
            raise ConfigError(
                f"adapter.targets={targets}: peft cannot adapt that ({' '.join(str(error).split())[:200]}); the linear "
                f"layers are {', '.join(linear_names(model))}"
            ) from error

    def merge(self) -> None:
        """Add the updates to the weights, so that the model is an ordinary one again."""
        self._tuner.merge_and_unload(safe_merge=True)

    def save(self, directory: Path, base: Base) -> None:
        """Write a peft directory."""
        from peft import get_peft_model_state_dict

        directory.mkdir(parents=True, exist_ok=True)
        theirs = _their_names(self.model)
        tensors = {
            _PREFIX + _renamed(name, theirs): tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in get_peft_model_state_dict(self._tuner, save_embedding_layers=False).items()
        }
        save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
        config = self._tuner.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": base.path, "revision": base.revision, "inference_mode": True}
        if theirs:
            # Their GPT-2 stores its matrices (in, out), as peft must know.
            config |= {"target_modules": sorted({theirs[m].rpartition(".")[2] for m in self._adapted()})}
            config["fan_in_fan_out"] = True
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))
        (directory / CONFIG).write_text(text + "\n")

    def load(self, directory: Path) -> None:
        """Take the updates of a peft directory; CheckpointError when they are not for this model."""
        from peft import set_peft_model_state_dict

        ours = {theirs: ours for ours, theirs in _their_names(self.model).items()}
        try:
            tensors = load_file(directory / TENSORS)
        except Exception as error:  # foreign bytes can fail in any way
            raise CheckpointError(f"{directory / TENSORS}: cannot be read ({error})") from error
        named = {_renamed(name.removeprefix(_PREFIX), ours): tensor for name, tensor in tensors.items()}
        try:
            problem = list(tuple(set_peft_model_state_dict(self._tuner, named))[1])  # unexpected keys
        except RuntimeError as error:
            problem = [str(error)]
        if problem:
            raise CheckpointError(f"{directory}: the adapter is not for this base model ({problem[0]})")

    def _adapted(self) -> list[str]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [name for name, module in _inner(self.model).named_modules() if isinstance(module, BaseTunerLayer)]


def open_adapter(directory: Path, model: CausalLM) -> Adapter:
    """Put the adapter of a peft directory on its base model."""
    values = read_adapter_config(directory)
    targets = values.get("target_modules")
    ours = {theirs: ours for ours, theirs in _their_names(model).items()}
    if ours and isinstance(targets, list):
        targets = [name for theirs, name in ours.items() if theirs.rpartition(".")[2] in targets]
    rank, alpha, dora = values["r"], values["lora_alpha"], bool(values.get("use_dora"))
    adapter = Adapter(model, rank=rank, alpha=alpha, targets=targets, dora=dora)
    adapter.load(directory)
    return adapter


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """What a peft directory says about itself; CheckpointError when it is no LoRA that is supported here."""
    file = directory / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values["peft_type"], values["r"], values["lora_alpha"], values["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged or no peft configuration ({type(error).__name__}: {error})") from error
    if kind[0] != "LORA":
        raise CheckpointError(f"{file}: peft_type is {kind[0]}; only LORA can be opened")
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices", "use_rslora"):
        if values.get(key):
            raise CheckpointError(f"{file}: {key}={values[key]} is not supported")
    return values


def linear_names(model: CausalLM) -> list[str]:
    """Endings of the names of the linear layers in a model's blocks: what an adapter goes on by default."""
    linear: tuple[type[nn.Module], ...] = (nn.Linear,)
    if isinstance(model, HFModel):
        from transformers.pytorch_utils import Conv1D

        linear = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, m in model.blocks.named_modules() if isinstance(m, linear)})


def _stores_in_out(model: CausalLM) -> bool:
    """Whether the matrices are stored (in, out), as transformers does for GPT-2."""
    return any(type(module).__name__ == "Conv1D" for module in model.blocks.modules())


def check_qlora() -> str | None:
    """Why 4-bit adapters cannot be trained here; None if they can."""
    import importlib.util

    missing = [name for name in ("transformers", "peft", "bitsandbytes") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} is not installed: pip install 'instruct-lit[hf]' bitsandbytes" if missing else None


def check_peft() -> Any:
    """peft; ConfigError where the extra `hf` is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("adapter: needs peft, pip install 'instruct-lit[hf]'") from error
    return peft


def _inner(model: CausalLM) -> nn.Module:
    return model.hf if isinstance(model, HFModel) else model


def _their_names(model: CausalLM) -> dict[str, str]:
    """Hugging Face's name of each module of our GPT; empty for a model of transformers, whose names are its own."""
    if not isinstance(model, GPT):
        return {}
    names = hf_names(model.config).items()
    return {
        ours.removesuffix(".weight"): f"transformer.{theirs.removesuffix('.weight')}"
        for ours, (theirs, _) in names
        if ours.startswith("blocks.") and ours.endswith(".weight")
    }


def _renamed(name: str, names: dict[str, str]) -> str:
    """A parameter's name with the module that an adapter is on under its other name."""
    module, part, rest = name.partition(".lora_")
    prefix, module = module[:6], module[6:]  # "model." is how peft calls the inner model
    return f"{prefix}{names.get(module, module)}{part}{rest}"


def trained_share(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    sizes: list[tuple[int, Tensor]] = [(p.numel(), p) for p in model.parameters()]
    return sum(n for n, p in sizes if p.requires_grad), sum(n for n, _ in sizes)
