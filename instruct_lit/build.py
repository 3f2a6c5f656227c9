"""Objects from a configuration: what each group of `conf/` becomes.

Nodes with a `_target_` have the constructor's signature for a schema, and only this package's, torch's and lightning's
constructors may be named. No class receives a configuration; it receives its arguments from here.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import logging
import sys
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.build_model import CHAT, context_of, language_of, model_of, shape_of, template_of
from instruct_lit.errors import ConfigError, InstructLitError

if TYPE_CHECKING:
    from lightning import Callback, Trainer

    from instruct_lit.bundle import OpenedModel
    from instruct_lit.data.datamodule import InstructionData
    from instruct_lit.data.encode import Tokenizer
    from instruct_lit.data.template import Template
    from instruct_lit.generation.sampling import SamplingSettings
    from instruct_lit.model.causal import CausalLM

__all__ = ["context_of", "language_of", "model_of", "shape_of", "template_of"]  # callers find every builder here
ALLOWED_TARGETS = ("instruct_lit.", "torch.", "lightning.")


def check_targets(config: DictConfig) -> None:
    """Raise ConfigError for the first `_target_` node of a training configuration that could not be built."""
    target_of(config.data.source, "data.source")
    target_of(_without(config.optimizer, "weight_decay"), "optimizer")
    target_of(config.trainer, "trainer")
    for group in ("callbacks", "logger"):
        for name, node in (config[group] or {}).items():
            if node is not None:
                target_of(node, f"{group}.{name}")


def target_of(node: Any, key: str) -> Callable[..., Any]:
    """The constructor that a `_target_` node names, its arguments checked against the signature.

    Raises ConfigError for a target outside the allow-list, one that does not exist, an unknown argument, and a simple
    value of another type than the signature's.
    """
    name = node.get("_target_")
    if name is None or not str(name).startswith(ALLOWED_TARGETS):
        raise ConfigError(f"{key}._target_={name}: allowed are targets of {', '.join(ALLOWED_TARGETS)}")
    from hydra.utils import get_method

    try:
        target = get_method(name)
    except Exception as error:
        raise ConfigError(f"{key}._target_={name}: cannot be imported ({error})") from error
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for argument, value in node.items():
        if str(argument).startswith("_"):
            continue
        if argument not in parameters and not open_ended:
            close = difflib.get_close_matches(str(argument), parameters, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            allowed = ", ".join(parameters)
            raise ConfigError(f"{key}.{argument}: {name} has no such argument{hint}\n  allowed: {allowed}")
        if argument in hints and not _fits(value, hints[argument]):
            raise ConfigError(f"{key}.{argument}={value}: {name} wants {_name_of(hints[argument])}")
    return target


def build(node: Any, key: str, *first: Any, **extra: Any) -> Any:
    """Build what a `_target_` node describes, with `first` before and `extra` beside the arguments of the node.

    Raises ConfigError when the constructor refuses its arguments.
    """
    target = target_of(node, key)
    arguments = {str(k): v for k, v in _plain(node).items() if k != "_target_"}
    try:
        return target(*first, **arguments, **extra)
    except InstructLitError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {node['_target_']} refuses its arguments: {error}") from error


def data_of(config: DictConfig, template: Template, tokenizer: Tokenizer, context_length: int) -> InstructionData:
    """The data module, its length bounded by the model's context."""
    from instruct_lit.data.datamodule import InstructionData
    from instruct_lit.data.sources import FileSource

    data = config.data
    max_length = data.max_length or context_length
    if max_length > context_length:
        raise ConfigError(f"data.max_length={max_length}: the model's context is {context_length} tokens")
    own_files: dict[str, Any] = {
        f"{name}_source": FileSource(
            _plain(data[f"{name}_path"]), _plain(data.columns), data.on_bad_record, f"{data.name}_{name}", data.format
        )
        for name in ("test", "val")
        if data[f"{name}_path"] is not None
    }
    keys = ("seed", "batch_size", "eval_batch_size", "mask_prompt", "loss_on", "on_long", "pad_to", "n_workers")
    return InstructionData(
        build(data.source, "data.source"),
        template,
        tokenizer,
        Path(config.paths.cache),
        max_length=max_length,
        split=_plain(data.split),
        **{key: data[key] for key in keys},
        **config.batching,
        **own_files,
    )


