"""Undocumented behaviour of peft that this package uses, each with the reason.

peft's public entry, `get_peft_model`, wraps models of transformers alone. `LoraModel` underneath changes the layers of
any module in place, which our GPT needs; then peft's functions for state dicts are applied to it in place of a
`PeftModel`. `tests/hf/test_compat_peft.py` names the part that a new version lacks.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

ADAPTER = "default"  # peft's name for a single adapter
PREFIX = "base_model."  # before the parameter names in peft's files: the attribute of PeftModel, absent in a LoraModel


def insert_lora(model: nn.Module, config: Any) -> Any:
    """Insert low-rank layers into a module in place and return peft's handle of them; ValueError as peft raises it."""
    from peft.tuners.lora import LoraModel

    with warnings.catch_warnings():
        # Of tied weights, which `Adapter` refuses or unties.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        return LoraModel(model, {ADAPTER: config}, ADAPTER)


def merge_lora(tuner: Any) -> None:
    """Add the updates to the weights and remove the low-rank layers."""
    tuner.merge_and_unload(safe_merge=True)


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

    result: Any = set_peft_model_state_dict(
        tuner, {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    )
    _, unexpected = result
    return list(unexpected)


def is_adapted(module: nn.Module) -> bool:
    """Whether a module has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have an adapter."""
    return [name for name, module in model.named_modules() if is_adapted(module)]
