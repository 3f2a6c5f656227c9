"""How a key of the configuration is declared, with its documentation and its rules, and the check of single values."""

import ast
import copy
import dataclasses
import difflib
import inspect
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from instruct_lit.errors import ConfigError, InstructLitError, similar

LARGEST = 2**31 - 1  # of whole numbers without a bound of their own; no count of this program is above it
MAX_FOLDERS = 500  # that are searched for runs on each level of a folder
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
NO_MAPPING = "must be a mapping"
FINISHED = "a run folder, a bundle or a Hugging Face directory"
# What `Rules.exists` may be: what is missing, what to give, and the test of a path.
EXISTING = {
    "file": ("file", "a file", Path.is_file),
    "folder": ("folder", "a folder", Path.is_dir),
    "records": ("file or folder", "a file, a folder or a list of files", Path.exists),
    "run": (f"folder ({FINISHED})", FINISHED, Path.is_dir),
}
Relation = tuple[Any, str, str] | str | None  # (whether it is violated, key, reason), or the message of a violated one


def sentence_of(schema: type) -> str:
    """The first line of a schema's docstring, also under `python -OO`, which strips docstrings."""
    stripped = sys.flags.optimize >= 2  # a dataclass then has its signature in place of the docstring
    doc = ast.get_docstring(ast.parse(inspect.getsource(schema)).body[0]) if stripped else schema.__doc__  # type: ignore[arg-type]
    return str(doc).splitlines()[0]


@dataclass(frozen=True)
class Rules:
    """What a key means, and the values that it may have besides null: numbers are finite, texts are not empty.

    Args:
        fraction: a float is a fraction up to 1, an int a number.
        exists: the path, or each of a list of paths, is one of `EXISTING`.
        mapping: a mapping.
        items: a mapping, and each item is null or a mapping: why not another value.
        required: null is not allowed.
    """

    doc: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    fraction: bool = False
    exists: str = ""
    mapping: bool = False
    items: str = ""
    required: bool = False

    def problems(self, key: str, value: Any) -> list[str]:
        """What is wrong with the value of a key, with the key and the value."""
        mapping = self.mapping or self.items
        if mapping and not isinstance(value, DictConfig) and (self.required or value is not None):
            return [f"{key}={shown(value)}: {NO_MAPPING}"]
        if self.items:
            wrong = {name: item for name, item in (value or {}).items() if not isinstance(item, DictConfig | None)}
            return [f"{key}.{name}={shown(item)}: {self.items}" for name, item in wrong.items()]
        if self.exists and (self.required or value is not None):
            return self._missing_paths(key, value)
        reason = None if value is None else self._reason(value)
        return [f"{key}={shown(value)}: {reason}"] if reason else []

    def _missing_paths(self, key: str, value: Any) -> list[str]:
        what, wanted, exists = EXISTING[self.exists]
        if value is None or (self.required and not value):
            return [f"{key}=…: give {wanted}"]
        paths = list(value) if isinstance(value, list | ListConfig) else [value]
        if not paths or not all(isinstance(path, str) and path for path in paths):
            return [f"{key}={shown(value)}: give {wanted}"]
        folders = [Path(path).expanduser() for path in paths]
        problems = [f"{key}={path}: no such {what}{similar(path)}" for path in folders if not exists(path)]
        for folder in folders if self.exists == "run" and not problems else ():
            if runs := runs_in(folder):
                some = ", ".join([*runs[:2], *("…" for _ in runs[2:3])])
                problems.append(f"{key}={folder}: a folder of {len(runs)} runs; give one of them: {key}={some}")
        return problems

    def _reason(self, value: Any) -> str | None:
        if self.choices:
            return None if str(value) in self.choices else f"allowed are {', '.join(self.choices)}"
        if value == "":
            return "must not be empty"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value):
            return "must be a finite number"
        for name, holds in BOUNDS.items():
            default = LARGEST if name == "at_most" and isinstance(value, int) else None
            bound = default if getattr(self, name) is None else getattr(self, name)
            if bound is not None and not holds(value, bound):
                return f"must be {name.replace('_', ' ')} {bound}"
        if self.fraction and isinstance(value, float) and value > 1:
            return "must be a fraction up to 1, or a whole number"
        return None


