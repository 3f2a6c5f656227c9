"""A finished model on disk: a Hugging Face directory with its template, data fingerprint and metrics beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from instruct_lit import __version__
from instruct_lit.data.template import Template
from instruct_lit.data.tokenizer import EOT, GPT2Tokenizer
from instruct_lit.errors import CheckpointError
from instruct_lit.model.gpt import GPT
from instruct_lit.model.pretrained import WEIGHTS, hf_config, hf_state_dict

OURS = "instruct_lit.json"


@dataclass(frozen=True)
class Bundle:
    """What a bundle says besides its weights; `directory` is what the weights are loaded from."""

    directory: Path
    template: Template
    about: Mapping[str, Any]


def save_bundle(
    directory: Path,
    model: GPT,
    tokenizer: GPT2Tokenizer,
    template: Template,
    generation: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Write the model so that transformers, and everything that reads its directories, opens it.

    `generation` holds the default settings of generation, `about` data fingerprint, metrics and provenance. The
    directory is written under a temporary name and renamed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(hf_state_dict(model), temporary / WEIGHTS, metadata={"format": "pt"})
        _write(temporary / "config.json", hf_config(model.config))
        for name, content in tokenizer.vocab_files().items():
            (temporary / {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}[name]).write_bytes(content)
        _write(
            temporary / "tokenizer_config.json",
            {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": model.config.context_length,
                "add_prefix_space": False,
                # The text <|endoftext|> inside a message is ordinary text here as in training.
                "split_special_tokens": True,
                **{name: EOT for name in ("bos_token", "eos_token", "unk_token")},
                "chat_template": chat_template(template),
            },
        )
        _write(temporary / "generation_config.json", _hf_generation(generation, tokenizer.eot_id))
        _write(
            temporary / OURS,
            {
                "version": __version__,
                "template": {"name": template.name, "text": template.text},
                "generation": dict(generation),
                **about,
            },
        )
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_bundle(directory: Path) -> Bundle:
    """Read what a bundle, or a run folder with one, says about itself.

    Raises CheckpointError when there is no such file or it is damaged.
    """
    directory = Path(directory).expanduser()
    if (directory / "bundle" / OURS).is_file():
        directory = directory / "bundle"
    file = directory / OURS
    try:
        about = json.loads(file.read_text())
        template = Template(about["template"]["name"], about["template"]["text"])
    except OSError as error:
        raise CheckpointError(f"run={directory}: no bundle there ({OURS} cannot be read: {error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    return Bundle(directory, template, about)


def chat_template(template: Template) -> str:
    """Jinja for transformers that renders a conversation's last user message as our prompt."""
    return (
        "{%- set instruction = messages[-1]['content'] -%}{%- set input = '' -%}"
        # The prompt's own white space is protected from the trimming of transformers' Jinja settings.
        + template.prompt_source
    )


def _hf_generation(settings: Mapping[str, Any], eot_id: int) -> dict[str, Any]:
    sampled = settings["temperature"] > 0
    values: dict[str, Any] = {
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        "max_new_tokens": settings["max_new_tokens"],
        "do_sample": sampled,
        "repetition_penalty": settings["repetition_penalty"],
    }
    if sampled:
        values |= {key: settings[key] for key in ("temperature", "top_k", "top_p") if settings[key] is not None}
    return values


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
