"""The model, its tokenizer, the prompt template and the settings of generation from a configuration.

No class receives a configuration: it receives its arguments from here.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import metadata_load
from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.run_folder import saved_group
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.targets import arguments_for, plain
from instruct_lit.core import bundle
from instruct_lit.core.bundle import OpenedModel, bundle_of, read_about
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer, Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPTConfig
from instruct_lit.core.model.pretrained import DTYPES, checkpoint_directory, load_gpt, read_config
from instruct_lit.errors import ConfigError, InstructLitError, TemplateError

if TYPE_CHECKING:
    from instruct_lit.hf.adapters import Adapter
    from instruct_lit.hf.source import HFSource
    from instruct_lit.hf.tokenizer import HFTokenizer


@cache
def install_satellites() -> None:
    """Register with the core what installed satellites add to data, models and files."""
    for name in ("accel", "datasets", "evaluation", "hf"):
        if has_satellite(name):
            importlib.import_module(f"instruct_lit.{name}").install()


def model_of(config: DictConfig) -> CausalLM:
    """The model that the model group describes, with weights."""
    install_satellites()
    if config.model.get("kind") != "hf":
        given = arguments_for(load_gpt, config.model)
        if config.model.pretrained:
            given["path"] = _gpt_path(config)
        return load_gpt(**given, config=GPTConfig(**arguments_for(GPTConfig, config.model)), seed=config.seed)
    from instruct_lit.hf.files import grow_vocabulary, load_hf

    n_bits = 4 if OmegaConf.select(config, "adapter.kind") == "qlora" else None
    given = {**arguments_for(load_hf, config.model), "n_bits": n_bits, "seed": config.seed, **_weights_of(config)}
    model = load_hf(hf_source(config), **given)
    if config.model.get("new_tokens"):
        grow_vocabulary(model, *_hf_tokenizer(config))
    return model


def _weights_of(config: DictConfig) -> dict[str, Any]:
    """The precision of a model of transformers in memory, and the device on which its weights are made.

    Weights that are trained are in fp32 from the start; those of shards are read in host memory.
    """
    from instruct_lit.config.check_training import computes_in_half, is_sharded
    from instruct_lit.hf.files import own_device

    if OmegaConf.select(config, "trainer") is None:  # a base that is only evaluated
        return {"dtype": None, "liger": False}
    adapter, sharded = OmegaConf.select(config, "adapter.kind", default="none"), is_sharded(config)
    all_trained = adapter == "none" and config.get("trainable", "all") == "all" and config.get("fit", True)
    dtypes = {"auto": None if computes_in_half(config) else torch.float32, **DTYPES}
    dtype = torch.float32 if sharded or all_trained else dtypes[config.model.get("dtype", "auto")]
    on_gpu = config.trainer.accelerator in ("auto", "gpu", "cuda") and own_device().type == "cuda"
    return {"dtype": dtype, "device": own_device() if on_gpu and not sharded else None}


def _gpt_path(config: DictConfig) -> Path:
    """The directory with the weights of a GPT-2, downloaded if the configuration names a repository."""
    model = config.model
    if model.path is not None:
        directory = checkpoint_directory(model.path)
        if has_satellite("hf") and not read_about(directory):
            from instruct_lit.hf.tokenizer import has_other_tokenizer

            if has_other_tokenizer(directory):
                reason = f"its tokenizer is not GPT-2's; give model=hf model.path={model.path}"
                raise ConfigError(f"model.path={model.path}: {reason}")
        return directory
    from instruct_lit.hf.hub import download_gpt2

    return download_gpt2(model.repo, model.revision, Path(config.paths.cache) / "hub")


def _hf_tokenizer(config: DictConfig) -> tuple[HFTokenizer, list[int]]:
    """The model's own tokenizer, `model.new_tokens` added, and the ids of those that it did not have."""
    from instruct_lit.hf.files import import_transformers, opening
    from instruct_lit.hf.tokenizer import HFTokenizer, add_special_tokens, load_tokenizer

    import_transformers()
    source = hf_source(config)
    with opening(source):
        tokenizer = load_tokenizer(source)
    if not config.model.get("new_tokens"):
        return tokenizer, []
    new = add_special_tokens(tokenizer.hf, list(config.model.new_tokens))
    return HFTokenizer(tokenizer.hf, markup=True), new


