"""Whether a value of a configuration file fits the type that a constructor's signature gives an argument."""

import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable, Collection)


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


def name_of(hint: Any) -> str:
    """A type as a message names it."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
