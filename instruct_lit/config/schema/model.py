"""Model, adapter and prompt template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instruct_lit.config.schema.options import MISSING, option


@dataclass
class ModelConfig:
    """The causal language model that is fine-tuned."""

    name: str = option(MISSING, "Name of the model in reports.")
    kind: str = option(
        "gpt2", "gpt2: our implementation; hf: any causal model of transformers.", choices=("gpt2", "hf")
    )
    path: str | None = option(
        None, "Local directory (bundle or Hugging Face) in place of the download; hf: also a hub id."
    )
    repo: str | None = option(None, "Repository on the Hugging Face hub.")
    revision: str | None = option(None, "Branch, tag or commit of the repository.")
    pretrained: bool = option(True, "false: the same architecture with random weights.")
    gguf_file: str | None = option(None, "Name of a GGUF file in the folder or repository, read into fp32 (hf).")
    trust_remote_code: bool = option(False, "Run Python code that the repository contains (hf).")
    new_tokens: list[str] = option([], "Strings of the template that become special tokens (hf).")
    n_layers: int | None = option(12, "Number of transformer blocks (gpt2).", at_least=1, at_most=1024)
    n_heads: int | None = option(12, "Number of attention heads; divides d_model (gpt2).", at_least=1)
    d_model: int | None = option(768, "Width of the residual stream (gpt2).", at_least=1)
    context_length: int | None = option(1024, "Longest sequence in tokens; hf: null is the model's own.", at_least=2)
    dropout: float = option(0.0, "Dropout probability in training.", at_least=0, below=1)
    activation_checkpointing: bool = option(False, "Recompute activations in the backward pass to save memory.")
    lr: float = option(5e-5, "Learning rate that suits this model; the default of optimizer.lr.", at_least=0)


@dataclass
class AdapterConfig:
    """Parameter-efficient fine-tuning with peft."""

    kind: str = option(
        "none",
        "none: every weight is trained; lora: low-rank updates (Hu et al. 2021); dora: with magnitudes apart (Liu et "
        "al. 2024); qlora: lora on 4-bit weights (Dettmers et al. 2023).",
        choices=("none", "lora", "dora", "qlora"),
    )
    rank: int = option(16, "Rank of the updates.", at_least=1, at_most=8192)
    alpha: float = option(32, "Updates are scaled by alpha / rank.", above=0, at_most=1e6)
    dropout: float = option(0.0, "Dropout probability on the adapter's input.", at_least=0, below=1)
    targets: Any = option(
        None, "Suffixes of module names or a regular expression; null: every linear layer of the blocks."
    )
    merge: bool = option(True, "true: the bundle is an ordinary model; false: it is a peft adapter.")
    lr: float = option(MISSING, "Learning rate of the trained weights; the default of optimizer.lr.", at_least=0)


@dataclass
class TemplateConfig:
    """The prompt template, a Jinja text; the only place where prompt text exists."""

    name: str = option(MISSING, "Name of the template; chat: the one of the model's tokenizer.")
    text: str | None = option(None, "Jinja text with instruction, input, system and response.")
    path: str | None = option(None, "File with the text.")
    next_turn: str | None = option(None, "Jinja text of the further turns of a conversation.")
