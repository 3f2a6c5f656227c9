"""GPT-2 weights as GGUF, the format of llama.cpp, Ollama and LM Studio, through the `gguf` package (extra `export`).

Names and layout are those of llama.cpp's converter: matrices `(out, in)`, vectors and the position embedding in fp32,
the tied head stored once.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import hf_names
from instruct_lit.hf.adapters import TENSORS
from instruct_lit.optional_imports import load


def write_gguf(path: Path, model: GPT, tokenizer: GPT2Tokenizer, precision: str, name: str, chat: str) -> None:
    """Write weights, tokenizer and chat template to one GGUF file.

    Args:
        precision: of the matrices: `f32` (exact), `f16`, `bf16`, or `q8_0` (blocks of 32 with a scale each; a matrix
            whose rows are not a multiple of 32 is `f16`).
        name: the name that programs display.
        chat: the Jinja chat template.

    Raises:
        ConfigError: the gguf package is not installed.
    """
    gguf = load("gguf", "to=gguf", "export")
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, "gpt2")
    shape = model.config
    writer.add_name(name)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(4 * shape.d_model)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_eps(shape.layer_norm_eps)
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_" + precision.upper() if precision != "f32" else "ALL_F32"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(gguf, writer, tokenizer, chat)
    for tensor_name, values, kind in _tensors(gguf, model, precision):
        writer.add_tensor(tensor_name, values, raw_dtype=kind)
    _write_file(writer)


def write_gguf_adapter(path: Path, model: GPT, directory: Path, alpha: float) -> None:
    """Write a peft directory on `model` as a GGUF file in fp32; updates are scaled by alpha / rank."""
    gguf = load("gguf", "to=gguf", "export")
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    names = gguf_names(model)
    names = {hf_name.removesuffix(".weight"): names[ours] for ours, (hf_name, _) in hf_names(model.config).items()}
    for key, tensor in load_file(directory / TENSORS).items():
        module, _, part = key.removeprefix("base_model.model.transformer.").partition(".lora_")
        writer.add_tensor(f"{names[module]}.lora_{part[0].lower()}", tensor.float().numpy())
    _write_file(writer)


def gguf_names(model: GPT) -> dict[str, str]:
    """GGUF's name of each of our parameters."""
    gguf = load("gguf", "to=gguf", "export")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layers)
    names = {}
    for ours, (hf_name, _) in hf_names(model.config).items():
        name = table.get_name(f"transformer.{hf_name}", try_suffixes=(".weight", ".bias"))
        assert name is not None, f"GGUF has no name for {hf_name}"
        names[ours] = name
    return names


def _write_file(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(gguf: Any, model: GPT, precision: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    parameters = dict(model.named_parameters())
    types = gguf.GGMLQuantizationType
    for ours, name in gguf_names(model).items():
        values = parameters[ours].detach().float().cpu().numpy()
        kind = types.F32
        if values.ndim == 2 and ours != "wpe.weight" and precision != "f32":
            kind = types[precision.upper()]
            if values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] != 0:
                kind = types.F16
        yield name, gguf.quants.quantize(values, kind), kind


def _add_tokenizer(gguf: Any, writer: Any, tokenizer: GPT2Tokenizer, chat: str) -> None:
    files = tokenizer.vocab_files()
    ids: dict[str, int] = json.loads(files["encoder.json"])
    tokens = sorted(ids, key=ids.__getitem__)
    lines = files["vocab.bpe"].decode("utf-8").splitlines()
    kinds = [gguf.TokenType.CONTROL if token == EOT else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([line for line in lines if line and not line.startswith("#version")])
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(False)  # our prompts begin without a special token
    writer.add_chat_template(chat)