def runs_in(folder: Path) -> list[str]:
    """The finished runs in a folder that is none itself, the newest first: at most four levels down."""
    if (folder / "bundle").is_dir() or (folder / "config.json").is_file():
        return []
    found: list[Path] = []
    level = [folder]
    for _ in range(4):
        level = list(islice((child for parent in level for child in _folders_in(parent)), MAX_FOLDERS))
        found += (child for child in level if (child / "bundle").is_dir())
    return [str(run) for run in sorted(found, key=lambda run: (run / "bundle").stat().st_mtime, reverse=True)]


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (child for child in folder.iterdir() if child.is_dir())


def option(default: Any, doc: str, **rules: Any) -> Any:
    """A key with a default value: a dataclass field with its documentation and `Rules` beside it."""
    metadata = {"rules": Rules(doc, **rules)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def seed_option(doc: str, default: Any = 123) -> Any:
    """A key that holds the seed of random numbers."""
    return option(default, doc, at_least=0, at_most=2**32 - 1)


def progress_option() -> Any:
    """The key that selects how progress is shown."""
    doc = "How progress is shown; auto: bars on a terminal, elsewhere and with TERM=dumb plain lines."
    return option("auto", doc, choices=("auto", "bar", "lines", "none"))


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
        hint, name = hints[declared.name], f"{prefix}{declared.name}"
        parts = (hint, *typing.get_args(hint))  # also of `X | None`
        inner = next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)
        default = None if inner else declared.default
        if declared.default_factory is not dataclasses.MISSING and not inner:
            default = declared.default_factory()
        kind = re.sub(r"\b[a-z_]+\.", "", name_of(hint)).replace("| None", "or null")
        yield Key(name, kind, default, declared.metadata["rules"], inner)
        if inner:
            yield from keys_of(inner, f"{name}.")


def name_of(hint: Any) -> str:
    """A type as a message names it."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def check_values(config: DictConfig, prefix: str = "") -> list[str]:
    """Problems with single values of a composed configuration, by the rules in its schema."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return []
    names = [declared.name for declared in dataclasses.fields(schema)]
    problems = []
    for key in (str(key) for key in config if key not in (*names, "hydra")):  # added; no part of the program reads it
        close = difflib.get_close_matches(key, names, n=1)
        remedy = f"did you mean {prefix}{close[0]}?" if close else f"allowed are {', '.join(names)}"
        problems.append(f"{prefix}{key}: no such key; {remedy}")
    for declared in dataclasses.fields(schema):
        if OmegaConf.is_missing(config, declared.name):
            continue
        value, name = config[declared.name], f"{prefix}{declared.name}"
        problems += declared.metadata["rules"].problems(name, value)
        if isinstance(value, DictConfig):
            problems += check_values(value, f"{name}.")
    return problems


def check(config: DictConfig, relations: Iterable[Relation] = ()) -> None:
    """Raise one ConfigError that lists every impossible value and every violated relation of a configuration.

    Args:
        relations: a generator, which starts only if every group is a mapping.
    """
    problems = check_values(config)
    if not any(NO_MAPPING in problem for problem in problems):
        problems += violations(config, relations)
    if problems:
        raise ConfigError("\n  ".join(problems))


def violations(config: DictConfig, relations: Iterable[Relation]) -> list[str]:
    """The message of each violated relation: `key=value: reason`, with the value that `config` has or the key gives."""
    messages = []
    for relation in relations:
        if isinstance(relation, str):
            messages.append(relation)
        elif relation and relation[0]:
            _, key, reason = relation
            given = key if "=" in key else f"{key}={shown(OmegaConf.select(config, key))}"
            messages.append(f"{given}: {reason}")
    return messages


def refused(function: Callable[..., Any], *arguments: Any) -> str | None:
    """The message with which a function refuses its arguments; None where it does not."""
    try:
        function(*arguments)
    except InstructLitError as error:
        return str(error)
    return None


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    return str(value)
