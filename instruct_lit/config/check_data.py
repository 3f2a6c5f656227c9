"""Rules of the data group that can be checked without reading data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from instruct_lit.core.data.example import FIELDS


def check_data(data: Any) -> list[str]:
    """Problems of the data group."""
    if problems := _problems_of_form(data):
        return problems
    places = {f"data.{key}": data[key] for key in ("path", "test_path", "val_path")}
    for name, given in (data.sets or {}).items():
        places[f"data.sets.{name}.path"] = given.get("path") if given is not None else None
    for key, value in places.items():
        for path in value if isinstance(value, ListConfig) else [value]:
            if path is not None and not (isinstance(path, str) and path):
                problems.append(f"{key}={value}: give a file, a folder or a list of files")
            elif path is not None and not Path(path).expanduser().exists():
                problems.append(f"{key}={path}: no such file or folder")
    if data.streaming and data.sets:
        problems.append("data.streaming=true: a mixture cannot be streamed; leave out data.sets")
    return problems + _problems_of_shares(data.sets or {})


def _problems_of_form(data: Any) -> list[str]:
    """Values that must be mappings and are not."""
    nodes = {f"data.{key}": data[key] for key in ("columns", "filters", "sets")}
    for key in ("filters", "sets"):
        if isinstance(data[key], DictConfig):
            nodes |= {f"data.{key}.{name}": given for name, given in data[key].items()}
    problems = [
        f"{key}={node}: must be a mapping"
        for key, node in nodes.items()
        if node is not None and not isinstance(node, DictConfig)
    ]
    if isinstance(data.columns, DictConfig):
        problems += _problems_of_columns(data.columns)
    if data.split != "book" and not isinstance(data.split, DictConfig):
        problems.append(f"data.split={data.split}: allowed are 'book' and a mapping of train, val and test")
    elif data.split != "book":
        problems += [
            f"data.split.{name}={share}: give a fraction below 1 or a count"
            for name, share in data.split.items()
            if share is not None and not _is_share(share)
        ]
    problems += [
        f"data.{key}=[]: give at least one file"
        for key in ("path", "test_path", "val_path")
        if isinstance(data[key], ListConfig) and not data[key]
    ]
    if Path(data.name).name != data.name or "\\" in data.name or data.name.startswith("."):
        problems.append(
            f"data.name={data.name}: must be a name of files in the cache, without slashes or a leading dot"
        )
    return problems


def _problems_of_columns(columns: Any) -> list[str]:
    """Unknown parts of an example, and two of them read from one field."""
    given = {str(key): str(value) for key, value in columns.items()}
    problems = [f"data.columns.{key}: allowed are {', '.join(FIELDS)}" for key in given if key not in FIELDS]
    for key, name in given.items():
        same = [other for other in given if given[other] == name]
        if len(same) > 1 and key == same[0]:
            problems.append(f"data.columns: {' and '.join(same)} are both read from {name!r}; name a field for each")
    return problems


def _problems_of_shares(sets: Any) -> list[str]:
    """Impossible weights and repeats of a mixture."""
    shares = {
        f"data.sets.{name}.{key}": given[key]
        for name, given in sets.items()
        for key in ("weight", "repeats")
        if given is not None and key in given
    }
    problems = [
        f"{key}={share}: must be a number of at least 0" for key, share in shares.items() if not _is_share(share)
    ]
    if not problems and len(shares) == len(sets) > 0 and not any(shares.values()):
        problems.append("data.sets: all weights or repeats are 0; at least one must be above 0")
    return problems


def _is_share(value: Any) -> bool:
    """Whether a value is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def check_streamed_training(config: Any) -> list[str]:
    """What streaming does not support, and settings that it requires because a stream has no length."""
    problems, data = [], config.data
    if data.keep_together == "near_duplicates" or "near_duplicates" in (data.filters or {}):
        problems.append("data.streaming=true: near-duplicates are not found in a stream; leave them out")
    split = data.split if isinstance(data.split, DictConfig) else {}
    for name in ("val", "test"):
        n = split.get(name)
        if data[f"{name}_path"] is None and not (isinstance(n, int | float) and n >= 1 and n == int(n)):
            problems.append(
                f"data.split.{name}={n}: a stream has no length, so give a count (data.split={{val: 500, test: 500}}), "
                f"or data.{name}_path"
            )
    max_steps, interval = config.trainer.get("max_steps"), config.trainer.get("val_check_interval")
    no_length = "a stream has no length, so give a number of"
    if max_steps is None or max_steps < 1:
        problems.append(f"trainer.max_steps={max_steps}: {no_length} steps")
    if not isinstance(interval, int):
        problems.append(f"trainer.val_check_interval={interval}: {no_length} batches")
    if config.batching.grouping != "none":
        problems.append(
            f"batching.grouping={config.batching.grouping}: lengths are unknown in a stream; use batching=packed or "
            "batching=padded"
        )
    return problems