def optimization_of(config: DictConfig) -> tuple[Any, Any]:
    """Functions that make the optimizer of a model, and the scheduler of an optimizer."""
    from instruct_lit.training.optimizer import parameter_groups, schedule

    node, weight_decay = _without(config.optimizer, "weight_decay"), config.optimizer.get("weight_decay", 0.0)

    def make_optimizer(model: Any) -> Any:
        return build(node, "optimizer", parameter_groups(model.named_parameters(), weight_decay))

    def make_scheduler(optimizer: Any, n_steps: int) -> Any:
        return partial(schedule, optimizer, n_steps)(**config.scheduler)

    return make_optimizer, make_scheduler


def trainer_of(config: DictConfig, ours: Sequence[Callback]) -> Trainer:
    """The Lightning trainer with the configured callbacks and loggers, ours in front."""
    from instruct_lit.training.hardware import default_precision

    # Lightning's hints are for its own users; its warnings stay.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*Checkpoint directory .* exists.*"):
        warnings.filterwarnings("ignore", message=message)
    callbacks = [build(node, f"callbacks.{k}") for k, node in (config.callbacks or {}).items() if node is not None]
    loggers = [build(node, f"logger.{k}") for k, node in (config.logger or {}).items() if node is not None]
    node = OmegaConf.merge(config.trainer)
    node.precision = node.precision or default_precision(node.accelerator)
    return build(
        node,
        "trainer",
        callbacks=[*ours, *callbacks],
        logger=loggers or False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def open_run(config: DictConfig) -> OpenedModel:
    """The finished model at `run`, with the template of `template` where one is given."""
    from instruct_lit.bundle import open_model

    given = config.template is not None and config.template.name != CHAT  # a chat template is in the directory
    return open_model(config.run, template_of(config) if given else None)


def base_of_run(config: DictConfig, opened: OpenedModel) -> CausalLM | None:
    """The model that a run folder's model started from; None where it is not known or was drawn at random."""
    saved = opened.directory.parent / "config.yaml"
    if not opened.about or not saved.is_file():
        return None
    started = OmegaConf.load(saved)
    if not started.model.pretrained:
        return None
    try:
        return model_of(OmegaConf.create({"model": started.model, "seed": 0, "paths": config.paths}))
    except InstructLitError as error:
        raise ConfigError(f"the model that {opened.directory.parent} started from: {error}; or leave it out") from error


def data_of_run(config: DictConfig, opened: OpenedModel) -> InstructionData:
    """The data of `data`, or where none are given those that the run was trained with, ready to be read.

    Raises ConfigError when they are neither given nor known.
    """
    saved = opened.directory.parent / "config.yaml"  # of the run folder that the bundle lies in
    node = config.data
    if node is None and opened.about and saved.is_file():
        node = OmegaConf.select(OmegaConf.load(saved), "data")
    if node is None:
        raise ConfigError(
            f"run={config.run}: no run folder, so the data must be given (data=files data.path=…, data=book)"
        )
    settings = OmegaConf.create({"paths": config.paths, "batching": {}, "data": node})
    data = data_of(settings, opened.template, opened.tokenizer, opened.model.config.context_length)
    data.prepare_data()
    data.setup()
    return data


def sampling_of(config: DictConfig) -> SamplingSettings:
    """The settings of generation."""
    from instruct_lit.generation.sampling import SamplingSettings

    settings = {key: value for key, value in _plain(config.generation).items() if key != "max_rows"}
    return SamplingSettings(**{**settings, "stop": tuple(settings["stop"])})


def answer_split(
    config: DictConfig, model: CausalLM, data: InstructionData, split: str, n_responses: int | None, title: str
) -> list[dict[str, Any]]:
    """The model's answers to the first `n_responses` examples of a split, with a progress bar."""
    from tqdm import tqdm

    from instruct_lit.evaluation.responses import answer
    from instruct_lit.generation.engine import Engine

    store, indices = data.examples_of(split)
    examples = [(int(i), store.example(i), store[i].prompt_ids) for i in indices[:n_responses]]
    with tqdm(total=len(examples), desc=title, unit="answer", dynamic_ncols=True, file=sys.stdout) as bar:
        engine = Engine(model, data.tokenizer, config.generation.max_rows)
        return answer(engine, data.template, examples, sampling_of(config), bar.update)


def need(module: str, extra: str, key: str) -> None:
    """Raise ConfigError that names the extra to install where a module of it is missing."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{key}: needs {module}; pip install 'instruct-lit[{extra}]'")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _without(node: Any, key: str) -> dict[str, Any]:
    return {str(k): v for k, v in _plain(node).items() if k != key}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError):  # a name that exists for the type checker only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a simple value has the hinted type; anything else than numbers, texts and truth values is let through."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    return True


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
