"""How a key of the configuration is declared, with its documentation and its rules, and the check of single values."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

LARGEST = 2**31 - 1  # of whole numbers without a bound of their own; no count of this program is above it


@dataclass(frozen=True)
class Rules:
    """What a key means, and the values that it may have besides null: numbers are finite, texts are not empty."""

    doc: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, None for an allowed one."""
        if self.choices:
            return None if value in self.choices else f"allowed are {', '.join(self.choices)}"
        if value == "":
            return "must not be empty"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value):
            return "must be a finite number"
        at_most = LARGEST if self.at_most is None and isinstance(value, int) else self.at_most
        if self.at_least is not None and value < self.at_least:
            return f"must be at least {self.at_least}"
        if self.above is not None and value <= self.above:
            return f"must be above {self.above}"
        if at_most is not None and value > at_most:
            return f"must be at most {at_most}"
        if self.below is not None and value >= self.below:
            return f"must be below {self.below}"
        return None


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A key with a default value: a dataclass field with its documentation and rules beside it."""
    metadata = {"rules": Rules(doc, choices, at_least, above, at_most, below)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type, doc: str) -> Any:
    """A key that holds a group of keys."""
    return field(default_factory=schema, metadata={"rules": Rules(doc)})


@dataclass(frozen=True)
class Key:
    """A documented key of a command: its dotted name, type, default and rules; `group` names its dataclass."""

    name: str
    type_name: str
    default: Any
    rules: Rules
    group: type | None = None


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a schema with those of its groups behind each group, in the order of the declaration."""
    hints = typing.get_type_hints(schema)
    for declared in dataclasses.fields(schema):
        inner = group_of(hints[declared.name])
        default = None if inner else declared.default
        if declared.default_factory is not dataclasses.MISSING and not inner:
            default = declared.default_factory()
        name = f"{prefix}{declared.name}"
        yield Key(name, _type_name(hints[declared.name]), default, declared.metadata["rules"], inner)
        if inner:
            yield from keys_of(inner, f"{name}.")


def group_of(hint: Any) -> type | None:
    """The dataclass that a type names, also `X | None`; None for any other type."""
    parts = (hint, *typing.get_args(hint))
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    for module in ("typing.", f"{__package__}."):
        name = name.replace(module, "")
    return re.sub(r"\b[a-z]+\.", "", name).replace("| None", "or null")


def check_values(config: DictConfig, prefix: str = "") -> list[str]:
    """Problems with single values of a composed configuration, by the rules in its schema."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return []
    names = [declared.name for declared in dataclasses.fields(schema)]
    problems = [_unknown_key(prefix, str(key), names) for key in config if key not in (*names, "hydra")]
    for declared in dataclasses.fields(schema):
        if OmegaConf.is_missing(config, declared.name):
            continue
        value, rules = config[declared.name], declared.metadata["rules"]
        if isinstance(value, DictConfig):
            problems += check_values(value, f"{prefix}{declared.name}.")
        elif value is not None and (problem := rules.problem(value)):
            problems.append(f"{prefix}{declared.name}={value}: {problem}")
    return problems


def _unknown_key(prefix: str, key: str, names: list[str]) -> str:
    """The problem with a key that was added (`+adapter.use_rslora=true`) and that no part of the program reads."""
    close = difflib.get_close_matches(key, names, n=1)
    remedy = f"did you mean {prefix}{close[0]}?" if close else f"allowed are {', '.join(names)}"
    return f"{prefix}{key}: no such key; {remedy}"


def missing_runs(runs: Any, key: str = "run") -> list[str]:
    """Problems with the finished models that a command is given, one (`run=…`) or a list of them."""
    given = [] if runs is None else list(runs) if isinstance(runs, list | ListConfig) else [runs]
    kinds = "a run folder, a bundle or a Hugging Face directory"
    if not given:
        return [f"{key}=…: give {kinds}"]
    return [f"{key}={run}: no such folder ({kinds})" for run in given if not Path(str(run)).expanduser().is_dir()]


__all__ = ["MISSING", "Key", "Rules", "check_values", "group", "group_of", "keys_of", "missing_runs", "option"]
