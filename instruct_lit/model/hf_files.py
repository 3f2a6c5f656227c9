"""A model of transformers on disk: the directory that others open, and our model out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_lit.data.hf_tokenizer import HFTokenizer, load_tokenizer
from instruct_lit.model.hf import HFModel, import_transformers, load_hf, opening


def write_hf(
    directory: Path, model: HFModel, tokenizer: HFTokenizer, chat_template: str, generation: Mapping[str, Any]
) -> None:
    """Write weights, configuration, tokenizer and generation defaults, as `AutoModelForCausalLM` wants them.

    `chat_template` is the Jinja that renders our prompt, `generation` the defaults under transformers' names. The token
    that closes our responses ends generation, beside those that the model had.
    """
    hf, before = model.hf, tokenizer.hf.chat_template
    defaults = hf.generation_config
    ends = defaults.eos_token_id if isinstance(defaults.eos_token_id, list) else [defaults.eos_token_id]
    ends = list(dict.fromkeys([tokenizer.eot_id, *(end for end in ends if end is not None)]))
    defaults.update(eos_token_id=ends, pad_token_id=tokenizer.eot_id, **generation)
    hf.save_pretrained(directory)
    try:
        tokenizer.hf.chat_template = chat_template
        tokenizer.hf.save_pretrained(directory)
    finally:
        tokenizer.hf.chat_template = before


def read_hf(directory: Path) -> tuple[HFModel, HFTokenizer]:
    """Open what `write_hf`, or any other program, wrote."""
    import_transformers()
    model = load_hf(str(directory))
    with opening(str(directory)):
        return model, load_tokenizer(str(directory))
