"""Low-rank adapters through peft (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024), on our GPT and on models of others.

An adapter is saved as a peft directory that `PeftModel.from_pretrained` opens on the base model, also one of our GPT,
whose modules have Hugging Face's names for GPT-2 there.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import hf_names
from instruct_lit.errors import CheckpointError, ConfigError
from instruct_lit.hf import compat_peft
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.source import HFSource
from instruct_lit.optional_imports import installed, load, pip_install

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TYPES: dict[str, Any] = {
    "peft_type": str, "r": int, "lora_alpha": float | int, "base_model_name_or_path": str | None,
    "target_modules": list | str | None,
}  # fmt: skip
# Keys of a peft configuration that are followed, or that say nothing about the updates.
_UNDERSTOOD = {
    "peft_type", "r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "base_model_name_or_path", "revision",
    "lora_dropout", "fan_in_fan_out", "inference_mode", "init_lora_weights", "auto_mapping", "peft_version",
    "runtime_config", "eva_config",
}  # fmt: skip


class Adapter:
    """Low-rank updates of the linear layers of a model, which is changed in place; all other weights are frozen.

    Args:
        targets: suffixes of module names, or one regular expression for whole names; by default every linear layer of
            the blocks.
        rslora: whether updates are scaled by alpha / √rank (Kalajdzievski 2023) instead of alpha / rank.

    Raises:
        ConfigError: peft is not installed, no module has such a name, or an update there would have no effect.
    """

    def __init__(
        self,
        model: CausalLM,
        rank: int = 16,
        alpha: float = 32,
        dropout: float = 0.0,
        targets: Sequence[str] | str | None = None,
        dora: bool = False,
        rslora: bool = False,
    ) -> None:
        peft = check_peft()
        self.model = model
        names = linear_names(model)
        chosen = targets if isinstance(targets, str) else list(targets or names)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=chosen,
            use_dora=dora,
            use_rslora=rslora,
            # Matrices are stored (in, out) in transformers' GPT-2.
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.blocks.modules()),
            task_type="CAUSAL_LM",
        )
        try:
            self._tuner = compat_peft.insert_lora(_inner(model), config)
        except (ValueError, re.error) as error:
            reason = shorten(str(error), 160, placeholder=" …")
            raise ConfigError(
                f"adapter.targets={targets}: peft refuses these targets ({reason}); the "
                f"linear layers are {', '.join(names)}"
            ) from error
        self._check_effect(targets, names)

    def _check_effect(self, targets: Sequence[str] | str | None, names: Sequence[str]) -> None:
        """Refuse updates of modules whose weights are read without calling the module, and of routers.

        The first are the head of every model and the embeddings of our GPT, whose head is the same matrix.
        """
        adapted = self.layers
        if isinstance(self.model, HFModel):
            head = self.model.hf.get_output_embeddings()
            layers: dict[str, Any] = {name: _inner(self.model).get_submodule(name) for name in adapted}
            refused = [n for n, m in layers.items() if m is head or not _is_plain(m.get_base_layer())]
        else:
            refused = [name for name in adapted if not name.startswith("blocks.")]
        if refused:
            raise ConfigError(
                f"adapter.targets={targets}: {refused[0]} cannot have an adapter, since its weights are used without "
                f"the module or for more than a product; the linear layers are {', '.join(names)}"
            )

    def merge(self, dtype: torch.dtype | None = None) -> None:
        """Add the updates to the weights, which makes the model an ordinary one again.

        The sum is in fp32 and rounded to the precision of the weights, or to `dtype` where that is higher. Where an
        update of the embedding meets a tied head, the head becomes a matrix of its own: it had no update.
        """
        if isinstance(self.model, HFModel) and compat_peft.adapted_modules(self.model.hf.get_input_embeddings()):
            untie_head(self.model)
        compat_peft.merge_lora(self._tuner, dtype)
        if isinstance(self.model, HFModel):
            self.model.vocabulary_changed()  # peft has put other modules in the places of the adapted ones

    def save(self, directory: Path, base: HFSource) -> None:
        """Write a peft directory, whose base model others find at `base`."""
        directory.mkdir(parents=True, exist_ok=True)
        hf_names = _hf_module_names(self.model)
        tensors = {
            _renamed(name, hf_names): tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in compat_peft.lora_state(self._tuner).items()
        }
        save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
        self.save_config(directory, base)

    def save_config(self, directory: Path, base: HFSource) -> None:
        """Write the configuration of a peft directory alone."""
        hf_names, adapted = _hf_module_names(self.model), self.layers
        config = compat_peft.lora_config(self._tuner)
        config |= {"base_model_name_or_path": base.path, "revision": base.revision, "inference_mode": True}
        if hf_names:
            config["target_modules"] = sorted({hf_names[name].rpartition(".")[2] for name in adapted})
            config["fan_in_fan_out"] = True  # Hugging Face's GPT-2 stores its matrices (in, out)
        elif isinstance(config["target_modules"], str):  # of some architectures peft keeps no more than name endings
            config["target_modules"] = adapted
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))
        (directory / CONFIG).write_text(text + "\n")

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have updates."""
        return compat_peft.adapted_modules(_inner(self.model))

    def load(self, directory: Path) -> None:
        """Load the updates of a peft directory; CheckpointError when they are not for this model."""
        our_names = {hf_name: name for name, hf_name in _hf_module_names(self.model).items()}
        try:
            tensors = load_file(directory / TENSORS)
        except Exception as error:  # unknown bytes can fail in any way
            raise CheckpointError(f"{directory / TENSORS}: cannot be read ({error})") from error
        state = {_renamed(name, our_names): tensor for name, tensor in tensors.items()}
        try:
            problem = compat_peft.load_lora_state(self._tuner, state)
        except RuntimeError as error:
            problem = [str(error)]
        problem += [f"{name} is missing" for name in sorted(compat_peft.lora_state(self._tuner).keys() - state.keys())]
        if problem:
            raise CheckpointError(f"{directory}: the adapter is not for this base model ({problem[0]})")


