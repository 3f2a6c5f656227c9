"""The model, its tokenizer and the prompt template from a configuration."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from instruct_lit.config.targets import plain
from instruct_lit.core.data.template import CHAT
from instruct_lit.errors import ConfigError, InstructLitError

if TYPE_CHECKING:
    from instruct_lit.core.data.encode import Tokenizer
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.model.causal import CausalLM
    from instruct_lit.core.model.gpt import GPTConfig
    from instruct_lit.hf.adapters import Adapter, Base
    from instruct_lit.hf.source import HFSource
    from instruct_lit.hf.tokenizer import HFTokenizer


@cache
def install_satellites() -> None:
    """Register with the core what installed satellites add to data, models and files."""
    for name in ("accel", "datasets", "hf"):
        module = f"instruct_lit.{name}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).install()


def model_of(config: DictConfig) -> CausalLM:
    """The model that the model group describes, with weights.

    Raises ConfigError when it cannot take the batch layout of `batching`.
    """
    install_satellites()
    model = _hf_of(config) if config.model.get("kind") == "hf" else _gpt_of(config)
    batching = config.get("batching")
    if model.no_layouts and batching and (batching.layout == "packed" or batching.shared_prefix):
        raise ConfigError(
            f"batching.layout={batching.layout}, batching.shared_prefix={batching.shared_prefix}: this model takes "
            f"padded rows only, since {model.no_layouts}; use batching=bucketed or batching=padded"
        )
    return model


def _gpt_of(config: DictConfig) -> CausalLM:
    from instruct_lit.core.model.pretrained import load_gpt

    model = config.model
    return load_gpt(
        path=_gpt_path(config) if model.pretrained else model.path,
        pretrained=model.pretrained,
        config=_configured_shape(model),
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
        seed=config.seed,
    )


def _gpt_path(config: DictConfig) -> Path:
    """The directory with the weights of a GPT-2, downloaded if the configuration names a repository."""
    from instruct_lit.core.model.pretrained import checkpoint_directory

    model = config.model
    if model.path is not None:
        return checkpoint_directory(model.path)
    from instruct_lit.hf.hub import download_gpt2

    return download_gpt2(model.repo, model.revision, _hub_cache(config))


def _hf_of(config: DictConfig) -> CausalLM:
    from instruct_lit.hf.files import load_hf

    names = ("pretrained", "context_length", "dropout", "activation_checkpointing")
    settings = {name: config.model[name] for name in names}
    adapter = config.get("adapter")
    n_bits = 4 if adapter is not None and adapter.kind == "qlora" else None
    model = load_hf(_hf_source(config), **settings, n_bits=n_bits, seed=config.seed)
    if config.model.get("new_tokens"):
        from instruct_lit.hf.files import grow_vocabulary

        grow_vocabulary(model, *_hf_tokenizer(config))
    return model


def _hf_tokenizer(config: DictConfig) -> tuple[HFTokenizer, list[int]]:
    """The model's own tokenizer, `model.new_tokens` added, and the ids of those that it did not have."""
    from instruct_lit.hf.files import import_transformers, opening
    from instruct_lit.hf.tokenizer import HFTokenizer, add_special_tokens, load_tokenizer

    import_transformers()
    source = _hf_source(config)
    with opening(source.path):
        tokenizer = load_tokenizer(source)
    names = list(config.model.get("new_tokens") or ())
    if not names:
        return tokenizer, []
    new = add_special_tokens(tokenizer.hf, names)
    return HFTokenizer(tokenizer.hf, markup=True), new


def check_adapter(config: DictConfig) -> None:
    """Raise ConfigError when the adapter cannot be trained on this machine, before anything is loaded."""
    if config.adapter.kind == "none":
        return
    from instruct_lit.hf.adapters import check_peft, check_qlora

    if config.adapter.kind == "qlora" and (why_not := check_qlora()) is not None:
        raise ConfigError(f"adapter=qlora: {why_not}")
    if config.adapter.kind != "none":
        check_peft()


