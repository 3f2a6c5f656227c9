"""Objects from a configuration: what each group of `conf/` becomes.

Nodes with a `_target_` have the constructor's signature for a schema, and only this package's and lightning's
constructors and torch's optimizers may be named. No class receives a configuration: it receives its arguments from
here.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.check_resources import check_resources, try_optimizer
from instruct_lit.config.data_builders import data_of, data_of_run, source_nodes
from instruct_lit.config.model_builders import (
    adapt,
    base_facts,
    base_of,
    check_adapter,
    context_of,
    install_satellites,
    language_of,
    model_of,
    shape_of,
    template_of,
)
from instruct_lit.config.run_folder import saved_group
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.targets import plain, target_of, without
from instruct_lit.core.data.template import CHAT
from instruct_lit.errors import ConfigError, InstructLitError

if TYPE_CHECKING:
    from instruct_lit.core.bundle import OpenedModel
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.generation.responses import ResponseCache
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.core.model.causal import CausalLM

# Callers find every builder here.
__all__ = [
    "adapt", "base_facts", "base_of", "check_adapter", "context_of", "data_of", "data_of_run", "install_satellites",
    "language_of", "model_of", "shape_of", "template_of",
]  # fmt: skip


def check_targets(config: DictConfig) -> None:
    """Raise ConfigError for the first `_target_` node of a training configuration that could not be built."""
    for key, node in source_nodes(config).items():
        target_of(node.source, f"{key}.source")
    target_of(without(config.optimizer, "weight_decay"), "optimizer")
    if config.optimizer["_target_"] == "torch.optim.Muon":
        raise ConfigError("optimizer._target_=torch.optim.Muon: takes matrices only; optimizer=muon gives it those")
    if config.finder is not None:
        target_of(config.finder, "finder")
    target_of(without(config.trainer, "strategy"), "trainer")
    for part in ("strategy", "profiler"):
        if OmegaConf.is_dict(config.trainer.get(part)):
            target_of(config.trainer[part], f"trainer.{part}")
    for group in ("callbacks", "logger"):
        for name, node in (config[group] or {}).items():
            if node is not None:
                target_of(node, f"{group}.{name}")


def check_machine(config: DictConfig) -> None:
    """Raise ConfigError when adapter, optimizer or step cannot run on this machine, before anything is loaded.

    Warns of a precision in which a processor is many times slower.
    """
    check_adapter(config)
    check_resources(config)
    warn_of_bf16(config.trainer.accelerator, "trainer.precision", config.trainer.precision)
    if config.optimizer["_target_"] == "instruct_lit.accel.adamw_8bit.adamw_8bit":
        from instruct_lit.accel.adamw_8bit import need_bitsandbytes

        need_bitsandbytes()
    wanted = [name for name in ("compile", "cuda_graphs") if config[name]]
    if wanted:
        if not has_satellite("accel"):
            raise ConfigError(f"{wanted[0]}=true: needs the folder instruct_lit/accel; leave it out")
        from instruct_lit.accel.hardware import default_precision
        from instruct_lit.core.model.device import has_gpu

        if config.trainer.accelerator == "cpu" or not has_gpu():
            raise ConfigError(f"{wanted[0]}=true: is for a GPU, and this run has none")
        if "cuda_graphs" in wanted and config.trainer.precision is None and default_precision("gpu") == "32-true":
            raise ConfigError("cuda_graphs=true: this GPU does not compute in bf16")
    try_optimizer(config)


def warn_of_bf16(accelerator: str, key: str, wanted: str | None) -> None:
    """Warn when a processor that cannot multiply in bf16 is told to."""
    if not has_satellite("accel"):
        return
    from instruct_lit.accel.compat_torch import has_bf16_products
    from instruct_lit.core.model.device import has_gpu

    if str(wanted).startswith("bf") and (accelerator == "cpu" or not has_gpu()) and not has_bf16_products():
        warnings.warn(
            f"{key}={wanted}: this processor cannot multiply in bf16, and torch takes ten times as long and more; "
            "left out, the precision is the fastest that it has",
            stacklevel=2,
        )


def open_run(config: DictConfig) -> OpenedModel:
    """The finished model at `run`, with the template of `template` where one is given."""
    return open_model(config.run, given_template(config))


def open_model(run: str | Path, template: Template | None = None) -> OpenedModel:
    """Open a run folder, a bundle or a Hugging Face directory (`instruct_lit.core.bundle.open_model`)."""
    from instruct_lit.core import bundle

    install_satellites()
    return bundle.open_model(run, template)


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
    from instruct_lit.core.generation.sampling import SamplingSettings

    given = plain(config.generation)
    settings = {field.name: given[field.name] for field in fields(SamplingSettings)}
    return SamplingSettings(**{**settings, "stop": tuple(settings["stop"])})


def engine_options(config: DictConfig) -> dict[str, Any]:
    """How an `Engine` works on this machine: the settings of generation that are not the answer's."""
    warn_of_bf16("auto", "generation.dtype", config.generation.dtype)
    options: dict[str, Any] = {"max_rows": config.generation.max_rows}
    if config.generation.dtype is not None:
        from instruct_lit.accel.bf16_weights import BF16Weights

        options["make_weights"] = BF16Weights
    return options


def answer_split(
    config: DictConfig,
    model: CausalLM,
    data: InstructionData,
    split: str,
    n_responses: int | None,
    title: str,
    cache: ResponseCache | None = None,
) -> list[dict[str, Any]]:
    """The model's answers to the first `n_responses` examples of a split, with a progress bar."""
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.training.answers import answer_split as answer

    engine = Engine(model, data.tokenizer, **engine_options(config))
    return answer(engine, data, split, n_responses, sampling_of(config), title, cache=cache)
