"""Directories of transformers' models with linear layers in 8 or 4 bits, for serving: transformers and vLLM read them.

`int8` has a scale for each row (torchao), `nf4` is the 4-bit NormalFloat of QLoRA (Dettmers et al. 2023, bitsandbytes).
Embedding and head, and what is computed, keep 16 bits.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from instruct_lit.core.bundle import MAX_SHARD_SIZE
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError
from instruct_lit.hf.files import four_bits, import_transformers, opening
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.older_readers import spell_for_transformers_4
from instruct_lit.optional_imports import need

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def write_quantized(directory: Path, model: CausalLM, kind: str, write: Callable[[Path], None]) -> None:
    """Write the directory that `write` writes with quantised linear layers.

    Args:
        kind: a key of `PACKAGES`.

    Raises:
        ConfigError: the model is our GPT, whose matrices neither package quantises, or the package is not installed.
    """
    if not isinstance(model, HFModel):
        raise ConfigError(f"dtype={kind}: for models of transformers other than GPT-2; use to=gguf precision=q8_0")
    need(PACKAGES[kind], f"dtype={kind}", "quantize")
    dtype = torch.float16 if model.base_dtype == torch.float16 else torch.bfloat16
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hf.", dir=directory.parent) as place:
        source = Path(place) / "hf"
        write(source)
        if kind == "nf4":
            options = four_bits(dtype)
        else:
            from torchao.quantization import Int8WeightOnlyConfig

            quantization = import_transformers().TorchAoConfig(quant_type=Int8WeightOnlyConfig())
            options = {"quantization_config": quantization, "dtype": dtype}
        with opening(str(source)):
            hf: Any = import_transformers().AutoModelForCausalLM.from_pretrained(source, **options)  # nosec B615
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
        hf.save_pretrained(directory, max_shard_size=MAX_SHARD_SIZE)
    spell_for_transformers_4(directory, model.config.context_length, None)
