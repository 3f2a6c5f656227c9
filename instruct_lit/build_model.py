"""The model, its tokenizer and the prompt template from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.data.encode import Tokenizer
    from instruct_lit.data.template import Template
    from instruct_lit.model.causal import CausalLM
    from instruct_lit.model.gpt import GPTConfig

CHAT = "chat"  # the template of `conf/template` that the tokenizer brings


def model_of(config: DictConfig) -> CausalLM:
    """The model that the model group describes, with weights.

    Raises ConfigError when it cannot take the batch layout of `batching`.
    """
    model = _hf_of(config) if config.model.get("kind") == "hf" else _gpt_of(config)
    batching = config.get("batching")
    if model.no_layouts and batching and (batching.layout == "packed" or batching.shared_prefix):
        raise ConfigError(
            f"batching.layout={batching.layout}, batching.shared_prefix={batching.shared_prefix}: this model takes "
            f"padded rows only, since {model.no_layouts}; use batching=bucketed or batching=padded"
        )
    return model


def _gpt_of(config: DictConfig) -> CausalLM:
    from instruct_lit.model.pretrained import load_gpt

    model = config.model
    return load_gpt(
        path=model.path,
        repo=model.repo,
        revision=model.revision,
        pretrained=model.pretrained,
        config=_configured_shape(model),
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
        seed=config.seed,
        cache_dir=_hub_cache(config),
    )


def _hf_of(config: DictConfig) -> CausalLM:
    from instruct_lit.model.hf import load_hf

    names = ("pretrained", "context_length", "dropout", "activation_checkpointing")
    return load_hf(**_hf_place(config), **{name: config.model[name] for name in names}, seed=config.seed)


def _hf_place(config: DictConfig) -> dict[str, Any]:
    """Where transformers finds a model and its tokenizer."""
    path = Path(config.model.path).expanduser()
    path = path / "bundle" if (path / "bundle" / "config.json").is_file() else path  # a run folder
    place = {name: config.model[name] for name in ("revision", "gguf_file", "trust_remote_code")}
    return {"path": str(path) if path.is_dir() else config.model.path, "cache_dir": _hub_cache(config), **place}


def _hub_cache(config: DictConfig) -> Path:
    return Path(config.paths.cache) / "hub"


def context_of(config: DictConfig) -> int:
    """The context in tokens of the model that `model_of` would build, without its weights."""
    if config.model.kind != "hf":
        return shape_of(config).context_length
    from instruct_lit.model.hf import context_length_of, read_hf_config

    return context_length_of(read_hf_config(**_hf_place(config)), config.model.context_length)


def shape_of(config: DictConfig) -> GPTConfig:
    """The shape of the GPT-2 that `model_of` would build, without its weights."""
    from instruct_lit.model.pretrained import read_config

    model = config.model
    return read_config(Path(model.path).expanduser()) if model.path else _configured_shape(model)


def _configured_shape(model: DictConfig) -> GPTConfig:
    from instruct_lit.model.gpt import GPTConfig

    return GPTConfig(
        context_length=model.context_length, d_model=model.d_model, n_layers=model.n_layers, n_heads=model.n_heads
    )


def language_of(config: DictConfig) -> tuple[Tokenizer, Template]:
    """The model's tokenizer and the prompt template; with `template=chat` the template is the tokenizer's own."""
    from instruct_lit.data.tokenizer import GPT2Tokenizer

    if config.model.kind != "hf":
        return GPT2Tokenizer(), template_of(config)
    from instruct_lit.data.chat_template import with_chat
    from instruct_lit.data.hf_tokenizer import load_tokenizer
    from instruct_lit.model.hf import import_transformers, opening

    import_transformers()
    place = {name: value for name, value in _hf_place(config).items() if value is not None}
    with opening(place["path"]):
        tokenizer = load_tokenizer(**place)
    return with_chat(tokenizer) if config.template.name == CHAT else (tokenizer, template_of(config))


def template_of(config: DictConfig) -> Template:
    """The prompt template whose text is in the configuration."""
    from instruct_lit.data.template import Template

    return Template(**config.template)
