"""The report of a sweep: one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.jinja_environments import html_environment
from instruct_lit.errors import ConfigError
from instruct_lit.reports.sweep_charts import colours, curves, parallel_coordinates
from instruct_lit.sweeps.importance import all_numbers, importances
from instruct_lit.sweeps.trials import Trial, by_setting

MAX_ANSWERS = 40
COLUMNS = ("val/loss", "test/loss", "test/exact_match", "n_steps")
STATUSES = ("completed", "pruned", "failed", "interrupted", "running")


def write_page(folder: Path, trials: Sequence[Trial], metric: str, maximize: bool, n_best: int = 3) -> Path:
    """Write `report.html` and `trials.json` into the folder of a sweep; return the page's path.

    `trials` come sorted, the best first. The answers of the `n_best` best stand side by side.
    """
    template = html_environment(Path(__file__).parent).get_template("sweep.html.jinja")
    try:
        shares, missing = importances(trials), None
    except ConfigError as error:
        shares, missing = {}, str(error)
    answered = [trial for trial in trials if trial.value is not None and trial.responses][:n_best]
    counts = {status: sum(trial.status == status for trial in trials) for status in STATUSES}
    page = template.render(
        name=folder.resolve().name,
        metric=metric,
        direction="largest" if maximize else "smallest",
        trials=trials,
        names=list(trials[0].parameters),
        columns=[name for name in COLUMNS if name != metric and any(name in trial.metrics for trial in trials)],
        best=next((trial for trial in trials if trial.value is not None), None),
        counts={status: n for status, n in counts.items() if n},
        settings=by_setting(trials, maximize),
        curves=curves(trials),
        parallel=parallel_coordinates(trials, metric),
        importances=shares,
        missing=missing,
        colours=colours(trials),
        answered=answered,
        answers=side_by_side(answered),
        n_answers=min((len(trial.responses) for trial in answered), default=0),
        number=_number,
        short=_short,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    table = [
        {"trial": t.number, "status": t.status, "value": t.value, "reason": t.reason, "seconds": t.seconds}
        | {"parameters": t.parameters, "command": t.command}
        for t in trials
    ]
    (folder / "trials.json").write_text(json.dumps({"metric": metric, "trials": table}, indent=2) + "\n")
    return path


def side_by_side(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Examples that all of these trials answered, with their answers; those they differ in come first."""
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
    return sorted(rows, key=lambda row: not row["differ"])[:MAX_ANSWERS]


def _short(text: str) -> str:
    """An override's value, a long number rounded; the command has it whole."""
    return f"{float(text):.4g}" if len(text) > 8 and all_numbers([text]) else text


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
