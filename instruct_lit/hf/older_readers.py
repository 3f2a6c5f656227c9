"""Files of transformers 5 in words that transformers 4.57, and what is built on it, understands as well.

transformers 5 has renamed keys without a trace for older versions, which then fail or, worse, take their defaults: a
rotary base of 10,000 for one of 100,000. Both versions read what is written here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

INPUTS = ["input_ids", "attention_mask"]  # what `generate` is to get; else older tokenizers add `token_type_ids`
_OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "_model_name_or_path")


def spell_for_transformers_4(directory: Path, context_length: int, dtype: torch.dtype | None) -> None:
    """Rewrite `tokenizer_config.json` and, where there is one, `config.json` of a saved model.

    Args:
        context_length: the longest prompt with response; a tokenizer's own limit is kept where it is lower.
        dtype: of the weights in the directory.
    """
    _rewrite(directory / "tokenizer_config.json", lambda facts: _spell_tokenizer(facts, context_length))
    _rewrite(directory / "config.json", lambda facts: _spell_model(facts, dtype))


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if file.is_file():
        facts = change(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _spell_tokenizer(facts: dict[str, Any], context_length: int) -> dict[str, Any]:
    facts = {key: value for key, value in facts.items() if key not in _OF_THIS_MACHINE}
    if facts.get("tokenizer_class") == "TokenizersBackend":  # the same class, by its name of before
        facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(facts.get("extra_special_tokens"), list):  # a dictionary before
        facts["additional_special_tokens"] = facts.pop("extra_special_tokens")
    limit = min(facts.get("model_max_length") or context_length, context_length)
    return {**facts, "model_max_length": limit, "model_input_names": INPUTS}


def _spell_model(facts: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    facts = {key: value for key, value in facts.items() if key not in _OF_THIS_MACHINE}
    if dtype is not None and "dtype" in facts:
        facts["dtype"] = str(dtype).removeprefix("torch.")
    rope = facts.get("rope_parameters")
    if isinstance(rope, dict):
        facts |= _rope_of_before(rope)
    return {key: _spell_model(value, dtype) if isinstance(value, dict) else value for key, value in facts.items()}


def _rope_of_before(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and so on of `rope_parameters`, which may differ between kinds of layers."""
    whole = rope.get("full_attention", rope)
    window = rope.get("sliding_attention")
    before = {key: whole[key] for key in ("rope_theta", "partial_rotary_factor") if whole.get(key) is not None}
    if window is not None and "rope_theta" in window:
        before["rope_local_base_freq"] = window["rope_theta"]
    if whole.get("rope_type", "default") != "default":
        before["rope_scaling"] = {key: value for key, value in whole.items() if key not in before}
    return before
