"""The report of a sweep: `report.html`, one self-contained page, and `trials.json`, its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.reports import pages, plots
from instruct_lit.reports.pages import number
from instruct_lit.sweeps.importance import importances
from instruct_lit.sweeps.statistics import by_setting
from instruct_lit.sweeps.trials import Trial, column_of, is_logarithmic, short, varied

MAX_RESPONSES = 40
COLUMNS = ("val/loss", "test/loss", "test/exact_match", "n_steps")
STATUSES = ("completed", "pruned", "failed", "interrupted", "running")


def write_page(folder: Path, trials: Sequence[Trial], metric: str, maximize: bool, n_best: int = 3) -> Path:
    """Write `report.html` and `trials.json` into the folder of a sweep; return the page's path.

    Args:
        trials: sorted, the best first.
        n_best: of so many trials the responses are shown side by side.
    """
    done = [trial for trial in trials if trial.value is not None]
    colours = dict(zip([trial.number for trial in done], plots.rank_colours(len(done)), strict=True))
    shares, settings, missing = {}, [], []
    try:
        shares = importances(trials)
    except ConfigError as error:
        missing.append(str(error))
    try:
        settings = by_setting(trials, maximize)
    except ConfigError as error:
        missing.append(str(error))
    answered = [trial for trial in done if trial.responses][:n_best]
    counts = {status: sum(trial.status == status for trial in trials) for status in STATUSES}
    path = folder / "report.html"
    pages.write_page(
        path,
        "page.html.jinja",
        Path(__file__).parent,
        name=folder.resolve().name,
        metric=metric,
        direction="largest" if maximize else "smallest",
        trials=trials,
        names=list(trials[0].parameters),
        columns=[name for name in COLUMNS if name != metric and any(name in trial.metrics for trial in trials)],
        best=next(iter(done), None),
        counts={status: n for status, n in counts.items() if n},
        settings=settings,
        plots=[plot for plot in (curves(trials, colours), parallel_coordinates(done, metric, colours)) if plot],
        importance=plots.svg(plots.importance(shares, metric), "importance of the hyper-parameters") if shares else "",
        missing="; ".join(missing),
        colours=colours,
        answered=answered,
        answers=side_by_side(answered),
        n_answers=min((len(trial.responses) for trial in answered), default=0),
        short=short,
    )
    table = [
        {"trial": t.number, "status": t.status, "value": t.value, "reason": t.reason, "seconds": t.seconds}
        | {"parameters": t.parameters, "command": t.command}
        for t in trials
    ]
    (folder / "trials.json").write_text(json.dumps({"metric": metric, "trials": table}, indent=2) + "\n")
    return path


def curves(trials: Sequence[Trial], colours: dict[int, str]) -> str:
    """Validation loss of every trial as SVG; empty when none has a curve."""
    lines = [_line(trial, colours) for trial in trials if trial.curve]
    return plots.svg(plots.trial_curves(lines), "validation loss of every trial", lines) if lines else ""


def parallel_coordinates(done: Sequence[Trial], metric: str, colours: dict[int, str]) -> str:
    """Parameters and metric of every trial with a value as SVG; empty for one trial or without a varied parameter."""
    columns = {name: column_of(done, name) for name in varied(done)}
    if len(done) < 2 or not columns:
        return ""
    logarithmic = {name for name, column in columns.items() if is_logarithmic(column)}
    values: list[float] = [trial.value for trial in done if trial.value is not None]
    lines = [_line(trial, colours) for trial in done]
    figure = plots.parallel_coordinates(lines, {**columns, metric: values}, logarithmic)
    return plots.svg(figure, "parallel coordinates of the trials", lines)


def side_by_side(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Examples that all of these trials responded to, with their responses; those on which they differ come first."""
    if not trials:
        return []
    by_id = [{row.get("id"): row for row in trial.responses} for trial in trials]
    rows = []
    for key, row in by_id[0].items():
        if not all(key in found for found in by_id):
            continue
        answers = [found[key]["response"] for found in by_id]
        right = [answer.strip() == row["output"].strip() for answer in answers]
        rows.append(
            {"example": row, "answers": list(zip(answers, right, strict=True)), "differ": len(set(answers)) > 1}
        )
    return sorted(rows, key=lambda row: not row["differ"])[:MAX_RESPONSES]


def _line(trial: Trial, colours: dict[int, str]) -> plots.TrialLine:
    settings = " ".join(f"{name}={short(value)}" for name, value in trial.parameters.items())
    note = f"trial {trial.number}: {number(trial.value) or trial.status}  {settings}"
    colour = colours.get(trial.number, plots.GRAY)
    return plots.TrialLine(trial.number, colour, trial.curve, note, dashed=trial.status == "pruned")
