"""The trials in the folder of a sweep: settings, results, curves and responses, the best first."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_lit.errors import ConfigError, DataError
from instruct_lit.sweeps.trial import RECORD, parameters, read_record

_SAME_FOR_ALL = ("sweep=", "launcher=")
SEEDS = ("seed", "data.seed")
_GROUPS = (*_SAME_FOR_ALL, "experiment=", "debug=")  # the same for all trials, or a name for other overrides
_LOG_RATIO = 30  # numbers that span more than this factor are laid out on a logarithmic scale


@dataclass
class Trial:
    """One trial; its `parameters` are the overrides in which the trials of the sweep differ."""

    number: int
    status: str
    value: float | None
    reason: str | None
    seconds: float
    overrides: list[str]
    command: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()  # (optimizer step, val/loss)
    responses: Sequence[Mapping[str, Any]] = ()
    parameters: dict[str, str] = field(default_factory=dict)


def all_failed(folder: Path) -> str | None:
    """Why the first trial of a sweep failed, if all of them failed; otherwise None."""
    trials = sorted(read_trials(folder), key=lambda trial: trial.number)
    return trials[0].reason if all(trial.status == "failed" for trial in trials) else None


def read_trials(folder: Path, maximize: bool = False, metric: str | None = None) -> list[Trial]:
    """The trials of a sweep, the best first, those without a value last.

    Args:
        metric: name in the trials' `metrics.json` that replaces the optimised value.
    Raises: DataError when the folder has no trial, ConfigError when no trial has the metric.
    """
    trials = [_read(path.parent) for path in sorted(folder.glob(f"*/{RECORD}")) if path.parent.name.isdigit()]
    if not trials:
        raise DataError(f"{folder}: not a sweep, no <number>/{RECORD} in it; give a folder of outputs/multirun")
    if metric is not None:
        for trial in trials:
            trial.value = trial.metrics.get(metric)
        if all(trial.value is None for trial in trials):
            names = ", ".join(sorted({name for trial in trials for name in trial.metrics})) or "none yet"
            raise ConfigError(f"metric={metric}: no trial has it; there are {names}")
    for trial in trials:
        trial.parameters = dict(_split(override) for override in trial.overrides)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    for trial in trials:
        trial.parameters = {key: trial.parameters.get(key, "default") for key in keys}
    kept = varied(trials)
    for trial in trials:
        trial.parameters = {key: trial.parameters[key] for key in kept}
    sign = -1 if maximize else 1
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def varied(trials: Sequence[Trial]) -> list[str]:
    """Names of the parameters that have more than one value in these trials."""
    names = trials[0].parameters if trials else {}
    return [name for name in names if len({trial.parameters[name] for trial in trials}) > 1]


def column_of(trials: Sequence[Trial], name: str) -> list[float] | list[str]:
    """A parameter of every trial: as numbers where all are finite numbers, else as text."""
    texts = [trial.parameters[name] for trial in trials]
    numbers = [_number(text) for text in texts]
    return numbers if all(map(math.isfinite, numbers)) else texts


def is_logarithmic(column: Sequence[float] | Sequence[str]) -> bool:
    """Whether a column of positive numbers spans orders of magnitude."""
    numbers = [value for value in column if isinstance(value, float)]
    return len(numbers) == len(column) and min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_RATIO


def short(text: str) -> str:
    """An override's value with a long number rounded to four digits."""
    return f"{_number(text):.4g}" if len(text) > 8 and math.isfinite(_number(text)) else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read(folder: Path) -> Trial:
    record = read_record(folder)
    assert record is not None
    overrides = parameters(record["overrides"])
    given = [override for override in overrides if not override.startswith(_SAME_FOR_ALL)]
    metrics = _json(folder / "metrics.json") or _json(folder / "evaluation.json")
    history = _rows(folder / "history.jsonl")
    return Trial(
        number=int(folder.name),
        status=record["status"],
        value=record["value"],
        reason=record["reason"],
        seconds=record["seconds"],
        overrides=[override for override in overrides if not override.startswith(_GROUPS)],
        command=shlex.join(["python", "-m", f"instruct_lit.{record['command']}", *given]),
        metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
        curve=[(row["step"], row["val/loss"]) for row in history if math.isfinite(row.get("val/loss", math.nan))],
        responses=_rows(folder / "responses.jsonl"),
    )


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _json(path: Path) -> dict[str, Any]:
    rows = _parsed([path.read_text(encoding="utf-8")] if path.is_file() else [])
    return rows[0] if rows else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return _parsed(path.read_text(encoding="utf-8").split("\n") if path.is_file() else [])


def _parsed(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON records in these texts, without those that a killed or a running trial has written in part."""
    rows = []
    for text in texts:
        with suppress(ValueError):
            rows.append(json.loads(text))
    return rows