def adapt(config: DictConfig, model: CausalLM) -> Adapter | None:
    """Put the configured adapter on the model, or freeze what `trainable` leaves out, and print what is trained."""
    from instruct_lit.core.model.trainable import choose_trainable

    settings, adapter = config.adapter, None
    if settings.kind == "none":
        choose_trainable(model, config.trainable)
    else:
        from instruct_lit.hf.adapters import Adapter

        dora = settings.kind == "dora"
        adapter = Adapter(model, settings.rank, settings.alpha, settings.dropout, plain(settings.targets), dora)
    trained, n = model.n_trained, model.n_parameters
    if trained < n:
        how = f"adapter {settings.kind}" if adapter else f"trainable={config.trainable}"
        print(f"{how}: {trained:,} of {n:,} parameters are trained ({trained / n:.2%})", flush=True)
    return adapter


def base_of(config: DictConfig) -> Base:
    """Where others find the model that an adapter goes on: a path or a hub id, and its revision."""
    from instruct_lit.hf.adapters import Base

    model = config.model
    if model.kind != "hf":
        return Base(str(_gpt_path(config).resolve()))
    path = Path(_hf_source(config).path)
    return Base(str(path.resolve())) if path.is_dir() else Base(model.path, model.revision)


def base_facts(config: DictConfig) -> dict[str, str | None]:
    """What a model card says of the base model: its hub id and its licence, each None where it is not known.

    Of a folder they are those of its bundle, or of the front matter of its README.md.
    """
    from huggingface_hub import metadata_load

    from instruct_lit.core.bundle import bundle_of, read_about

    model = config.model
    if not model.pretrained:
        return {"id": None, "licence": None}
    folder = bundle_of(model.path) if model.path is not None else None
    if folder is None or not folder.is_dir():
        name = model.repo if folder is None else model.path
        return {"id": name, "licence": "mit" if name.startswith("openai-community/gpt2") else None}
    try:
        found = read_about(folder).get("base")
        card = metadata_load(folder / "README.md") if (folder / "README.md").is_file() else None
    except (InstructLitError, OSError, ValueError):  # the card can do without
        found = card = None
    return found or {"id": None, "licence": (card or {}).get("license")}


def _hf_source(config: DictConfig) -> HFSource:
    """Where transformers finds the model and its tokenizer; of a run folder it is the bundle."""
    from instruct_lit.hf.source import HFSource

    model = config.model
    path = Path(model.path).expanduser()
    path = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    return HFSource(
        str(path) if path.is_dir() else model.path,
        model.revision,
        model.gguf_file,
        model.trust_remote_code,
        _hub_cache(config),
    )


def _hub_cache(config: DictConfig) -> Path:
    return Path(config.paths.cache) / "hub"


def context_of(config: DictConfig) -> int:
    """The context in tokens of the model that `model_of` would build, without its weights."""
    if config.model.kind != "hf":
        return shape_of(config).context_length
    from instruct_lit.hf.files import read_hf_config
    from instruct_lit.hf.model import context_length_of

    return context_length_of(read_hf_config(_hf_source(config)), config.model.context_length)


def shape_of(config: DictConfig) -> GPTConfig:
    """The shape of the GPT-2 that `model_of` would build, without its weights."""
    from instruct_lit.core.model.pretrained import checkpoint_directory, read_config

    model = config.model
    return read_config(checkpoint_directory(model.path)) if model.path else _configured_shape(model)


def _configured_shape(model: DictConfig) -> GPTConfig:
    from instruct_lit.core.model.gpt import GPTConfig

    return GPTConfig(
        context_length=model.context_length, d_model=model.d_model, n_layers=model.n_layers, n_heads=model.n_heads
    )


def language_of(config: DictConfig) -> tuple[Tokenizer, Template]:
    """The model's tokenizer and the prompt template; with `template=chat` the template is the tokenizer's own."""
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    if config.model.kind != "hf":
        return GPT2Tokenizer(), template_of(config)
    from instruct_lit.hf.chat_template import with_chat

    tokenizer, _ = _hf_tokenizer(config)
    if config.template.name == CHAT:
        return with_chat(tokenizer)
    return tokenizer, template_of(config).for_tokenizer(tokenizer)


def template_of(config: DictConfig) -> Template:
    """The prompt template whose text is in the configuration."""
    from instruct_lit.core.data.template import Template

    install_satellites()  # the limits of a template
    return Template(**config.template)
