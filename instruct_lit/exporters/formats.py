"""Formats in which a finished model is exported: a Hugging Face directory, GGUF, a traced program."""

from __future__ import annotations

from pathlib import Path

import torch

from instruct_lit.core.bundle import OpenedModel, save_bundle
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.responses import read_jsonl
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.gguf import write_gguf
from instruct_lit.exporters.model_card import CardFacts, published, write_card
from instruct_lit.exporters.ollama import modelfile
from instruct_lit.hf.chat_template_export import chat_template


def export_model(
    opened: OpenedModel, to: str, folder: Path, facts: CardFacts, precision: str, dtype: str | None = None
) -> None:
    """Write a model and its model card to `folder`.

    Args:
        to: one of `FORMATS`.
        facts: of the card; the name is that of GGUF files too.
        precision: of the matrices in a GGUF file.
        dtype: of the weights in a Hugging Face directory; None: that of the bundle.
    """
    if to == "hf":
        to_hf(opened, folder, dtype)
    elif to == "gguf":
        to_gguf(opened, folder, facts.name, precision)
    else:
        to_torch_export(opened, folder)
    rows, size = read_jsonl(opened.directory.parent / "responses.jsonl"), opened.model.n_parameters
    length, card = opened.model.config.context_length, folder / "README.md"
    write_card(card, facts, opened.template, opened.about, rows, length, size, FORMATS[to])


def to_hf(opened: OpenedModel, folder: Path, dtype: str | None = None) -> None:
    """Write the bundle again, with the opened template and without paths of this machine."""
    generation = {**vars(SamplingSettings()), "stop": [], **opened.generation}
    about = {key: value for key, value in opened.about.items() if key not in ("version", "kind", "template")}
    weights = DTYPES[dtype] if dtype is not None else None
    save_bundle(folder, opened.model, opened.tokenizer, opened.template, generation, published(about), dtype=weights)


def to_gguf(opened: OpenedModel, folder: Path, name: str, precision: str) -> None:
    """Write one file for llama.cpp, and the Modelfile that makes it an Ollama model."""
    model, tokenizer = _gpt2_of(opened, "gguf")
    weights = f"model-{precision}.gguf"
    text = modelfile(weights, opened.template, opened.generation, model.config.context_length)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / weights, model, tokenizer, precision, name, chat_template(opened.template))
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def to_torch_export(opened: OpenedModel, folder: Path) -> None:
    """Write a traced program, from token ids `(B, T)` to logits `(B, T, V)`, which runs without this package."""
    model, _ = _gpt2_of(opened, "torch_export")
    folder.mkdir(parents=True, exist_ok=True)
    n_tokens = torch.export.Dim("n_tokens", max=model.config.context_length)
    sizes = {"input_ids": {0: torch.export.Dim("n_rows"), 1: n_tokens}}
    with torch.no_grad():
        program = torch.export.export(model.eval(), (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=sizes)
    torch.export.save(program, folder / "model.pt2")


def _gpt2_of(opened: OpenedModel, to: str) -> tuple[GPT, GPT2Tokenizer]:
    """Model and tokenizer of a GPT-2; ConfigError for a model of transformers."""
    if not isinstance(opened.model, GPT) or not isinstance(opened.tokenizer, GPT2Tokenizer):
        raise ConfigError(
            f"to={to}: supported for GPT-2 only, and {opened.directory} holds another model of transformers; use "
            "to=hf, then llama.cpp's convert_hf_to_gguf.py"
        )
    return opened.model, opened.tokenizer


# The library that opens each format, as the Hugging Face hub names it.
FORMATS = {"hf": "transformers", "gguf": "gguf", "torch_export": "pytorch"}
