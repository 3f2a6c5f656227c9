"""The trials in the folder of a sweep: settings, results, curves and responses, the best first."""

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from instruct_lit.errors import ConfigError, DataError
from instruct_lit.sweeps.trial import RECORD, is_held, parameters, read_record

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
    command: Sequence[str]
    parameters: dict[str, str]
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    responses: Sequence[Mapping[str, Any]]

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """A logged metric by optimizer step."""
        return [(row["step"], row[metric]) for row in self.history if math.isfinite(row.get(metric, math.nan))]

    def command_line(self, without: Collection[str] = ()) -> str:
        """The command of the trial, to be typed, without the overrides of some keys."""
        return shlex.join(part for part in self.command if _split(part)[0] not in without)


def all_failed(folder: Path) -> str | None:
    """Why the first trial of a sweep failed, if all of them failed; otherwise None."""
    trials = sorted(read_trials(folder), key=lambda trial: trial.number)
    return trials[0].reason if all(trial.status == "failed" for trial in trials) else None


def read_trials(folder: Path, maximize: bool = False, metric: str | None = None) -> list[Trial]:
    """The trials of a sweep, the best first, those without a value last.

    Args:
        metric: name in the trials' `metrics.json` that replaces the optimised value (finite ones of completed trials).
    Raises: DataError when the folder has no trial or one is damaged, ConfigError when no trial has the metric.
    """
    trials = [_read(path.parent) for path in sorted(folder.glob(f"*/{RECORD}")) if path.parent.name.isdigit()]
    if not trials:
        raise DataError(f"{folder}: not a sweep, no <number>/{RECORD} in it; give a folder of outputs/multirun")
    if metric is not None:
        for trial in trials:
            value = trial.metrics.get(metric, math.nan) if trial.status == "completed" else math.nan
            trial.value = value if math.isfinite(value) else None  # NaN and infinity have no place in an order
        if all(trial.value is None for trial in trials):
            names = ", ".join(sorted({name for trial in trials for name in trial.metrics})) or "none yet"
            raise ConfigError(f"metric={metric}: no completed trial has a finite value of it; there are {names}")
    keys = dict.fromkeys(key for trial in trials for key in trial.parameters)
    first: dict[Any, str] = {}  # the first spelling of a number: 1e-3 and 0.001 are one value
    columns: dict[str, list[str]] = {}
    for key in keys:
        column = [trial.parameters.get(key, "default") for trial in trials]
        column = [first.setdefault((key, Decimal(t) if math.isfinite(_number(t)) else t), t) for t in column]
        columns |= {key: column} if len(set(column)) > 1 else {}
    for row, trial in enumerate(trials):
        trial.parameters = {key: column[row] for key, column in columns.items()}
    sign = -1 if maximize else 1
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def varied(trials: Sequence[Trial]) -> list[str]:
    """Names of the parameters that have more than one value in these trials, without seeds, which are replicates."""
    names = trials[0].parameters if trials else {}
    return [n for n in names if n not in SEEDS and len({trial.parameters[n] for trial in trials}) > 1]


def seeds_of(trial: Trial) -> tuple[str, ...]:
    """The values of the seeds in which trials differ."""
    return tuple(trial.parameters[name] for name in SEEDS if name in trial.parameters)


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
    record: Any = read_record(folder)
    overrides = parameters(record["overrides"])
    metrics = _records(folder / "metrics.json", "") or _records(folder / "evaluation.json", "") or [{}]
    given = [override for override in overrides if not override.startswith(_SAME_FOR_ALL)]
    return Trial(
        number=int(folder.name),
        **{key: record[key] for key in ("value", "reason", "seconds")},
        status="interrupted" if record["status"] == "running" and not is_held(folder) else record["status"],
        command=["python", "-m", f"instruct_lit.{record['command']}", *record.get("files", ()), *given],
        parameters=dict(_split(override) for override in overrides if not override.startswith(_GROUPS)),
        metrics={name: value for name, value in metrics[0].items() if isinstance(value, int | float)},
        history=_records(folder / "history.jsonl"),
        responses=_records(folder / "responses.jsonl"),
    )


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _records(path: Path, separator: str = "\n") -> list[dict[str, Any]]:
    """The JSON objects of a file, without what a killed or a running trial has written in part."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = []
    for part in text.split(separator) if separator else [text]:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(part))
    return [row for row in rows if isinstance(row, dict)]
