"""A benchmark suite, the request to run it, and its report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.judging.response_judge import ResponseJudge

Items = list[tuple[str, float | None]]  # text of an evaluated item and its value; None where it has no value of its own

SHARES = re.compile(r"(^|_)(acc|acc_norm|accuracy|exact_match|em|pass@1|mc1)$")  # metrics: shares of right answers


class BenchmarkError(InstructLitError):
    """A benchmark cannot run: its data, its package or its environment is missing."""


@dataclass(frozen=True)
class Suite:
    """A set of tasks of one library (`system`).

    The suite's score is the mean of the tasks' first metrics over all items or over the tasks.
    """

    name: str
    tasks: Sequence[str]
    folders: Sequence[str] = ()  # of the harness's task files that are read beside ours; all where they lack a task
    groups: Mapping[str, str] = field(default_factory=dict)  # by heading the harness's tag of tasks with a mean
    n_shot: int | None = None  # examples in the prompt; None: the task's own number
    limit: int | None = None  # items of each task; None: all
    mean_over: str = "tasks"
    runs_code: bool = False
    system: str = "lm_eval"
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of the library


@dataclass(frozen=True)
class RunRequest:
    """A suite, and the settings of a run of it."""

    suite: Suite
    data_dir: Path | None  # a folder with the hub's data sets as `<owner>/<name>/`; None: the hub
    cache: Path  # the folder of environments and downloads
    out_dir: Path  # the folder of everything that the library writes
    log: Path  # the file of its output
    on_missing: str = "error"  # or `skip` tasks whose data are missing
    allow_code: bool = False
    judge: ResponseJudge | None = None  # of suites whose answers are judged


@dataclass(frozen=True)
class Figure:
    """A metric's value over `n` items, its standard error, and its chance level."""

    metric: str
    value: float | None  # None where unlike metrics have no mean
    stderr: float | None
    n: int
    chance: float | None = None
    n_shot: int | None = None
    version: Any = None  # of the task
    others: Mapping[str, float] = field(default_factory=dict)
    majority: float | None = None  # the level of the best constant choice


@dataclass(frozen=True)
class Report:
    """The figures of a model, named by `run` and `label`: of one suite, of its groups and of its tasks."""

    run: str
    label: str
    template: str  # on or off
    score: Figure
    groups: Mapping[str, Figure]
    tasks: Mapping[str, Figure]
    details: Mapping[str, Any] = field(default_factory=dict)  # the number of truncated prompts, seconds, leaks


def mean_of(figures: Sequence[Figure], mean_over: str) -> Figure:
    """The mean of several tasks' figures, over items or over tasks, with the standard error of that mean.

    Figures are alike where they have one metric or all are shares of right answers (`SHARES`); others have no mean.
    """
    n_items = sum(f.n for f in figures)
    weights = [f.n / n_items if mean_over == "items" else 1 / len(figures) for f in figures]
    metrics, shots = {f.metric for f in figures}, {f.n_shot for f in figures}
    if len(metrics) > 1 and not all(SHARES.search(metric) for metric in metrics):
        return Figure("unlike metrics", None, None, n_items)

    def mean(values: Sequence[float | None], power: int = 1) -> float | None:
        known = [(w * v) ** power for w, v in zip(weights, values, strict=True) if v is not None]
        return sum(known) if len(known) == len(values) else None

    variance = mean([f.stderr for f in figures], 2)
    return Figure(
        metric=metrics.pop() if len(metrics) == 1 else "mean",
        value=mean([f.value for f in figures]),
        stderr=None if variance is None else variance**0.5,
        n=n_items,
        chance=mean([f.chance for f in figures]),
        n_shot=shots.pop() if len(shots) == 1 else None,
        majority=mean([f.majority for f in figures]),
    )
