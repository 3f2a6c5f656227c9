"""What lies in the folder of a sweep: its trials, sorted, their curves, and what several seeds say together."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError
from instruct_lit.sweeps.trial import RECORD, parameters, read_record

# Student's t, two-sided 95 %, for 1, 2, … degrees of freedom; above these a series gives it to a thousandth.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_GROUPS = ("sweep=", "launcher=", "experiment=", "debug=")  # the same for all trials, or a name for other overrides


@dataclass
class Trial:
    """One trial: its parameters are the overrides in which the trials of the sweep differ."""

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


@dataclass
class Setting:
    """Trials that differ in their seed alone; `half_width` is that of the 95 % interval of their mean."""

    parameters: dict[str, str]
    values: list[float]
    mean: float
    half_width: float | None


def read_trials(folder: Path, maximize: bool = False) -> list[Trial]:
    """The trials of a sweep, the best first, those without a value last. Raises DataError when there are none."""
    trials = [_read(path.parent) for path in sorted(folder.glob(f"*/{RECORD}")) if path.parent.name.isdigit()]
    if not trials:
        raise DataError(f"{folder}: no trial of a sweep in it (a folder of outputs/multirun is wanted)")
    given = [dict(_split(override) for override in trial.overrides) for trial in trials]
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    varied = [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]
    for trial, overrides in zip(trials, given, strict=True):
        trial.parameters = {key: overrides.get(key, "default") for key in varied}
    sign = -1 if maximize else 1
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def by_setting(trials: Sequence[Trial], maximize: bool = False) -> list[Setting]:
    """Means over seeds with their 95 % intervals (Student's t), the best first; empty without repeated settings."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for trial in trials:
        if trial.value is not None:
            key = tuple((k, v) for k, v in trial.parameters.items() if k not in ("seed", "data.seed"))
            groups.setdefault(key, []).append(trial.value)
    if all(len(values) < 2 for values in groups.values()):
        return []
    settings = [Setting(dict(key), values, *mean_and_interval(values)) for key, values in groups.items()]
    return sorted(settings, key=lambda setting: setting.mean, reverse=maximize)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval; None for a single value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, None
    return mean, t_95(n - 1) * statistics.stdev(values) / math.sqrt(n)


def t_95(n_free: int) -> float:
    """Student's t for a two-sided 95 % interval (Abramowitz and Stegun 26.7.5, two terms of the series)."""
    if n_free <= len(T_95):
        return T_95[n_free - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * n_free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n_free**2)


def _read(folder: Path) -> Trial:
    record = read_record(folder)
    assert record is not None
    overrides = parameters(record["overrides"])
    command = shlex.join(
        ["python", "-m", f"instruct_lit.{record['command']}", *(o for o in overrides if not o.startswith(_GROUPS[:2]))]
    )
    metrics = _json(folder / "metrics.json") or _json(folder / "evaluation.json")
    history = _rows(folder / "history.jsonl")
    return Trial(
        number=int(folder.name),
        status=record["status"],
        value=record["value"],
        reason=record["reason"],
        seconds=record["seconds"],
        overrides=[o for o in overrides if not o.startswith(_GROUPS)],
        command=command,
        metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
        curve=[(row["step"], row["val/loss"]) for row in history if math.isfinite(row.get("val/loss", math.nan))],
        responses=_rows(folder / "responses.jsonl"),
    )


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _json(path: Path) -> dict[str, Any]:
    rows = _read_all([path.read_text(encoding="utf-8")] if path.is_file() else [])
    return rows[0] if rows else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return _read_all(path.read_text(encoding="utf-8").split("\n") if path.is_file() else [])


def _read_all(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The records in these texts; a trial that was killed, or is just writing, leaves half of one."""
    rows = []
    for text in texts:
        with suppress(ValueError):
            rows.append(json.loads(text))
    return rows
