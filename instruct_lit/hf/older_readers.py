"""Files of transformers 5 in words that transformers 4.57, and what is built on it, understands as well.

transformers 5 has renamed keys without a trace for older versions, which then fail or, worse, take their defaults: a
rotary base of 10,000 for one of 100,000. Both versions read what is written here.
"""

import json
import warnings
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
    file = directory / "config.json"
    _rewrite(file, lambda facts: _spell_model(facts, dtype))
    if file.is_file():
        written, rope = file.read_text(encoding="utf-8"), _rope_parameters(directory)
        _rewrite(file, _with_rope_of_before)
        if _rope_parameters(directory) != rope:  # of an architecture that never had these keys
            file.write_text(written, encoding="utf-8")


def _rope_parameters(directory: Path) -> Any:
    """What transformers reads from `config.json`; None where it has no class for it, as for code of a repository."""
    from transformers import AutoConfig

    try:
        with warnings.catch_warnings(action="ignore"):  # of the keys of before
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)  # nosec B615 (nor asked for)
    except Exception:  # unknown code may reject anything
        return None
    return getattr(config.get_text_config(decoder=True), "rope_parameters", None)


def tokenizer_limit(directory: Path) -> int | None:
    """The longest prompt with response that a saved tokenizer names; None where there is no tokenizer."""
    file = directory / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None


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
    return {key: _spell_model(value, dtype) if isinstance(value, dict) else value for key, value in facts.items()}


def _with_rope_of_before(facts: dict[str, Any]) -> dict[str, Any]:
    rope = facts.get("rope_parameters")
    if isinstance(rope, dict):
        facts = facts | _rope_of_before(rope)
    return {key: _with_rope_of_before(value) if isinstance(value, dict) else value for key, value in facts.items()}


def _rope_of_before(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and so on of `rope_parameters`, which may differ between kinds of layers."""
    whole = rope.get("full_attention", rope) or {}  # None where such layers have no rotary embedding
    window = rope.get("sliding_attention")
    before = {key: whole[key] for key in ("rope_theta", "partial_rotary_factor") if whole.get(key) is not None}
    if window is not None and "rope_theta" in window:
        before["rope_local_base_freq"] = window["rope_theta"]
    if whole.get("rope_type", "default") != "default":
        before["rope_scaling"] = {key: value for key, value in whole.items() if key not in before}
    return before