def check_vocabulary(model: CausalLM, tokenizer: Tokenizer, template: Template) -> None:
    """Raise ConfigError when the tokenizer may give an id that the model's embedding has no row for.

    Special tokens that no template makes, such as those of images, may lie outside: no text is encoded to them.
    """
    n_rows = model.config.n_vocab
    if tokenizer.n_vocab <= n_rows:
        return
    hf = getattr(tokenizer, "hf", None)
    if hf is None:
        outside = {tokenizer.decode([n]): n for n in range(n_rows, tokenizer.n_vocab)}
    else:
        made = {tokenizer.eot_id, *tokenizer.prompt_start, hf.bos_token_id, hf.eos_token_id}
        special = {n for n, token in hf.added_tokens_decoder.items() if token.special} - made
        without_row = {name: n for name, n in hf.get_vocab().items() if n >= n_rows}
        outside = {name: n for name, n in without_row.items() if n not in special or name in template.text}
    if outside:
        name, number = min(outside.items(), key=lambda item: item[1])
        remedy = f"; model.new_tokens=[{name!r}] adds the missing rows" if hf is not None else ""
        raise ConfigError(
            f"model: the embedding has {n_rows} rows, and {len(outside)} tokens of the tokenizer lie outside, the "
            f"first is {name!r} ({number}); use the tokenizer that the model was trained with{remedy}"
        )


def adapt(config: DictConfig, model: CausalLM) -> Adapter | None:
    """Put the configured adapter on the model, or freeze what `trainable` leaves out, and print what is trained."""
    settings, adapter = config.adapter, None
    if settings.kind == "none":
        if config.trainable != "all":
            from instruct_lit.hf.trainable import choose_trainable

            choose_trainable(model, config.trainable)
    else:
        from instruct_lit.hf.adapters import Adapter

        adapter = Adapter(model, **arguments_for(Adapter, settings), dora=settings.kind == "dora")
    if config.fit and getattr(model, "is_half", False):
        from instruct_lit.hf.trainable import train_in_fp32

        train_in_fp32(model)
    trained, n = n_trained(model), model.n_parameters
    if trained < n:
        how = f"adapter {settings.kind}" if adapter else f"trainable={config.trainable}"
        print(f"{how}: {trained:,} of {n:,} parameters are trained ({trained / n:.2%})", flush=True)
    return adapter


