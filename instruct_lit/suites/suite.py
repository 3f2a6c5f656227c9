"""A benchmark suite, the request to run it, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_lit.errors import InstructLitError

Items = list[tuple[str, float | None]]  # text of an evaluated item and its value; None where it has no value of its own


class BenchmarkError(InstructLitError):
    """A benchmark cannot run: its data, its package or its environment is missing."""


@dataclass(frozen=True)
class Suite:
    """A set of tasks of one library (`system`).

    The suite's score is the mean of the tasks' first metrics over all items or over the tasks.

    Args:
        folders: those of the harness's task files that are read, beside ours; all where a task is in none of them.
        groups: for each heading a tag of the harness, whose tasks get a mean of their own.
        n_shot: examples in the prompt; None: the task's own number.
        limit: items of each task; None: all.
        options: settings of the library.
    """

    name: str
    tasks: Sequence[str]
    folders: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    n_shot: int | None = None
    limit: int | None = None
    mean_over: str = "tasks"
    runs_code: bool = False
    system: str = "lm_eval"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRequest:
    """A suite, and the settings of a run of it.

    Args:
        data_dir: a folder with the hub's data sets as `<owner>/<name>/`; None: the hub.
        cache: the folder of environments and downloads.
        out_dir: the folder of everything that the library writes.
        log: the file of its output.
        on_missing: `error`, or `skip` tasks whose data are missing.
    """

    suite: Suite
    data_dir: Path | None
    cache: Path
    out_dir: Path
    log: Path
    on_missing: str = "error"
    allow_code: bool = False


@dataclass(frozen=True)
class Figure:
    """A metric's value over `n` items, its standard error, and its chance level. `version` is the task's."""

    metric: str
    value: float
    stderr: float | None
    n: int
    chance: float | None = None
    n_shot: int | None = None
    version: Any = None
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A model's figures in one suite: the score of the suite, of its groups and of its tasks.

    `run` and `label` name the model, `template` is on or off. `details` holds further facts: the number of truncated
    prompts, seconds, leaks.
    """

    run: str
    label: str
    template: str
    score: Figure
    groups: Mapping[str, Figure]
    tasks: Mapping[str, Figure]
    details: Mapping[str, Any] = field(default_factory=dict)


def mean_of(figures: Sequence[Figure], mean_over: str) -> Figure:
    """The mean of several tasks' figures, over items or over tasks, with the standard error of that mean."""
    n_items = sum(f.n for f in figures)
    weights = [f.n / n_items if mean_over == "items" else 1 / len(figures) for f in figures]
    errors = [w * f.stderr for w, f in zip(weights, figures, strict=True) if f.stderr is not None]
    chances = [w * f.chance for w, f in zip(weights, figures, strict=True) if f.chance is not None]
    metrics, shots = {f.metric for f in figures}, {f.n_shot for f in figures}
    return Figure(
        metric=metrics.pop() if len(metrics) == 1 else "mean",
        value=sum(w * f.value for w, f in zip(weights, figures, strict=True)),
        stderr=sum(e**2 for e in errors) ** 0.5 if len(errors) == len(figures) else None,
        n=n_items,
        chance=sum(chances) if len(chances) == len(figures) else None,
        n_shot=shots.pop() if len(shots) == 1 else None,
    )