def open_adapter(directory: Path, model: CausalLM) -> Adapter:
    """Put the adapter of a peft directory on its base model."""
    values = read_adapter_config(directory)
    targets = values.get("target_modules")
    hf_names = _hf_module_names(model)
    if hf_names and isinstance(targets, list):
        targets = [name for name, hf_name in hf_names.items() if hf_name.rpartition(".")[2] in targets]
    dora, rslora = bool(values.get("use_dora")), bool(values.get("use_rslora"))
    adapter = Adapter(model, values["r"], values["lora_alpha"], targets=targets, dora=dora, rslora=rslora)
    adapter.load(directory)
    return adapter


def remove_adapter(model: CausalLM) -> None:
    """Put the layers of the base model back in the places of the adapted ones, without their updates."""
    inner = _inner(model)
    for name in compat_peft.adapted_modules(inner):
        parent, _, child = name.rpartition(".")
        layer: Any = inner.get_submodule(name)
        setattr(inner.get_submodule(parent), child, layer.get_base_layer())
    if isinstance(model, HFModel):
        model.vocabulary_changed()


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The configuration of a peft directory; CheckpointError when it is not a supported LoRA."""
    file = directory / CONFIG
    try:
        values = {"target_modules": None, **json.loads(file.read_text(encoding="utf-8"))}
        for key, kind in _TYPES.items():
            if not isinstance(values[key], kind):
                raise TypeError(f"{key}={values[key]!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a peft configuration ({type(error).__name__}: {error})") from error
    if values["peft_type"] != "LORA":
        raise CheckpointError(f"{file}: peft_type is {values['peft_type']}; only LORA can be opened")
    # Whatever changes what the updates are is understood or has peft's default.
    defaults = check_peft().LoraConfig(task_type="CAUSAL_LM").to_dict()
    for key, value in values.items():
        if key not in _UNDERSTOOD and value and value != defaults.get(key):
            raise CheckpointError(
                f"{file}: {key}={value} is not supported; save the adapter merged into its base model"
            )
    if values.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        raise CheckpointError(
            f"{file}: init_lora_weights={values['init_lora_weights']} changes the base model; convert the adapter by "
            "peft's save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    return values


@torch.no_grad()
def untie_head(model: HFModel) -> None:
    """Give the output head a copy of the matrix that it shares with the embedding, if it does."""
    hf = model.hf
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if head.weight is not embedding.weight:
        return
    head.weight = nn.Parameter(head.weight.clone())
    for config in (hf.config, hf.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False


def linear_names(model: CausalLM) -> list[str]:
    """Suffixes of the names of the linear layers in a model's blocks, the default targets.

    Of a state space (Mamba) it is the first one: fused kernels read the weights of the others without the modules.
    """
    linear: tuple[type[nn.Module], ...] = (nn.Linear,)
    if isinstance(model, HFModel):
        from transformers.pytorch_utils import Conv1D

        linear = (nn.Linear, Conv1D)
    spaces = [m for m in model.blocks.modules() if hasattr(m, "A_log") and hasattr(m, "D")]
    fused = {name for space in spaces for name, _ in space.named_children() if name != "in_proj"}
    found = [name for name, m in model.blocks.named_modules() if isinstance(m, linear) and _is_plain(m)]
    return sorted({name.rpartition(".")[2] for name in found} - fused)


@torch.no_grad()
def _is_plain(layer: Any) -> bool:
    """Whether a linear layer is no more than that; routers of experts and layers in groups are."""
    has_own_code = isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward
    if not has_own_code or not layer.weight.is_floating_point():
        return True
    try:
        product = layer(layer.weight.new_zeros(1, layer.in_features))
    except Exception:  # unknown code may need other inputs
        return False
    return isinstance(product, torch.Tensor) and product.shape == (1, layer.out_features)


def check_qlora() -> str | None:
    """The reason why 4-bit adapters cannot be trained on this machine; None if they can."""
    missing = [name for name in ("transformers", "peft", "bitsandbytes") if not installed(name)]
    return f"{', '.join(missing)} is not installed; {pip_install('hf')} bitsandbytes" if missing else None


def check_peft() -> Any:
    """peft; ConfigError where the extra `hf` is not installed."""
    return load("peft", "adapter", "hf")


def _inner(model: CausalLM) -> nn.Module:
    return model.hf if isinstance(model, HFModel) else model


def _hf_module_names(model: CausalLM) -> dict[str, str]:
    """Hugging Face's name of each module of our GPT; empty for a model of transformers."""
    if not isinstance(model, GPT):
        return {}
    return {
        name.removesuffix(".weight"): f"transformer.{hf_name.removesuffix('.weight')}"
        for name, (hf_name, _) in hf_names(model.config).items()
        if name.startswith("blocks.") and name.endswith(".weight")
    }


def _renamed(name: str, names: dict[str, str]) -> str:
    """A tensor's name in a peft file with the adapted module renamed."""
    module, part, rest = name.partition(".lora_")
    prefix = f"{compat_peft.PREFIX}model."
    module = module.removeprefix(prefix)
    return f"{prefix}{names.get(module, module)}{part}{rest}"
