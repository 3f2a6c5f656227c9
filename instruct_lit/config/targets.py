"""Constructors that a configuration names by `_target_`: which are allowed, what they may be given, and their call."""

import difflib
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.compose import nodes_of
from instruct_lit.config.schema.options import name_of
from instruct_lit.errors import ConfigError, InstructLitError

# What a `_target_` may name, by the last part of its key for sources and strategies, otherwise by the first one.
# `module.*` stands for every public class that the module exports. A source may come out of a stranger's run folder.
ALLOWED: dict[str, tuple[str, ...]] = {
    "source": (
        "instruct_lit.core.data.records.FileSource",
        "instruct_lit.datasets.demo.DemoSource",
        "instruct_lit.datasets.demo_tools.ToolDemoSource",
        "instruct_lit.datasets.plain_text.PlainTextSource",
        "instruct_lit.datasets.remote_sources.HubSource",
        "instruct_lit.datasets.remote_sources.UrlSource",
        "instruct_lit.datasets.stream_hub_source.StreamingHubSource",
    ),
    "optimizer": (
        "instruct_lit.core.training.optimizer.adamw",
        "instruct_lit.accel.adamw.adamw",
        "instruct_lit.accel.adamw_8bit.adamw_8bit",
        "instruct_lit.accel.muon.muon",
        "torch.optim.*",
    ),
    "finder": ("instruct_lit.sweeps.finders.LargestBatch", "instruct_lit.sweeps.finders.LearningRateRange"),
    "trainer": ("lightning.Trainer", "lightning.pytorch.Trainer"),
    "strategy": ("instruct_lit.distributed.fsdp.FullySharded", "lightning.pytorch.strategies.*"),
    "profiler": ("lightning.pytorch.profilers.*",),
    "callbacks": (
        "instruct_lit.reports.sample_answers.SampleAnswers",
        "instruct_lit.core.training.checkpoints.Checkpoint",
        "instruct_lit.core.training.early_stopping.EarlyStopping",
        "instruct_lit.resume.last_checkpoint.LastCheckpoint",
        "instruct_lit.evaluation.generation_quality.GenerationQuality",
        "instruct_lit.sweeps.pruning.Pruning",
        "lightning.pytorch.callbacks.*",
    ),
    "logger": (
        "instruct_lit.reports.loggers.TensorBoard",
        "instruct_lit.reports.loggers.Comet",
        "instruct_lit.reports.loggers.Csv",
        "instruct_lit.reports.loggers.Trackio",
        "lightning.pytorch.loggers.*",
    ),
}
_OWN_CODE = "what is yours is given in Python (docs/python-api.md), or as data in a file (data=files)"
SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable, Collection)


def allowed_for(key: str) -> tuple[str, ...]:
    """The targets that a key may have."""
    first, last = key.split(".")[0], key.split(".")[-1]
    return ALLOWED.get(last) or ALLOWED.get(first, ())


def is_listed(name: str, key: str) -> bool:
    """Whether a target is on the list of a key; `target_of` also checks that a module's name is one of its classes."""
    module, _, last = name.rpartition(".")
    return name in allowed_for(key) or (f"{module}.*" in allowed_for(key) and not last.startswith("_"))


def unlisted_targets(values: Any) -> Iterator[tuple[str, str]]:
    """Every `_target_` in plain values, at any depth, that is not on the list of its key: (key, target)."""
    for key, node in nodes_of(values):
        if isinstance(node, dict) and "_target_" in node and not is_listed(str(node["_target_"]), key):
            yield f"{key}._target_", str(node["_target_"])


def target_of(node: Any, key: str) -> Callable[..., Any]:
    """The constructor that a `_target_` node names, its arguments checked against the signature.

    Raises: ConfigError for a target that is not on the list of its key, one that does not exist, an unknown argument,
    and a simple value of another type than the signature's.
    """
    if not hasattr(node, "get"):
        raise ConfigError(f"{key}={node}: not a mapping; give one with a _target_")
    name, allowed = str(node.get("_target_")), allowed_for(key)
    refusal = f"{key}._target_={name}: not an allowed target; allowed are {', '.join(allowed)}; {_OWN_CODE}"
    if not is_listed(name, key):
        raise ConfigError(refusal)
    try:
        target = get_method(name)
    except Exception as error:
        raise ConfigError(f"{key}._target_={name}: cannot be imported ({error})") from error
    # A module exports functions and what it has imported too: only its library's own classes are meant.
    if name not in allowed and not (inspect.isclass(target) and target.__module__.startswith(name.split(".")[0])):
        raise ConfigError(refusal)
    check_arguments(target, name, {str(k): v for k, v in node.items() if k != "_target_"}, key)
    return target