def n_trained(model: CausalLM) -> int:
    """Number of parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def base_of(config: DictConfig) -> HFSource:
    """Where others find the base model of an adapter: a path or a hub id, and its revision."""
    from instruct_lit.hf.source import HFSource

    model = config.model
    if model.kind != "hf":
        return HFSource(str(_gpt_path(config).resolve()))
    path = Path(hf_source(config).path)
    return HFSource(str(path.resolve())) if path.is_dir() else HFSource(model.path, model.revision)


def base_facts(config: DictConfig) -> dict[str, str | None]:
    """What a model card says of the base model: its hub id and its licence, each None where it is not known.

    Of a folder they are those of its bundle, or of the front matter of its README.md.
    """
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


def hf_source(config: DictConfig) -> HFSource:
    """Where transformers finds the model and its tokenizer; of a run folder it is the bundle."""
    from instruct_lit.hf.source import HFSource

    path = Path(config.model.path).expanduser()
    path = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    given = arguments_for(HFSource, config.model) | {"path": str(path) if path.is_dir() else config.model.path}
    return HFSource(**given, cache_dir=Path(config.paths.cache) / "hub")


def context_of(config: DictConfig) -> int:
    """The context in tokens of the model that `model_of` would build, without its weights."""
    if config.model.kind != "hf":
        return shape_of(config).context_length
    from instruct_lit.hf.configuration import context_length_of
    from instruct_lit.hf.files import read_hf_config

    return context_length_of(read_hf_config(hf_source(config)), config.model.context_length)


def shape_of(config: DictConfig) -> GPTConfig:
    """The shape of the GPT-2 that `model_of` would build, without its weights."""
    model = config.model
    return read_config(checkpoint_directory(model.path)) if model.path else GPTConfig(**arguments_for(GPTConfig, model))


def language_of(config: DictConfig) -> tuple[Tokenizer, Template]:
    """The model's tokenizer and the prompt template; with `template=chat` the template is the tokenizer's own."""
    if config.model.kind != "hf":
        return GPT2Tokenizer(), template_of(config)
    from instruct_lit.hf.chat_template import with_chat
    from instruct_lit.hf.tokenizer import HFTokenizer

    tokenizer, _ = _hf_tokenizer(config)
    if config.template.name == CHAT:
        thoughts = OmegaConf.select(config, "data.thoughts", default="keep")
        return with_chat(tokenizer, plain(config.template.get("variables")), config.template.get("variant"), thoughts)
    template = template_of(config)
    texts = (one.text for one in (template, template.next_turn) if one is not None)
    if any(map(tokenizer.special_tokens.find, texts)):  # as transformers reads them in the bundle's chat template
        tokenizer = HFTokenizer(tokenizer.hf, markup=True)
    return tokenizer, template.for_tokenizer(tokenizer)


def template_of(config: DictConfig) -> Template:
    """The prompt template whose text, or the path of its file, is in the configuration."""
    install_satellites()  # the limits of a template
    own = config.template
    text, path = own.get("text"), own.get("path")
    if path is not None:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TemplateError(f"template.path={path}: cannot be read as UTF-8 text ({reason})") from error
    thoughts = OmegaConf.select(config, "data.thoughts", default="keep")
    if thoughts != "keep" and isinstance(text, str):  # in the text it is in the key of the data and in the bundle
        text = f"{{#- thoughts: {thoughts} +#}}{text}"
    return Template(own.name, text, own.get("next_turn"))


def labels_of(runs: list[str]) -> list[str]:
    """The shortest ends of the paths that distinguish the runs."""
    parts = [[p for p in Path(run).expanduser().resolve().parts if p != "bundle"] for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        labels = ["_".join(p[-n:]).strip("/") for p in parts]
        if len(set(labels)) == len({tuple(p) for p in parts}):
            break
    return labels


def open_model(run: str | Path, template: Template | None = None, as_stored: bool = False) -> OpenedModel:
    """Open a run folder, a bundle or a Hugging Face directory (`instruct_lit.core.bundle.open_model`)."""
    install_satellites()
    return bundle.open_model(run, template, as_stored=as_stored)


def given_template(config: DictConfig) -> Template | None:
    """The template of `template`; None where none is given, or the chat template, which is in the directory."""
    return template_of(config) if config.template is not None and config.template.name != CHAT else None


def base_of_run(config: DictConfig, opened: OpenedModel) -> CausalLM | None:
    """The model that a run folder's model started from; None where it is not known or was drawn at random.

    Code that comes with it is not run, whatever the folder says: it may be a stranger's.
    """
    model = saved_group(opened.directory.parent, "model", config.paths.cache) if opened.about else None
    if model is None or not model.pretrained:
        return None
    try:
        return model_of(OmegaConf.create({"model": model, "seed": 0, "paths": config.paths}))
    except InstructLitError as error:
        raise ConfigError(f"the model that {opened.directory.parent} started from: {error}; or leave it out") from error


def sampling_of(config: DictConfig) -> SamplingSettings:
    """The settings of generation."""
    settings = arguments_for(SamplingSettings, config.generation)
    sampling = SamplingSettings(**settings | {"stop": tuple(settings["stop"])})
    for key in ("top_k", "top_p") if sampling.is_greedy else ():
        if settings[key] is not None:
            text = f"generation.{key}={settings[key]}: without effect at generation.temperature={sampling.temperature}"
            warnings.warn(f"{text}, which takes the most likely token", stacklevel=2)
    return sampling


def engine_options(config: DictConfig) -> dict[str, Any]:
    """How an `Engine` works on this machine: the settings of generation that are not the answer's."""
    from instruct_lit.config.check_machine import warn_of_bf16

    warn_of_bf16("auto", "generation.dtype", config.generation.dtype)
    options: dict[str, Any] = {"max_rows": config.generation.max_rows}
    if config.generation.dtype is not None:
        from instruct_lit.accel.bf16_weights import BF16Weights

        options["make_weights"] = BF16Weights
    if not config.generation.cuda_graphs:
        options["make_loops"] = ()
    return options
