"""What the configuration of a model of transformers says about its text model, under the names of any architecture."""

import math
from typing import Any

from instruct_lit.errors import ConfigError

_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


def longest_context(config: Any) -> int | None:
    """The context for which a model was made; None where its configuration has none."""
    return _first(config, _LENGTHS)


def context_length_of(config: Any, given: int | None) -> int:
    """The longest context of a model with this configuration, or `given`, which must not be longer."""
    longest = longest_context(config)
    if given is None and longest is None:
        raise ConfigError(f"model.context_length=null: {config.model_type} has no maximum; give a number of tokens")
    if given is not None and longest is not None and given > longest:
        raise ConfigError(f"model.context_length={given}: {config.model_type} supports at most {longest}")
    return given or longest  # type: ignore[return-value]


def logit_scale(config: Any) -> float:
    """The factor from the head's output to the logits: Granite divides, Cohere multiplies."""
    config = config.get_text_config(decoder=True)
    if getattr(config, "logits_scaling", None):
        return 1 / config.logits_scaling
    return getattr(config, "logit_scale", None) or 1.0


def logit_cap(config: Any) -> float | None:
    """The soft cap of the logits, if any."""
    return _first(config, _LOGIT_CAPS)


def chunk_of(config: Any) -> float:
    """The number of tokens of a chunk where there are layers that attend within chunks (Llama 4), otherwise inf."""
    return _first(config, ("attention_chunk_size",)) or math.inf


def n_chosen_experts(config: Any) -> int | None:
    """The experts that the router of a layer chooses for a token; None for a model without experts."""
    return _first(config, ("num_experts_per_tok", "moe_topk", "top_k_experts"))


def set_dropouts(config: Any, dropout: float) -> None:
    """Set every dropout of a configuration and its parts, whatever its name; no layers are dropped."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            set_dropouts(value, dropout)
        elif "drop" in name and type(value) in (int, float) and not name.startswith(("classifier", "summary")):
            # A 0 stays of the type that transformers declares.
            setattr(config, name, dropout if dropout and "layerdrop" not in name else type(value)())


def _first(config: Any, names: tuple[str, ...]) -> Any:
    """The first value of these names that is a number above 0."""
    text = config.get_text_config(decoder=True)
    return next((getattr(text, name) for name in names if (getattr(text, name, None) or 0) > 0), None)