def check_arguments(target: Callable[..., Any], name: str, arguments: Mapping[str, Any], key: str) -> None:
    """Raise ConfigError for an unknown argument of `target`, and for a simple value of another type than it has.

    Args:
        name: of the target, in messages.
    """
    parameters, hints = inspect.signature(target).parameters, type_hints(target)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for argument, value in arguments.items():
        if argument.startswith("_"):  # _partial_, _args_, … of hydra.utils.instantiate
            raise ConfigError(f"{key}.{argument}: not supported; allowed are the arguments of {name}")
        if argument not in parameters and not open_ended:
            close = difflib.get_close_matches(argument, parameters, n=1)
            surplus = " ".join(f"~{key}.{a}" for a in arguments if a not in parameters)
            hint = f"; did you mean {close[0]}?" if close else f"; leave it out ({surplus})"
            known = ", ".join(parameters)
            raise ConfigError(f"{key}.{argument}: {name} has no such argument{hint}\n  allowed: {known}")
        if argument in hints and not fits(value, hints[argument]):
            raise ConfigError(f"{key}.{argument}={value}: {name} requires {name_of(hints[argument])}")


def build(node: Any, key: str, *first: Any, **extra: Any) -> Any:
    """Build what a `_target_` node describes, with `first` before and `extra` beside the arguments of the node.

    Raises ConfigError when the constructor refuses its arguments.
    """
    return construct(target_of(node, key), without(node, "_target_"), key, *first, **extra)


def arguments_for(target: Callable[..., Any], node: Any) -> dict[str, Any]:
    """The plain values of a node's keys that are arguments of `target`."""
    return {str(k): v for k, v in plain(node).items() if k in inspect.signature(target).parameters}


def construct(target: Callable[..., Any], arguments: Any, key: str, *first: Any, **extra: Any) -> Any:
    """Build an object of a known constructor; ConfigError as `build` raises it."""
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{key}={arguments}: not a mapping of arguments; {{}} has all defaults")
    arguments = {str(k): v for k, v in arguments.items()}
    check_arguments(target, target.__name__, arguments, key)
    try:
        return target(*first, **arguments, **extra)
    except InstructLitError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {target.__name__} refuses its arguments: {error}") from error


def plain(node: Any) -> Any:
    """A node without OmegaConf, its interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def merged(key: str, *nodes: Any) -> Any:
    """The later nodes over the first. Raises: ConfigError, naming the key, for what the schema of the first refuses."""
    try:
        return OmegaConf.merge(*nodes)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


def without(node: Any, key: str) -> dict[str, Any]:
    """The plain mapping of a node without one key."""
    return {str(k): v for k, v in plain(node).items() if k != key}


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a constructor's arguments; empty where they are names for the type checker only."""
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError):
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the hinted type; numbers must be finite.

    A file holds numbers, texts, truth values, lists and mappings: an argument of any other type (an object, a function)
    cannot be given there.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is typing.Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in arguments)
    if hint is Any or isinstance(hint, typing.TypeVar | str):
        return True
    if value is None or hint in (None, type(None)):
        return value is None and hint in (None, type(None))
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if isinstance(hint, type) and issubclass(hint, str | os.PathLike):
        return isinstance(value, str)
    if isinstance(value, list | tuple | ListConfig):
        return (origin or hint) in SEQUENCES and _items_fit(list(value), arguments)
    if isinstance(value, Mapping | DictConfig):
        return "_target_" in value or (origin or hint) in (dict, Mapping)
    return isinstance(hint, type) and isinstance(value, hint)  # an object of the program


def _items_fit(values: list[Any], arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if len(arguments) == 2 and arguments[1] is not Ellipsis:  # tuple[float, float]
        return len(values) == 2 and all(map(fits, values, arguments))
    return all(fits(value, arguments[0]) for value in values)
