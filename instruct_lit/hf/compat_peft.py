"""Undocumented behaviour of peft that this package uses, each with the reason.

peft's public entry, `get_peft_model`, wraps models of transformers alone. `LoraModel` underneath changes the layers of
any module in place, which our GPT needs; then peft's functions for state dicts are applied to it in place of a
`PeftModel`. `tests/hf/test_compat_peft.py` names the part that a new version lacks.
"""

import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

ADAPTER = "default"  # peft's name for a single adapter
PREFIX = "base_model."  # before the parameter names in peft's files: the attribute of PeftModel, absent in a LoraModel


def insert_lora(model: nn.Module, config: Any) -> Any:
    """Insert low-rank layers into a module in place and return peft's handle of them; ValueError as peft raises it.

    The updates are in fp32 whatever the weights are in, and drawn as for weights in fp32.
    """
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # of an older peft, which converts nothing
        conversion = None  # type: ignore[assignment]

    def move_in_fp32(layer: Any, name: str, device: torch.device | None = None) -> None:
        weight = layer.get_base_layer().weight
        for part in (getattr(layer, attribute, {}) for attribute in layer.adapter_layer_names):
            if name in part:
                part[name] = part[name].to(device or weight.device)

    with warnings.catch_warnings(), ExitStack() as replaced:
        # Of tied weights, which `Adapter` refuses or unties.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        # Private: peft rounds new updates to the dtype of the weights; `get_peft_model` converts them back afterwards.
        replaced.enter_context(patch.object(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", move_in_fp32))
        if conversion is not None:  # Private: of an architecture with experts, peft takes `down_proj` for theirs.
            name = "convert_peft_config_for_transformers"
            replaced.enter_context(patch.object(conversion, name, lambda config, **of_model: None))
        tuner = LoraModel(model, {ADAPTER: config}, ADAPTER)
    for name in adapted_modules(model):
        layer: Any = model.get_submodule(name)
        if isinstance(layer.get_base_layer(), nn.Linear) and not layer.lora_variant:
            kind: Any = type(layer)
            layer.__class__ = _with_plain_forward(kind)
    return tuner


def layers_of_peft(model: nn.Module, directory: Path) -> set[str]:
    """The layers of a model, which is changed, that peft adapts when it opens a directory there; none if it refuses."""
    from peft import LoraConfig, inject_adapter_in_model

    config: Any = LoraConfig.from_pretrained(str(directory))
    config.use_dora = False  # which changes no layer, and is not possible on experts
    with warnings.catch_warnings(action="ignore"):
        try:
            inject_adapter_in_model(config, model)
        except ValueError:
            return set()
    return set(adapted_modules(model))


class _PlainForward(nn.Module):
    """The forward pass of a low-rank layer with one adapter, which torch's compiler reads once for all layers.

    peft's own looks up adapters by name, and converts the input to the dtype of the updates and back.
    """

    def forward(self, x: Tensor) -> Tensor:
        base, down, up, dropout, scaling = self.low_rank_parts()
        result = base(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.weight.dtype)
        return result + up(down(dropout(x)) * scaling).to(result.dtype)

    def low_rank_parts(self) -> tuple[Any, Any, Any, Any, float]:
        """The frozen layer, the updates A and B, the dropout before A, and the factor of the update."""
        layer: Any = self
        parts = layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling
        return layer.base_layer, *(part[ADAPTER] for part in parts)


@cache
def _with_plain_forward(kind: type) -> type:
    """A subclass of one of peft's layers with `_PlainForward`."""
    return type(kind.__name__, (_PlainForward, kind), {})


def merge_lora(tuner: Any, dtype: torch.dtype | None = None) -> None:
    """Add the updates to the weights in fp32, round once to `dtype` or their own, and remove the low-rank layers."""
    for name in adapted_modules(tuner.model):
        layer = tuner.model.get_submodule(name)
        weight = layer.get_base_layer().weight
        wanted = dtype if dtype is not None and dtype.itemsize > weight.dtype.itemsize else weight.dtype
        if weight.dtype.itemsize == 2:  # one layer at a time, so that the model is never in fp32 as a whole
            weight.data = weight.data.float()
        layer.merge(safe_merge=True)
        weight.data = weight.data.to(wanted)
    tuner.unload()


def lora_config(tuner: Any) -> dict[str, Any]:
    """The configuration as a dictionary."""
    return tuner.peft_config[ADAPTER].to_dict()


def lora_state(tuner: Any) -> dict[str, Tensor]:
    """The adapter's tensors under the names of peft's files."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(tuner, save_embedding_layers=False)
    return {PREFIX + name: tensor for name, tensor in state.items()}


def load_lora_state(tuner: Any, state: dict[str, Tensor]) -> list[str]:
    """Load tensors with names of peft's files and return the unexpected names; RuntimeError for wrong shapes."""
    from peft import set_peft_model_state_dict

    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    result: Any = set_peft_model_state_dict(tuner, own)
    return list(result.unexpected_keys)


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have an adapter; that of `model` itself is empty."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
