"""Formats in which a finished model is exported: a Hugging Face directory, GGUF, a traced program."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instruct_lit.core.bundle import OpenedModel, open_model, save_bundle
from instruct_lit.core.data.template import CHAT
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.errors import ConfigError, TemplateError
from instruct_lit.exporters.gguf import write_gguf, write_gguf_adapter
from instruct_lit.exporters.llama_cpp import K_QUANTS, check_programs, convert, convert_adapter, quantize
from instruct_lit.exporters.model_card import published
from instruct_lit.exporters.ollama import modelfile
from instruct_lit.hf.adapters import CONFIG, TENSORS, read_adapter_config, remove_adapter
from instruct_lit.hf.chat_template_export import chat_template
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.quantized import PACKAGES as QUANTIZERS
from instruct_lit.hf.quantized import write_quantized
from instruct_lit.hf.tokenizer import HFTokenizer

ADAPTER = "adapter.gguf"
_GGUF_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def export_model(
    opened: OpenedModel, to: str, folder: Path, name: str, precision: str, llama_cpp: str | None = None
) -> None:
    """Write a model to `folder`.

    Args:
        to: one of `FORMATS`.
        name: of the model, in GGUF files.
        precision: of the weights in a Hugging Face directory, also `int8` or `nf4`; of the matrices in a GGUF file.
        llama_cpp: a checkout of llama.cpp.
    """
    if isinstance(opened.model, HFModel) and hasattr(opened.model.hf.config, "quantization_config"):
        raise ConfigError(f"run={opened.directory}: its weights are quantised; export the run that they are from")
    if to == "hf" and precision in QUANTIZERS:
        write_quantized(folder, opened.model, precision, partial(to_hf, opened))
    elif to == "hf":
        to_hf(opened, folder, precision)
    elif to == "gguf":
        to_gguf(opened, folder, name, precision, llama_cpp)
    else:
        to_torch_export(opened, folder)


def to_hf(
    opened: OpenedModel, folder: Path, dtype: str | None = None, write_adapter: Callable[[Path], None] | None = None
) -> None:
    """Write the bundle again, with the opened template and without paths of this machine."""
    generation = {**vars(SamplingSettings()), "stop": [], **opened.generation}
    about = {key: value for key, value in opened.about.items() if key not in ("version", "kind", "template")}
    weights = DTYPES[dtype] if dtype is not None else None
    parts = opened.model, opened.tokenizer, opened.template
    save_bundle(folder, *parts, generation, published(about), write_adapter, weights)


def to_adapter(opened: OpenedModel, folder: Path, base: str | None) -> str:
    """Write the adapter of a bundle alone, as a peft directory on the base model `base`; return where the base is here.

    Raises:
        ConfigError: the bundle has no adapter, or its base is a folder and `base` is None.
    """
    config = _adapter_config(opened)
    here = str(config["base_model_name_or_path"])
    base = base or (opened.about.get("base") or {}).get("id") or (None if Path(here).exists() else here)
    if base is None:
        raise ConfigError("merge=false: the base model is a folder of this machine; give its hub id (base_model=…)")

    def write(new: Path) -> None:
        shutil.copy(opened.directory / TENSORS, new)
        (new / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n")

    to_hf(opened, folder, write_adapter=write)
    return here


def to_gguf(opened: OpenedModel, folder: Path, name: str, precision: str, llama_cpp: str | None = None) -> None:
    """Write one file for llama.cpp, and the Modelfile that makes it an Ollama model.

    A model's own chat template that a Modelfile cannot express is in the file alone, which is reported. GPT-2 is
    written here, another model by llama.cpp's converter; `llama_cpp` names a checkout.
    """
    model, tokenizer, template = opened.model, opened.tokenizer, opened.template
    check_programs(precision, not isinstance(model, GPT), llama_cpp)
    weights, ends = f"model-{precision}.gguf", {}
    if isinstance(tokenizer, HFTokenizer):
        # What the tokenizer puts before every text, llama.cpp does as well.
        start = tokenizer.hf.decode(list(HFTokenizer(tokenizer.hf).prompt_start))
        ends = {"end": tokenizer.end, "start": start}
    text = None
    try:
        text = modelfile(weights, template, opened.generation, model.config.context_length, **ends)
    except TemplateError as error:
        if template.name != CHAT:
            raise
        reason = str(error).partition(";")[0]
        print(f"no Modelfile is written ({reason}); llama.cpp uses the chat template in the file", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf.", dir=folder) as place:
        file, kind = folder / weights, precision
        if precision in K_QUANTS:  # from the precision of the base model, so that nothing is rounded twice
            file, kind = Path(place) / "unquantised.gguf", _GGUF_TYPES[model.base_dtype]
        if isinstance(model, GPT) and isinstance(tokenizer, GPT2Tokenizer):
            write_gguf(file, model, tokenizer, kind, name, chat_template(template))
        else:
            to_hf(opened, Path(place) / "hf")
            convert(Path(place) / "hf", file, kind, name, llama_cpp)
        if precision in K_QUANTS:
            quantize(file, folder / weights, precision, llama_cpp)
    if text is not None:
        (folder / "Modelfile").write_text(text, encoding="utf-8")


def to_gguf_adapter(opened: OpenedModel, folder: Path, name: str, precision: str, llama_cpp: str | None = None) -> None:
    """Write the base of a bundle's adapter as `to_gguf` does, and beside it the adapter, which llama.cpp adds to it."""
    config, own = _adapter_config(opened), isinstance(opened.model, GPT)
    if config.get("use_dora"):
        raise ConfigError("to=gguf merge=false: llama.cpp has no DoRA; leave out merge=false")
    check_programs(precision, not own, llama_cpp, adapter=True)
    base = open_model(opened.directory, opened.template, merge=False)
    remove_adapter(base.model)
    to_gguf(base, folder, name, precision, llama_cpp)
    file, rank = folder / ADAPTER, config["r"]
    alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1)  # llama.cpp divides it by the rank
    if isinstance(base.model, GPT):
        write_gguf_adapter(file, base.model, opened.directory, alpha)
    elif isinstance(base.model, HFModel):
        with tempfile.TemporaryDirectory() as place:
            shutil.copy(opened.directory / TENSORS, place)
            (Path(place) / CONFIG).write_text(json.dumps({**config, "lora_alpha": alpha}))
            base.model.hf.config.save_pretrained(Path(place) / "base")
            convert_adapter(Path(place), Path(place) / "base", file, llama_cpp)
    if (file := folder / "Modelfile").is_file():
        file.write_text(file.read_text(encoding="utf-8").replace("\n", f"\nADAPTER ./{ADAPTER}\n", 1), encoding="utf-8")


def _adapter_config(opened: OpenedModel) -> dict[str, Any]:
    if not (opened.directory / CONFIG).is_file():
        raise ConfigError(f"merge=false: {opened.directory} has no adapter of its own; train with adapter.merge=false")
    return read_adapter_config(opened.directory)


def to_torch_export(opened: OpenedModel, folder: Path) -> None:
    """Write a traced program, from token ids `(B, T)` to logits `(B, T, V)`, which runs without this package."""
    model = opened.model
    if not isinstance(model, GPT):
        raise ConfigError(f"to=torch_export: for GPT-2 only, and {opened.directory} holds another model; use to=hf")
    folder.mkdir(parents=True, exist_ok=True)
    n_tokens = torch.export.Dim("n_tokens", max=model.config.context_length)
    sizes = {"input_ids": {0: torch.export.Dim("n_rows"), 1: n_tokens}}
    with torch.no_grad():
        program = torch.export.export(model.eval(), (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=sizes)
    torch.export.save(program, folder / "model.pt2")


# The library that opens each format, as the Hugging Face hub names it.
FORMATS = {"hf": "transformers", "gguf": "gguf", "torch_export": "pytorch"}
